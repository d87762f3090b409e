"""Norms as intervals, and their products."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm.errors import NormError
from opnorm.norms.number_text import interval

__all__ = ["Norm", "Product", "product", "rms_norm"]


class Norm(NamedTuple):
    """An operator norm as an interval: ``lower <= ‖M‖ <= upper``.

    Attributes:
        lower: 0-d float64 tensor.
        upper: 0-d float64 tensor, infinite where no upper bound is known; equal to ``lower`` where exact.
        method: how it was computed, in words.
    """

    lower: Tensor
    upper: Tensor
    method: str

    @property
    def exact(self) -> bool:
        """Whether both ends are the same number by construction."""
        return bool(self.lower == self.upper)

    @property
    def relative_width(self) -> float:
        """Upper / lower - 1; 0 for a norm of 0."""
        return float(self.upper / self.lower) - 1 if self.lower > 0 else 0.0 if self.upper == 0 else math.inf

    def __float__(self) -> float:
        """The norm, where it is exact.

        Raises:
            NormError: only an interval is known.
        """
        if not self.exact:
            raise NormError(
                f"the norm is known as an interval only, {float(self.lower):.6g} to {float(self.upper):.6g}; "
                "use .lower or .upper"
            )
        return float(self.lower)

    def __repr__(self) -> str:
        """The interval in four digits, or the number where it is exact, and the method."""
        return f"Norm({interval(float(self.lower), float(self.upper))}, {self.method!r})"

    def item(self) -> float:
        """As ``float(norm)``."""
        return float(self)

    @staticmethod
    def of(lower: float | Tensor, upper: float | Tensor, method: str) -> "Norm":
        """From numbers or tensors of any type and device."""
        low, high = (torch.as_tensor(end, dtype=torch.float64).detach().cpu() for end in (lower, upper))
        return Norm(low, high, method)


class Product(NamedTuple):
    """A product of norms as an interval; of many layers it is better read as a power of ten.

    Attributes:
        lower: the product of the lower ends; infinite beyond 1.8e308.
        upper: of the upper ends; infinite also where one is not known.
        log10_lower: its logarithm, which does not overflow.
        log10_upper: likewise.
        layers: how many factors.
        reason: why the product is not known; empty where it is.
    """

    lower: float
    upper: float
    log10_lower: float
    log10_upper: float
    layers: int
    reason: str = ""


def rms_norm(l2: Norm, inputs: int, outputs: int) -> Norm:
    """The norm from RMS to RMS, from the ℓ2 norm: sqrt(n_in / n_out) ‖M‖_2, as ‖x‖_RMS = ‖x‖_2 / sqrt(n).

    Source: Large et al. 2024 (Modula); Bernstein & Newhouse 2024.
    """
    if inputs == outputs or not outputs:
        return l2
    factor, rounding = math.sqrt(inputs / outputs), 2.0**-50
    return Norm.of(l2.lower * factor * (1 - rounding), l2.upper * factor * (1 + rounding), l2.method)


def product(norms: Sequence[Norm], reason: str = "") -> Product:
    """∏ ‖M_i‖ from intervals; ``reason`` says why some factors are missing."""
    ends: list[float] = []
    for side in ("lower", "upper"):
        values = [float(getattr(n, side)) for n in norms]
        ends.append(-math.inf if 0.0 in values else math.fsum(math.log10(v) for v in values))
    low, high = ends[0], math.inf if reason else ends[1]
    low, high = low - 1e-13 * len(norms), high + 1e-13 * len(norms)  # rounding of the logarithms
    powers = [10.0**e if e < 308 else math.inf for e in (low, high)]
    return Product(powers[0], powers[1], low, high, len(norms), reason)
