"""The shortest step onto a hyperplane that stays in the box [0, 1]: what FAB takes in each iteration."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["step_to_plane"]


def step_to_plane(
    z: Float[Tensor, "batch n"], w: Float[Tensor, "batch n"], c: Float[Tensor, " batch"], norm: float
) -> Float[Tensor, "batch n"]:
    """The δ of least ‖δ‖_p with ⟨w, δ⟩ = -c and z + δ in [0, 1].

    Each coordinate goes against sign(c) w, as far as its room at most: for ℓ∞ all equally far, for ℓ2 in proportion to
    |w|, and for ℓ1 one after another in the order of |w|. Where the plane does not meet the box, the step leads to the
    corner that is closest to the plane. A coordinate with w = 0 stays.

    Args:
        z: points of [0, 1], flat, in float32 at least.
        w: normals of the planes.
        c: the value at z of the affine function that vanishes on the plane.
        norm: p, 1, 2 or inf.

    Source: Croce & Hein 2020 (FAB), Section 2.
    """
    top = w.abs().amax(1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    slope = w / top * c.sign()[:, None]
    size, goal = slope.abs(), (c.abs() / top[:, 0])[:, None].double()
    room = torch.where(slope > 0, z, 1 - z)
    moved = _in_order(size, room, goal) if norm == 1 else _together(size, room, goal, norm)
    return -slope.sign() * moved


def _together(size: Tensor, room: Tensor, goal: Tensor, norm: float) -> Tensor:
    """min(room, t v) for the least t ≥ 0 with ⟨size, min(room, t v)⟩ = goal, v = 1 for ℓ∞ and |w| for ℓ2.

    The sum is concave in t, in straight pieces, so Newton's steps from 0 never overshoot: each adds coordinates that
    have no room left, and the first that adds none is at t itself.
    """
    speed = (size > 0).to(size.dtype) if norm == math.inf else size
    pull, most, last = size * speed, size * room, torch.finfo(size.dtype).max
    t, moved = torch.zeros_like(goal), torch.zeros_like(room)
    while True:
        free = moved < room
        left = goal - torch.where(free, 0, most).sum(1, keepdim=True, dtype=torch.float64)
        moving = torch.where(free, pull, 0).sum(1, keepdim=True, dtype=torch.float64)
        new = torch.maximum(t, (left / moving.clamp(min=1e-300)).clamp(max=last))
        if torch.equal(new, t):
            return moved
        t, moved = new, torch.minimum(room, new.to(size.dtype) * speed)


def _in_order(size: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """Coordinates used up one after another, the steepest first, until the goal is reached."""
    order = size.argsort(dim=1, descending=True, stable=True)
    gain = (size * room).gather(1, order).double()
    before = gain.cumsum(1) - gain
    share = ((goal - before) / gain.clamp(min=1e-300)).clamp(0, 1).to(room.dtype)
    return torch.zeros_like(room).scatter_(1, order, share) * room * (size > 0)
