"""Bounds on a sequential network over balls of inputs: by intervals, and by linear functions propagated backward."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core.lp import lp_norm
from opnorm.certificates.layer_bounds import Affine, LayerBounds, Reshape, lower_sum

__all__ = ["Balls", "crown_work", "intervals", "lower_bound", "propagated_rounding", "tightened"]

Box = tuple[Tensor, Tensor]

MAX_NUMBERS = 2**24  # in the largest tensor of a backward propagation: 128 MiB
MAX_ROW_NUMBERS = 2**27  # in the matrix of the first layers
DUAL = {1: math.inf, 2: 2, math.inf: 1}


class Balls(NamedTuple):
    """All inputs of [0, 1] within ``eps`` of a point in some norm.

    Attributes:
        x: the points (B, ...), float64.
        eps: radius.
        norm: 1, 2 or inf.
    """

    x: Tensor
    eps: float
    norm: float

    def box(self) -> Box:
        """Rounded outward."""
        low = torch.nextafter(self.x - self.eps, torch.full_like(self.x, -math.inf)).clamp(min=0)
        high = torch.nextafter(self.x + self.eps, torch.full_like(self.x, math.inf)).clamp(max=1)
        return low, high

    def lower_bound(self, A: Tensor) -> Tensor:
        """A lower bound of <A, x> over the ball, for A (B, R, ...): (B, R)."""
        low, high = (t[:, None] for t in self.box())
        in_box = lower_sum(A.clamp(min=0) * low + A.clamp(max=0) * high)
        if self.norm == math.inf:
            return in_box
        radius = self.eps * lp_norm(A.flatten(2), DUAL[self.norm], 2)
        return torch.maximum(in_box, lower_sum(A * self.x[:, None]) - radius * (1 + 1e-9))

    def select(self, kept: Tensor) -> "Balls":
        """The balls of some of the points."""
        return Balls(self.x[kept], self.eps, self.norm)


def intervals(layers: Sequence[LayerBounds], balls: Balls) -> list[Box]:
    """Intervals of the inputs of each layer, and of the outputs of the last.

    In the ℓ2 and the ℓ1 ball there is a tighter bound before the first nonlinear layer: <w, x>, with w a row of the matrix
    of the layers so far, changes by at most ε ‖w‖ in the dual norm.
    """
    boxes = [balls.box()]
    for layer in layers:
        boxes.append(layer.interval(*boxes[-1]))
    first = next(iter(_nonlinear(layers)), len(layers))
    if balls.norm == math.inf or first == 0:
        return boxes
    rows = math.prod(layers[first - 1].out_shape)
    if rows * math.prod(balls.x.shape[1:]) > MAX_ROW_NUMBERS:
        return boxes
    center, off = balls.x, torch.zeros_like(balls.x)
    for layer, box in zip(layers[:first], boxes, strict=False):
        off = propagated_rounding(layer, off, box)
        center = (
            layer.map @ center + layer.bias
            if isinstance(layer, Affine)
            else layer.interval(center, center)[0]
        )
    radius = off + balls.eps * (1 + 1e-9) * _row_norms(layers[:first], balls)
    low, high = boxes[first]
    boxes[first:] = [(torch.maximum(low, center - radius), torch.minimum(high, center + radius))]
    for layer in layers[first:]:
        boxes.append(layer.interval(*boxes[-1]))
    return boxes


def _nonlinear(layers: Sequence[LayerBounds]) -> list[int]:
    return [k for k, layer in enumerate(layers) if not isinstance(layer, Affine | Reshape)]


def propagated_rounding(layer: LayerBounds, off: Tensor, box: Box) -> Tensor:
    """The largest error of a layer's outputs, if its inputs, within the box, have errors of at most ``off``.

    Other layers than affine ones, such as max(x, 0), change by no more than their inputs.
    """
    if isinstance(layer, Affine):
        return layer.size @ off + layer.rounding(*box)
    return layer.interval(off, off)[1]


def _row_norms(layers: Sequence[LayerBounds], balls: Balls) -> Tensor:
    """The dual norm of each row of the product of affine layers, (1, *out_shape)."""
    shape, norms = layers[-1].out_shape, []
    for rows in torch.arange(math.prod(shape), device=balls.x.device).split(512):
        A = torch.zeros(len(rows), math.prod(shape), dtype=torch.float64, device=balls.x.device)
        A[torch.arange(len(rows)), rows] = 1
        A = A.view(len(rows), *shape)
        for layer in reversed(layers):
            A = layer.map.T @ A if isinstance(layer, Affine) else A.reshape(len(rows), *layer.in_shape)  # type: ignore[attr-defined]
        norms.append(lp_norm(A, DUAL[balls.norm]))
    return torch.cat(norms).view(1, *shape)


def lower_bound(layers: Sequence[LayerBounds], boxes: Sequence[Box], balls: Balls, A: Tensor) -> Tensor:
    """A lower bound of <A, network(x)> over the balls, for A (B, R, *out_shape): (B, R).

    A is propagated backward layer by layer; where a layer is not linear, by linear bounds that hold within ``boxes``.

    Source: Zhang et al. 2018 (CROWN), Eq. 3.
    """
    widest = max(math.prod(balls.x.shape[1:]), *(math.prod(s.out_shape) for s in layers), 1)
    size = max(1, MAX_NUMBERS // widest)
    if A.shape[1] > size:
        parts = [lower_bound(layers, boxes, balls, part) for part in A.split(size, dim=1)]
        return torch.cat(parts, 1)
    bounds = []
    for points in torch.arange(len(A), device=A.device).split(max(1, size // A.shape[1])):
        B, c = A[points], A.new_zeros(len(points), A.shape[1])
        for layer, (low, high) in zip(reversed(layers), reversed(boxes[: len(layers)]), strict=True):
            B, constant = layer.backward(B, low[points], high[points])
            c += constant
        bounds.append(c + balls.select(points).lower_bound(B))
    return torch.cat(bounds)


def tightened(layers: Sequence[LayerBounds], boxes: Sequence[Box], ball: Balls) -> list[Box]:
    """Tighter intervals of one point: those before each nonlinear layer that contain 0, by backward propagation."""
    boxes = list(boxes)
    for k in _nonlinear(layers)[1:]:
        low, high = (t.flatten().clone() for t in boxes[k])
        open_ = ((low < 0) & (high > 0)).nonzero().squeeze(1)
        for rows in open_.split(512) if len(open_) else ():
            A = torch.zeros(1, len(rows), len(low), dtype=low.dtype, device=low.device)
            A[0, torch.arange(len(rows)), rows] = 1
            A = A.unflatten(2, boxes[k][0].shape[1:])
            ends = lower_bound(layers[:k], boxes[:k], ball, torch.cat([A, -A], 1))[0]
            low[rows] = torch.maximum(low[rows], ends[: len(rows)])
            high[rows] = torch.minimum(high[rows], -ends[len(rows) :])
        boxes[k] = low.view_as(boxes[k][0]), high.view_as(boxes[k][0])
        for j in range(k, len(layers)):
            again = layers[j].interval(*boxes[j])
            boxes[j + 1] = torch.maximum(again[0], boxes[j + 1][0]), torch.minimum(again[1], boxes[j + 1][1])
    return boxes


def crown_work(layers: Sequence[LayerBounds], boxes: Sequence[Box]) -> Tensor:
    """The number of multiplications in :func:`tightened` for each point, (B,)."""
    work = torch.zeros(len(boxes[0][0]), device=boxes[0][0].device)
    for k in _nonlinear(layers)[1:]:
        low, high = boxes[k]
        work += 2 * sum(s.work for s in layers[:k]) * ((low < 0) & (high > 0)).flatten(1).sum(1)
    return work
