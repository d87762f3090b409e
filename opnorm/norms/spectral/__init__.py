"""Certified ℓ2 operator norms."""
