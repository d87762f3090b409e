"""Proofs that no point of a ball is misclassified, which no attack then needs to try."""

from opnorm.certificates._proof import certified, proof
from opnorm.certificates.radius import lipschitz_radius

__all__ = ["certified", "lipschitz_radius", "proof"]
