"""Bounds on a sequential network over balls of inputs: by intervals, and by linear functions pulled back through it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm.certificates.layer_bounds import Affine, Reshape, Step, total

__all__ = ["Balls", "crown_work", "intervals", "lowest", "tightened"]

Box = tuple[Tensor, Tensor]

MOST = 2**24  # numbers in the largest tensor of a pull-back: 128 MiB
MOST_ROWS = 2**27  # numbers in the matrix of the first layers


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

    def lowest(self, A: Tensor) -> Tensor:
        """A lower bound of <A, x> over the ball, for A (B, R, ...): (B, R)."""
        low, high = (t[:, None] for t in self.box())
        in_box = total(A.clamp(min=0) * low + A.clamp(max=0) * high)
        if self.norm == math.inf:
            return in_box
        reach = self.eps * _dual(A.flatten(2), self.norm)
        return torch.maximum(in_box, total(A * self.x[:, None]) - reach * (1 + 1e-9))

    def select(self, kept: Tensor) -> "Balls":
        """The balls of some of the points."""
        return Balls(self.x[kept], self.eps, self.norm)


def _dual(A: Tensor, norm: float) -> Tensor:
    return A.abs().amax(-1) if norm == 1 else torch.linalg.vector_norm(A, dim=-1)


def intervals(steps: Sequence[Step], balls: Balls) -> list[Box]:
    """What comes into each step, and out of the last, as intervals.

    In the ℓ2 and the ℓ1 ball, what the layers before the first nonlinear one give is known better: a row w of their
    matrix moves by at most ε ‖w‖ in the dual norm.
    """
    boxes = [balls.box()]
    for step in steps:
        boxes.append(step.interval(*boxes[-1]))
    first = next((i for i, s in enumerate(steps) if not isinstance(s, Affine | Reshape)), len(steps))
    if balls.norm == math.inf or first == 0:
        return boxes
    rows = math.prod(steps[first - 1].out_shape)
    if rows * math.prod(balls.x.shape[1:]) > MOST_ROWS:
        return boxes
    center, off = balls.x, torch.zeros_like(balls.x)
    for step, box in zip(steps[:first], boxes, strict=False):
        if isinstance(step, Affine):
            center, off = step.map @ center + step.bias, step.size @ off + step.rounding(*box)
        else:
            center, off = step.interval(center, off)
    radius = off + balls.eps * (1 + 1e-9) * _row_norms(steps[:first], balls)
    low, high = boxes[first]
    boxes[first:] = [(torch.maximum(low, center - radius), torch.minimum(high, center + radius))]
    for step in steps[first:]:
        boxes.append(step.interval(*boxes[-1]))
    return boxes


def _row_norms(steps: Sequence[Step], balls: Balls) -> Tensor:
    """The dual norm of each row of the product of affine layers, (1, *out_shape)."""
    shape, norms = steps[-1].out_shape, []
    for rows in torch.arange(math.prod(shape), device=balls.x.device).split(512):
        A = torch.zeros(len(rows), math.prod(shape), dtype=torch.float64, device=balls.x.device)
        A[torch.arange(len(rows)), rows] = 1
        A = A.view(len(rows), *shape)
        for step in reversed(steps):
            A = step.map.T @ A if isinstance(step, Affine) else A.reshape(len(rows), *step.in_shape)  # type: ignore[attr-defined]
        norms.append(_dual(A.flatten(1), balls.norm))
    return torch.cat(norms).view(1, *shape)


def lowest(steps: Sequence[Step], boxes: Sequence[Box], balls: Balls, A: Tensor) -> Tensor:
    """A lower bound of <A, network(x)> over the balls, for A (B, R, *out_shape): (B, R).

    A is pulled back layer by layer; where a layer is not linear, by linear bounds that hold within ``boxes``.

    Source: Zhang et al. 2018 (CROWN), Eq. 3.
    """
    widest = max(math.prod(balls.x.shape[1:]), *(math.prod(s.out_shape) for s in steps), 1)
    size = max(1, MOST // widest)
    if A.shape[1] > size:
        parts = [lowest(steps, boxes, balls, part) for part in A.split(size, dim=1)]
        return torch.cat(parts, 1)
    found = []
    for points in torch.arange(len(A), device=A.device).split(max(1, size // A.shape[1])):
        pulled, c = A[points], A.new_zeros(len(points), A.shape[1])
        for step, (low, high) in zip(reversed(steps), reversed(boxes[: len(steps)]), strict=True):
            pulled, more = step.back(pulled, low[points], high[points])
            c += more
        found.append(c + balls.select(points).lowest(pulled))
    return torch.cat(found)


def tightened(steps: Sequence[Step], boxes: Sequence[Box], balls: Balls) -> list[Box]:
    """The intervals again, with those before each nonlinear layer pulled back to the inputs, where they hold 0.

    One point at a time, each with rows of its own.
    """
    boxes = list(boxes)
    for k in range(1, len(steps)):
        if isinstance(steps[k], Affine | Reshape) or not any(
            not isinstance(s, Affine | Reshape) for s in steps[:k]
        ):
            continue
        low, high = (t.flatten(1).clone() for t in boxes[k])
        for i in range(len(low)):
            own = balls.select(torch.tensor([i], device=low.device))
            mine = [(a[i : i + 1], b[i : i + 1]) for a, b in boxes[:k]]
            open_ = ((low[i] < 0) & (high[i] > 0)).nonzero().squeeze(1)
            for rows in open_.split(512) if len(open_) else ():
                A = torch.zeros(1, len(rows), low.shape[1], dtype=low.dtype, device=low.device)
                A[0, torch.arange(len(rows)), rows] = 1
                A = A.unflatten(2, boxes[k][0].shape[1:])
                ends = lowest(steps[:k], mine, own, torch.cat([A, -A], 1))[0]
                low[i, rows] = torch.maximum(low[i, rows], ends[: len(rows)])
                high[i, rows] = torch.minimum(high[i, rows], -ends[len(rows) :])
        boxes[k] = low.view_as(boxes[k][0]), high.view_as(boxes[k][0])
        for j in range(k, len(steps)):
            again = steps[j].interval(*boxes[j])
            boxes[j + 1] = torch.maximum(again[0], boxes[j + 1][0]), torch.minimum(again[1], boxes[j + 1][1])
    return boxes


def crown_work(steps: Sequence[Step], boxes: Sequence[Box]) -> Tensor:
    """Multiplications that :func:`tightened` takes for each point, (B,)."""
    work, before, seen = torch.zeros(len(boxes[0][0]), device=boxes[0][0].device), 0, False
    for step, (low, high) in zip(steps, boxes, strict=False):
        if not isinstance(step, Affine | Reshape):
            if seen:
                work += 2 * before * ((low < 0) & (high > 0)).flatten(1).sum(1)
            seen = True
        before += step.work
    return work
