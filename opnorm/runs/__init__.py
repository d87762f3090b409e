"""Runs that are kept, found again and resumed; and the evaluations and pages made from them."""
