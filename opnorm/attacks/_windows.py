"""Segments, squares and cubes: the windows in which Square changes an input (R, C, *sizes) with 1, 2, 3 or more axes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor

__all__ = ["Window", "axis_of"]


@dataclass
class Window:
    """A window of each row.

    Attributes:
        places: for each axis, where in the window its positions are (R, n): inside from 0 to the side.
        side: of each row's window (R,), the same along every axis.
    """

    places: Sequence[Tensor]
    side: Tensor

    @staticmethod
    def drawn(u: Tensor, side: Tensor, sizes: Sequence[int], order: Tensor | None = None) -> "Window":
        """Anywhere in the input, from a number in (0, 1) for each axis (R, axes).

        With an ``order`` (R, n), the rank of each position of the only axis, a window is a segment of that order.
        """

        def place(share: Tensor, length: int) -> Tensor:
            corner = (share * (length - side + 1)).long().minimum(length - side)
            return (torch.arange(length, device=u.device) if order is None else order) - corner[:, None]

        return Window([place(u[:, axis], length) for axis, length in enumerate(sizes)], side)

    def mask(self) -> Tensor:
        """Which positions are inside, (R, 1, *sizes)."""
        return _at_every_position(
            [(p >= 0) & (p < self.side[:, None]) for p in self.places], torch.logical_and
        )

    def bumps(self, axis: Tensor) -> Tensor:
        """Two pyramids side by side along an axis (R,), one up and one down, (R, 1, *sizes).

        At the distance r from the middle (the largest of its coordinates), a pyramid is Σ_{j=r}^{side // 2} 1 / (j + 1)².
        It falls with r, so the largest distance gives the smallest height.
        """
        steps = torch.arange(1, max(p.shape[1] for p in self.places) + 2, device=axis.device)
        none = torch.zeros(1, dtype=torch.float32, device=axis.device)
        heights = torch.cat([none, (1 / steps.float() ** 2).cumsum(0)])
        half = (self.side // 2)[:, None]
        sides, signs = [], []
        for number, place in enumerate(self.places):
            split = (axis == number)[:, None]
            lower = split & (place >= half)
            middle = torch.where(
                lower, half + (self.side[:, None] - half) // 2, torch.where(split, half // 2, half)
            )
            away = (place - middle).abs().minimum(half)
            sides.append(heights[half + 1] - heights[away])
            signs.append(torch.where(lower, -1, 1))
        return _at_every_position(sides, torch.minimum) * _at_every_position(signs, torch.mul)


def axis_of(u: Tensor, axes: int) -> Tensor:
    """One of so many axes, from a number in (0, 1); the last one for the smallest numbers."""
    return axes - 1 - (u * axes).long()


def _at_every_position(values: Sequence[Tensor], function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Values along each axis, (R, n), combined at every position: (R, 1, *sizes)."""
    axes = len(values)
    spread = [
        v.reshape(len(v), 1, *[1] * axis, v.shape[1], *[1] * (axes - 1 - axis))
        for axis, v in enumerate(values)
    ]
    return reduce(function, spread)
