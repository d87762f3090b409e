"""Bounds for whole networks, from the norms of their layers."""
