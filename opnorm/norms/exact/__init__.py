"""Exact ℓ1 and ℓ∞ operator norms."""
