"""Proofs that no point of a ball is misclassified, which no attack then needs to try.

The proofs are imported when they are first used: networks that state bounds of their own layers need no attack.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["certified", "lipschitz_radius", "proof"]

if TYPE_CHECKING:
    from opnorm.certificates._proof import certified, proof
    from opnorm.certificates.radius import lipschitz_radius


def __getattr__(name: str) -> Any:
    if name in ("certified", "proof"):
        from opnorm.certificates import _proof

        return getattr(_proof, name)
    if name == "lipschitz_radius":
        from opnorm.certificates.radius import lipschitz_radius

        return lipschitz_radius
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
