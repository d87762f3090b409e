"""Linear bounds on activations that are functions of one variable: sigmoid, tanh, SiLU, GELU, ELU, softplus and the like.

Over [l, u] the line above f with the smallest area touches the concave envelope of f in the middle: its slope k minimizes
max (f(x) - k (x - m)), m = (l + u) / 2; and so from below. The maximum is that over some nodes, plus how far f may be from
its chords between them: w² sup|f''| / 8 and w (sup f' - inf f') / 4 for a chord of width w. The slopes and curvatures are
certified once a function, by interval arithmetic over cells that cover all numbers; kinks are nodes.

Source: Zhang et al. 2018 (CROWN), Sec. 3.2, for S-shaped functions; the envelope and the error of linear interpolation.
"""

import decimal
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core import decimal_intervals as iv
from opnorm._core.layers import Shape
from opnorm.certificates.affine import TINY, UNIT, lower_sum
from opnorm.norms.network.one_variable import Function, kinks, largest_slope, slope_and_curvature

__all__ = ["ERROR", "LARGEST", "Curve"]

INNER = 10.0  # beyond it, cells grow by a factor of 4
CELLS = 24  # between two nodes, inside
OUTER = [INNER * 4**k for k in range(9)]
PARTS = 4  # of a cell, over which its slopes and curvatures are certified
BISECTIONS = 24
AT_ONCE = 2**15  # inputs
ERROR = 8  # units of rounding in a value of torch's functions, of |f| + sup|f'| (1 + |x|)
LARGEST = 1e30  # beyond it a function may overflow on the way


class _Cells(NamedTuple):
    """Cells that cover all numbers, with certified ends of the slopes and the largest |f''|, float64, each (c,).

    Attributes:
        edges: between them, (c - 1,).
        flattest: lower bounds of the slopes.
        steepest: upper bounds of the slopes.
        curvature: of |f''|.
        kinks: where f' may jump.
        steep: a bound of all slopes.
    """

    edges: Tensor
    flattest: Tensor
    steepest: Tensor
    curvature: Tensor
    kinks: Tensor
    steep: float

    def over(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The lowest and the highest slope and the curvature on intervals of any shape."""
        edges, flattest, steepest, curvature = (t.to(low.device) for t in self[:4])
        first = torch.searchsorted(edges, low.contiguous(), right=True)
        last = torch.maximum(torch.searchsorted(edges, high.contiguous()), first)
        least, most, bend = flattest[first], steepest[first], curvature[first]
        for k in range(1, 1 + int((last - first).max()) if low.numel() else 1):
            at = torch.minimum(first + k, last)
            least, most = torch.minimum(least, flattest[at]), torch.maximum(most, steepest[at])
            bend = torch.maximum(bend, curvature[at])
        return least, most, bend


@functools.lru_cache(maxsize=256)
def _cells(function: Function) -> _Cells:
    edges = {s * e for e in OUTER for s in (-1, 1)} | {
        i / 2 for i in range(int(-2 * INNER), int(2 * INNER) + 1)
    }
    ends = [-iv.HUGE, *(Decimal(e) for e in sorted(edges | set(kinks(function)))), iv.HUGE]
    steep, rows = largest_slope(function), []
    with decimal.localcontext(iv.CONTEXT):
        for low, high in itertools.pairwise(ends):
            cuts = [low, *(low + (high - low) * i / PARTS for i in range(1, PARTS)), high]
            found = [slope_and_curvature(function, x) for x in itertools.pairwise(cuts)]
            least = -iv.float_above(max(-slope[0] for slope, _ in found))
            most = iv.float_above(max(slope[1] for slope, _ in found))
            bend = iv.float_above(max(iv.sizes(curvature)[1] for _, curvature in found))
            rows.append((max(least, -steep), min(most, steep), bend))
    flattest, steepest, curvature = torch.tensor(rows, dtype=torch.float64).T
    inner = torch.tensor([float(e) for e in ends[1:-1]], dtype=torch.float64)
    return _Cells(
        inner, flattest, steepest, curvature, torch.tensor(kinks(function), dtype=torch.float64), steep
    )


class _Lines(NamedTuple):
    """k x + c below and above f, and f between two numbers, on every interval."""

    slopes: tuple[Tensor, Tensor]
    constants: tuple[Tensor, Tensor]
    values: tuple[Tensor, Tensor]


@dataclass(eq=False)
class Curve:
    """An activation, entry by entry.

    Attributes:
        layer: computes it.
        function: the same function, for its slopes.
        out_shape: of one output.
    """

    layer: Callable[[Tensor], Tensor]
    function: Function
    out_shape: Shape
    work: int = 0
    _last: tuple[Tensor, Tensor, _Lines] | None = field(default=None, repr=False)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Of the values, as they are computed."""
        return self._lines(low, high).values

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The line from below where A > 0, that from above where A < 0."""
        lines = self._lines(low, high)
        above, below = A.clamp(min=0), A.clamp(max=0)
        (k, K), (c, C) = ((t[:, None] for t in ends) for ends in (lines.slopes, lines.constants))
        return above * k + below * K, lower_sum(above * c + below * C)

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """By the steepest slope, and the rounding of the function itself."""
        least, most, _ = _cells(self.function).over(low - off, high + off)
        return torch.maximum(least.abs(), most.abs()) * off + self._rounding(low, high)

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Where tighter intervals make tighter lines."""
        return high > low

    def _rounding(self, low: Tensor, high: Tensor, unit: float = UNIT) -> Tensor:
        """The largest error of a computed value; infinite where the function might overflow."""
        size, steep = torch.maximum(low.abs(), high.abs()), _cells(self.function).steep
        values = self._values(low).abs() + 2 * steep * size
        return torch.where(size < LARGEST, ERROR * unit * (values + steep * (1 + size)) + TINY, math.inf)

    def _values(self, x: Tensor) -> Tensor:
        return self.layer(x.double().clone())

    def _lines(self, low: Tensor, high: Tensor) -> _Lines:
        if self._last is None or not (_same(low, self._last[0]) and _same(high, self._last[1])):
            ends = (t.reshape(-1).split(AT_ONCE) for t in (low, high))
            parts = [self._solved(a, b) for a, b in zip(*ends, strict=True)]
            joined = [
                tuple(torch.cat([p[i][end] for p in parts]).view_as(low) for end in (0, 1)) for i in range(3)
            ]
            self._last = low, high, _Lines(*joined)  # type: ignore[arg-type]
        return self._last[2]

    def _solved(self, low: Tensor, high: Tensor) -> _Lines:
        cells = _cells(self.function)
        known = (low > -LARGEST) & (high < LARGEST) & (low <= high)
        low, high = torch.where(known, low, 0.0), torch.where(known, high, 0.0)
        x = _nodes(cells, low, high)
        f, middle, off = self._values(x), ((low + high) / 2)[:, None], _from_chords(cells, x)
        own = self._rounding(low, high) + 4 * self._rounding(low, high, 2.0**-53)
        slopes, constants, ends = [], [], []
        for sign in (-1, 1):
            k = sign * _touching(sign * f, x - middle, cells.steep)
            constants.append(
                torch.where(known, sign * (_highest(sign * (f - k[:, None] * x), off) + own), sign * math.inf)
            )
            slopes.append(torch.where(known, k, 0.0))
            ends.append(sign * _highest(sign * f, off))
        first, last = self._values(low), self._values(high)
        least, most, _ = cells.over(low, high)
        lowest = torch.where(least >= 0, first, torch.where(most <= 0, last, ends[0])) - own
        highest = torch.where(least >= 0, last, torch.where(most <= 0, first, ends[1])) + own
        values = torch.where(known, lowest, -math.inf), torch.where(known, highest, math.inf)
        return _Lines((slopes[0], slopes[1]), (constants[0], constants[1]), values)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and torch.equal(a, b))


def _nodes(cells: _Cells, low: Tensor, high: Tensor) -> Tensor:
    """Numbers of each interval in order, its ends first and last, (n, nodes)."""
    first, last = low.clamp(-INNER, INNER), high.clamp(-INNER, INNER)
    at = torch.linspace(0, 1, CELLS + 1, dtype=torch.float64, device=low.device)
    inner = first[:, None] + (last - first)[:, None] * at
    outer = [-e for e in OUTER] + OUTER + cells.kinks.tolist()
    fixed = torch.tensor(outer, dtype=torch.float64, device=low.device).expand(len(low), -1)
    x = torch.cat([low[:, None], inner, fixed, high[:, None]], 1)
    return torch.minimum(torch.maximum(x, low[:, None]), high[:, None]).sort(1).values


def _from_chords(cells: _Cells, x: Tensor) -> Tensor:
    """How far the function may be from its chord between each number and the next, (n, nodes - 1)."""
    least, most, bend = cells.over(x[:, :-1], x[:, 1:])
    w = (x[:, 1:] - x[:, :-1]) * (1 + 1e-9)
    return torch.where(w > 0, torch.minimum(bend * w.square() / 8, (most - least) * w / 4), 0.0)


def _highest(f: Tensor, off: Tensor) -> Tensor:
    """An upper bound of a function with these values at nodes, that is at most so far from its chords."""
    return (torch.maximum(f[:, :-1], f[:, 1:]) + off).amax(1)


def _touching(f: Tensor, x: Tensor, steep: float) -> Tensor:
    """The k that minimizes max (f - k x) over the last axis, by bisection on where the maximum is."""
    low, high = (torch.full_like(f[:, 0], s * steep) for s in (-1, 1))
    for _ in range(BISECTIONS):
        k = (low + high) / 2
        at = (f - k[:, None] * x).argmax(1, keepdim=True)
        right = x.gather(1, at)[:, 0] > 0
        low, high = torch.where(right, k, low), torch.where(right, high, k)
    return (low + high) / 2
