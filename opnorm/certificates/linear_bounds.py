"""Bounds on a network over balls of inputs: by intervals, and by linear functions propagated backward."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core.lp import lp_norm
from opnorm.certificates.affine import Affine, lower_sum
from opnorm.certificates.network_bounds import Box, Step

__all__ = ["Balls", "crown_work", "intervals", "lower_bound", "propagated_rounding", "tightened"]

Values = Sequence[Tensor] | Mapping[int, Tensor]

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


def intervals(steps: Sequence[Step], balls: Balls) -> list[Box]:
    """Intervals of the network's input, and of the output of each step.

    In the ℓ2 and the ℓ1 ball there is a tighter bound before the first nonlinear steps: <w, x>, with w a row of the matrix
    of the steps so far, changes by at most ε ‖w‖ in the dual norm.
    """
    boxes = [balls.box()]
    rows = {} if balls.norm == math.inf else dict.fromkeys(_affine_values(steps))
    center, off = {0: balls.x}, {0: torch.zeros_like(balls.x)}
    for k, (step, affine) in enumerate(zip(steps, _are_affine(steps), strict=True), 1):
        box = step.box(boxes)
        boxes.append(step.bounds.interval(*box))
        if not rows or not affine:
            continue
        assert isinstance(step.bounds, Affine)
        center[k] = step.bounds.map @ step.joined(center) + step.bounds.bias
        off[k] = propagated_rounding(step, off, box)
        size = boxes[k][0][0].numel()
        if k in rows and size * math.prod(balls.x.shape[1:]) <= MAX_ROW_NUMBERS:
            radius = off[k] + balls.eps * (1 + 1e-9) * _row_norms(steps[:k], boxes, balls)
            low, high = boxes[k]
            boxes[k] = torch.maximum(low, center[k] - radius), torch.minimum(high, center[k] + radius)
    return boxes


def _are_affine(steps: Sequence[Step]) -> list[bool]:
    """Whether the output of each step is an affine function of the network's input."""
    affine = [True]
    for step in steps:
        affine.append(isinstance(step.bounds, Affine) and all(affine[i] for i in step.inputs))
    return affine[1:]


def _affine_values(steps: Sequence[Step]) -> list[int]:
    """The affine values that nonlinear steps take, and the output if it is one."""
    affine = [k for k, own in enumerate(_are_affine(steps), 1) if own]
    taken = {*_before_nonlinear(steps), len(steps)}
    return [k for k in affine if k in taken]


def _before_nonlinear(steps: Sequence[Step]) -> list[int]:
    """The values that nonlinear steps take, in order."""
    return sorted({i for step in steps if not isinstance(step.bounds, Affine) for i in step.inputs})


def propagated_rounding(step: Step, off: Values, box: Box) -> Tensor:
    """The largest error of a step's outputs, if its inputs, within the box, have errors of at most ``off``."""
    return step.bounds.propagated(step.joined(off), *box)


def _to_input(
    steps: Sequence[Step], boxes: Sequence[Box], A: Tensor, backward: Callable[[Step, Tensor], Tensor],
    shared: Callable[[int, Tensor], None] = lambda k, A: None,
) -> Tensor:  # fmt: skip
    """Functionals A (B, R, ...) of the last step's output, propagated to the network's input step by step.

    Args:
        steps: with their inputs.
        boxes: of the values.
        A: of the output.
        backward: the functional of a step's inputs, side by side, from one of its output.
        shared: is called with each value that several steps take, and with its functional, a sum.
    """
    of_value = {len(steps): A}
    for k in range(len(steps), 0, -1):
        if k not in of_value:
            continue
        step = steps[k - 1]
        for i, part in step.parted(backward(step, of_value.pop(k)), boxes):
            if i in of_value:
                part = of_value[i] + part
                shared(i, part)
            of_value[i] = part
    return of_value[0]


def _row_norms(steps: Sequence[Step], boxes: Sequence[Box], balls: Balls) -> Tensor:
    """The dual norm of each row of the matrix of affine steps, (1, *out_shape)."""
    shape, norms = boxes[len(steps)][0].shape[1:], []

    def backward(step: Step, A: Tensor) -> Tensor:
        assert isinstance(step.bounds, Affine)
        return step.bounds.transposed(A)

    for rows in torch.arange(math.prod(shape), device=balls.x.device).split(512):
        A = torch.zeros(1, len(rows), math.prod(shape), dtype=torch.float64, device=balls.x.device)
        A[0, torch.arange(len(rows)), rows] = 1
        norms.append(lp_norm(_to_input(steps, boxes, A.unflatten(2, shape), backward)[0], DUAL[balls.norm]))
    return torch.cat(norms).view(1, *shape)


def lower_bound(steps: Sequence[Step], boxes: Sequence[Box], balls: Balls, A: Tensor) -> Tensor:
    """A lower bound of <A, network(x)> over the balls, for A (B, R, *out_shape): (B, R).

    A is propagated backward step by step; where a step is not linear, by linear bounds that hold within ``boxes``.

    Source: Zhang et al. 2018 (CROWN), Eq. 3; Xu et al. 2020 (of any graph).
    """
    widest = max(low[0].numel() for low, _ in boxes[: len(steps) + 1])
    size = max(1, MAX_NUMBERS // max(1, widest))
    if A.shape[1] > size:
        parts = [lower_bound(steps, boxes, balls, part) for part in A.split(size, dim=1)]
        return torch.cat(parts, 1)
    bounds = []
    for points in torch.arange(len(A), device=A.device).split(max(1, size // A.shape[1])):
        own = [(low[points], high[points]) for low, high in boxes[: len(steps) + 1]]
        constants = [A.new_zeros(len(points), A.shape[1])]

        def backward(step: Step, A: Tensor, own: Sequence[Box] = own, c: list[Tensor] = constants) -> Tensor:
            A, constant = step.bounds.backward(A, *step.box(own))
            c.append(constant)
            return A

        def shared(i: int, A: Tensor, own: Sequence[Box] = own, c: list[Tensor] = constants) -> None:
            """The rounding of the sum A."""
            low, high = own[i]
            c.append(
                -(2.0**-52) * (A.abs() * torch.maximum(low.abs(), high.abs())[:, None]).flatten(2).sum(2)
            )

        B = _to_input(steps, own, A[points], backward, shared)
        bounds.append(sum(constants) + balls.select(points).lower_bound(B))
    return torch.cat(bounds)


def tightened(steps: Sequence[Step], boxes: Sequence[Box], ball: Balls) -> list[Box]:
    """Tighter intervals of one point, before each nonlinear step where it helps, by backward propagation."""
    boxes = list(boxes)
    for k in _before_nonlinear(steps)[1:]:
        low, high = (t.flatten().clone() for t in boxes[k])
        open_ = _open(steps, boxes, k).flatten().nonzero().squeeze(1)
        for rows in open_.split(512) if len(open_) else ():
            A = torch.zeros(1, len(rows), len(low), dtype=low.dtype, device=low.device)
            A[0, torch.arange(len(rows)), rows] = 1
            A = A.unflatten(2, boxes[k][0].shape[1:])
            ends = lower_bound(steps[:k], boxes, ball, torch.cat([A, -A], 1))[0]
            low[rows] = torch.maximum(low[rows], ends[: len(rows)])
            high[rows] = torch.minimum(high[rows], -ends[len(rows) :])
        boxes[k] = low.view_as(boxes[k][0]), high.view_as(boxes[k][0])
        for j in range(k, len(steps)):
            again = steps[j].bounds.interval(*steps[j].box(boxes))
            boxes[j + 1] = torch.maximum(again[0], boxes[j + 1][0]), torch.minimum(again[1], boxes[j + 1][1])
    return boxes


def _open(steps: Sequence[Step], boxes: Sequence[Box], k: int) -> Tensor:
    """Where tighter bounds on value k make those of a step that takes it tighter."""
    found = torch.zeros_like(boxes[k][0], dtype=torch.bool)
    for step in steps:
        if k in step.inputs:
            of_inputs = step.bounds.open(*step.box(boxes)).double()[:, None]
            found |= sum(part for i, part in step.parted(of_inputs, boxes) if i == k)[:, 0] > 0  # type: ignore[index]
    return found


def crown_work(steps: Sequence[Step], boxes: Sequence[Box]) -> Tensor:
    """The number of multiplications in :func:`tightened` for each point, (B,)."""
    work = torch.zeros(len(boxes[0][0]), device=boxes[0][0].device)
    for k in _before_nonlinear(steps)[1:]:
        work += 2 * sum(s.bounds.work for s in steps[:k]) * _open(steps, boxes, k).flatten(1).sum(1)
    return work
