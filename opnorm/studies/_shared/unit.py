"""How the effects of claims are put into words."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["NO_UNIT", "POINTS", "Unit", "difference_in", "share_of", "times_the"]


@dataclass(frozen=True)
class Unit:
    """The unit in which an effect is read.

    Attributes:
        words: after the number, such as "percentage points".
        shown: effect -> the number that is shown.
        signed: whether it has its sign, because it is a difference.
    """

    words: str = ""
    shown: Callable[[float], float] = float
    signed: bool = True

    def number(self, effect: float) -> str:
        """An effect with three digits, without the words."""
        number = self.shown(effect)
        return f"{number:{'+' if self.signed else ''}.3g}" if number else "0"

    def bound(self, *effects: float) -> str:
        """Bounds of effects, without a plus sign and with the words once."""
        return self.after(" and ".join(f"{self.shown(effect) + 0.0:.3g}" for effect in effects))

    def after(self, number: str) -> str:
        """A number with the words after it."""
        return f"{number} {self.words}" if self.words else number


NO_UNIT = Unit()
POINTS = Unit("percentage points", lambda share: round(100 * share, 9))
"""Of differences of two shares, which are whole parts of a number of points: what is smaller is rounding."""


def difference_in(what: str) -> Unit:
    """Of differences of a quantity, such as "the loss gap"."""
    return Unit(f"in {what}")


def times_the(what: str) -> Unit:
    """Of differences of two log10, which are read as a ratio: so many times the second's, such as "typical norm"."""
    return Unit(f"times the {what}", lambda log10: 10.0**log10, signed=False)


def share_of(what: str, less: float) -> Unit:
    """Of a share of ``what``, less a fixed share, which are read as the share itself.

    Args:
        what: such as "the layers".
        less: what was taken away.
    """
    return Unit(f"% of {what}", lambda effect: 100 * min(1.0, max(0.0, effect + less)), signed=False)
