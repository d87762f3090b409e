"""The shortest step onto a hyperplane that stays in the box [0, 1]: what FAB takes in each iteration."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["step_to_plane"]


def step_to_plane(
    z: Float[Tensor, "*kinds batch n"],
    w: Float[Tensor, "batch n"],
    c: Float[Tensor, "*kinds batch"],
    norm: float,
) -> Float[Tensor, "*kinds batch n"]:
    """The δ of least ‖δ‖_p with ⟨w, δ⟩ = -c and z + δ in [0, 1].

    Each coordinate goes against sign(c) w, as far as its room at most: for ℓ∞ all equally far, for ℓ2 in proportion to
    |w|, and for ℓ1 one after another in the order of |w|. Where the plane does not meet the box, the step leads to the
    corner that is closest to the plane. A coordinate with w = 0 stays.

    Args:
        z: points of [0, 1], flat, in float32 at least; several for each plane.
        w: normals of the planes.
        c: the values at z of the affine functions that vanish on the planes.
        norm: p, 1, 2 or inf.

    Source: Croce & Hein 2020 (FAB), Section 2.
    """
    top = w.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(w.dtype).tiny)
    slope = w / top
    size, goal = slope.abs(), c[..., None].abs() / top
    against = -slope.sign() * c.sign()[..., None]
    room = (z - (against > 0).to(z.dtype)).abs()
    moved = _in_order(size, room, goal) if norm == 1 else _together(size, room, goal, norm)
    return against * moved


def _together(size: Tensor, room: Tensor, goal: Tensor, norm: float) -> Tensor:
    """min(room, t v) for the least t ≥ 0 with ⟨size, min(room, t v)⟩ = goal, v = 1 for ℓ∞ and |w| for ℓ2.

    The sum is concave in t, in straight pieces, so Newton's steps from 0 never overshoot: each finds coordinates that
    have no room left, and the first that finds none is at t itself.

    Masks are factors here: on a CPU, torch.where is ten times slower on masks without a pattern.
    """
    speed = (size > 0).to(size.dtype) if norm == math.inf else size
    pull, most, dtype = size * speed, size * room, torch.finfo(size.dtype)
    t, moved = torch.zeros_like(goal), torch.zeros_like(room)
    while True:
        stopped = (moved >= room).to(room.dtype)
        left = goal - (most * stopped).sum(-1, keepdim=True)
        moving = (pull - pull * stopped).sum(-1, keepdim=True)
        new = torch.maximum(t, (left / moving.clamp(min=dtype.tiny)).clamp(max=dtype.max))
        if not (new > t).any():  # nor where the goal is NaN
            return moved
        t, moved = new, torch.minimum(room, new * speed)


def _in_order(size: Tensor, room: Tensor, goal: Tensor) -> Tensor:
    """Coordinates used up one after another, the steepest first, until the goal is reached."""
    order = size.argsort(dim=-1, descending=True, stable=True).expand_as(room)
    gain = (size * room).gather(-1, order).double()
    before = gain.cumsum(-1) - gain
    share = ((goal - before) / gain.clamp(min=1e-300)).clamp(0, 1).to(room.dtype)
    return torch.zeros_like(room).scatter_(-1, order, share) * room
