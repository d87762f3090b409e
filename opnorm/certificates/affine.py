"""Bounds on affine functions, in the arithmetic in which a network computes them.

The bounds enclose not only the function's formula but the values that the model computes in float32. A sum of n products
in any order, with or without fused multiplication, has an error of at most γ_n = n u / (1 - n u) times the sum of their
absolute values, with u = 2^-24. This is 2^29 times the error of the same sum in float64, in which the bounds are computed,
so one percent more of it covers the rounding of the bounds themselves.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opnorm._core.layers import Shape
from opnorm._core.linear_map import LinearMap
from opnorm.errors import BoundError
from opnorm.norms.network.trace import leaves

__all__ = [
    "TINY",
    "UNIT",
    "Affine",
    "Selection",
    "averaged",
    "combination",
    "diagonal",
    "lower_sum",
    "selection",
]

UNIT = 2.0**-24
TF32 = 2.0**-9  # twice the relative error of a product whose factors are rounded to 11 bits
TINY = 1e-30  # far above the error of float32 by underflow


def lower_sum(terms: Tensor) -> Tensor:
    """A lower bound of the sums over all but the first two axes; (B, R, ...) -> (B, R)."""
    terms = terms.flatten(2)
    return terms.sum(2) - terms.shape[2] * 2.0**-52 * terms.abs().sum(2)


@dataclass(eq=False)
class Affine:
    """x -> W x + b, computed in float32.

    Attributes:
        map: W.
        size: x -> |W| x.
        bias: b, of a shape that adds to the output.
        bias_size: |b|, or the sum of the absolute values of its parts where it is computed from some.
        terms: number of summands of an output, or of operations.
        work: number of multiplications for one input.
        largest: number of the type that it is computed in; nothing is known of sums that may overflow.
    """

    map: LinearMap
    size: LinearMap
    bias: Tensor
    bias_size: Tensor
    terms: int
    work: int
    largest: float = torch.finfo(torch.float32).max

    def __post_init__(self) -> None:
        self.out_shape = self.map.out_shape
        gamma = self.terms * UNIT / (1 - self.terms * UNIT)
        backends = torch.backends
        tf32 = backends.cuda.matmul.allow_tf32 or backends.cudnn.allow_tf32
        self.unit = 1.01 * (gamma + (TF32 if tf32 and self.map.device.type == "cuda" else 0))

    def rounding(self, low: Tensor, high: Tensor) -> Tensor:
        """The largest error of the computed outputs, (B, *out_shape)."""
        size = self.size @ torch.maximum(low.abs(), high.abs()) + self.bias_size
        return torch.where(size < self.largest / 2, self.unit * size + TINY, math.inf)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """By center and radius."""
        center = self.map @ ((low + high) / 2) + self.bias
        radius = self.size @ ((high - low) / 2) + self.rounding(low, high)
        return center - radius, center + radius

    def propagated(self, off: Tensor, low: Tensor, high: Tensor) -> Tensor:
        """|W| off, and the rounding of its own."""
        return self.size @ off + self.rounding(low, high)

    def open(self, low: Tensor, high: Tensor) -> Tensor:
        """Nowhere."""
        return torch.zeros_like(low, dtype=torch.bool)

    def backward(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """<A, W x + b> = <Wᵀ A, x> + <A, b>, less the error by rounding."""
        c = lower_sum(A * self.bias) + lower_sum(-A.abs() * self.rounding(low, high)[:, None])
        return self.transposed(A), c

    def transposed(self, A: Tensor) -> Tensor:
        """Wᵀ A for A (B, R, *out_shape)."""
        return (self.map.T @ A.flatten(0, 1)).unflatten(0, A.shape[:2])


class Selection(Affine):
    """Each output is one of the inputs, or a constant: nothing is rounded.

    Args:
        index: for each output the place of its input, counted from 1; 0 for a constant.
        in_shape: of one input.
        constants: of the shape of the output; 0 where it is an input.
    """

    def __init__(self, index: Tensor, in_shape: Shape, constants: Tensor) -> None:
        out_shape, size = tuple(index.shape), math.prod(in_shape)
        flat = index.flatten()
        ordered = torch.equal(flat, torch.arange(1, size + 1, device=flat.device))
        if not constants.any():
            constants = torch.zeros((), dtype=torch.float64)

        def apply(v: Tensor) -> Tensor:
            if ordered:
                return v.reshape(-1, *out_shape)
            return F.pad(v.flatten(1), (1, 0)).index_select(1, flat.to(v.device)).view(-1, *out_shape)

        def adjoint(u: Tensor) -> Tensor:
            if ordered:
                return u.reshape(-1, *in_shape)
            back = u.new_zeros(len(u), 1 + size).index_add_(1, flat.to(u.device), u.flatten(1))
            return back[:, 1:].reshape(-1, *in_shape)

        selected = LinearMap(apply, adjoint, in_shape, out_shape, index.device)
        super().__init__(selected, selected, constants, constants.abs(), 0, 0)

    def rounding(self, low: Tensor, high: Tensor) -> Tensor:
        """None."""
        return low.new_zeros(len(low), *self.out_shape)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Of the inputs selected."""
        return self.map @ low + self.bias, self.map @ high + self.bias


def selection(call: Callable[[list[Tensor]], Any], shapes: Sequence[Shape], device: Any) -> list[Selection]:
    """The bounds on each output of a function that moves, copies and drops entries of tensors of these shapes.

    It is called with the places of the entries of two points, counted from 1, and with zeros, which leaves the constants.

    Raises:
        BoundError: an output is none of one point's entries.
    """
    sizes = [math.prod(s) for s in shapes]
    places = torch.arange(1, 2 * sum(sizes) + 1, dtype=torch.float64, device=device).view(2, -1)
    parts = [p.reshape(2, *s) for p, s in zip(places.split(sizes, 1), shapes, strict=True)]
    constants, moved = leaves(call([torch.zeros_like(p) for p in parts])), leaves(call(parts))
    in_shape = shapes[0] if len(shapes) == 1 else (sum(sizes),)
    found = []
    for value, constant in zip(moved, constants, strict=True):
        if value.shape[:1] != (2,) or not constant.isfinite().all():
            raise BoundError("its output has no batch axis in front, or constants that are not finite")
        first, second = (value - constant).round().long()
        if (first > sum(sizes)).any() or not torch.equal(
            torch.where(first > 0, first + sum(sizes), 0), second
        ):
            raise BoundError("it mixes the points of a batch")
        if not torch.equal(constant[0], constant[1]):
            raise BoundError("it treats the points of a batch in different ways")
        found.append(Selection(first, in_shape, constant[0].double()))
    return found


def averaged(W: LinearMap, terms: int) -> Affine:
    """The bounds of a map without negative entries, with at most so many in a row."""
    zero = torch.zeros((), dtype=torch.float64, device=W.device)
    return Affine(W, W, zero, zero, terms + 2, math.prod(W.in_shape) * 4)


def combination(shapes: Sequence[Shape], factors: Sequence[Tensor], bias: Tensor) -> Affine:
    """The bounds of Σ factor · x + bias, elementwise with broadcasting to the shape of the bias, of a few operations."""
    sizes, in_shape = [math.prod(s) for s in shapes], shapes[0]
    if len(shapes) > 1:
        in_shape = (sum(sizes),)

    def weighted(factors: Sequence[Tensor]) -> LinearMap:
        def apply(v: Tensor) -> Tensor:
            parts = zip(v.flatten(1).split(sizes, 1), shapes, factors, strict=True)
            return sum((p.reshape(len(v), *s) * f for p, s, f in parts), v.new_zeros(len(v), *bias.shape))

        def adjoint(u: Tensor) -> Tensor:
            parts = [(u * f).sum_to_size(len(u), *s).flatten(1) for s, f in zip(shapes, factors, strict=True)]
            return torch.cat(parts, 1).view(-1, *in_shape)

        return LinearMap(apply, adjoint, in_shape, tuple(bias.shape), bias.device)

    maps = weighted(factors), weighted([f.abs() for f in factors])
    return Affine(*maps, bias, bias.abs(), 12, sum(sizes))


def diagonal(shape: Shape, gain: Tensor, bias: Tensor, bias_size: Tensor | None = None) -> Affine:
    """The bounds of gain · x + bias, elementwise, of at most ten operations."""

    def scaled(by: Tensor) -> LinearMap:
        return LinearMap(lambda v: v * by, lambda u: u * by, shape, shape, by.device)

    size = bias.abs() if bias_size is None else bias_size
    return Affine(scaled(gain), scaled(gain.abs()), bias, size, 12, math.prod(shape))
