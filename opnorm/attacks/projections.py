"""Balls around a point, cut with the box [0, 1], exact in float arithmetic.

A ball is a small object made once for a batch of centers ``x``: it draws a random start, projects any point, and turns a
gradient into a step. What it returns lies in the ball and in the box not up to rounding but exactly.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from opnorm._core import random
from opnorm.attacks._rows import column
from opnorm.attacks.losses import wide
from opnorm.errors import AttackError

__all__ = ["Ball", "L1Ball", "L2Ball", "LinfBall", "ball"]


@dataclass(frozen=True)
class Ball(ABC):
    """The points of [0, 1]^(C, H, W) within some distance of each center, in some norm.

    Attributes:
        x: centers (B, C, H, W).
        eps: radii (B,), float64.
    """

    x: Tensor
    eps: Tensor
    dual: ClassVar[float]

    @abstractmethod
    def start(self, keys: Tensor) -> Tensor:
        """Uniformly random points, one for each key; see :mod:`opnorm._core.random`."""

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """The closest points inside (B, C, H, W)."""

    @abstractmethod
    def direction(self, grad: Tensor) -> Tensor:
        """The unit step along which a linear function with this gradient rises fastest (Roth et al. 2020, Eq. 17)."""

    def ascend(self, z: Tensor, grad: Tensor, step: float) -> Tensor:
        """Π(z + step · direction(grad))."""
        return self.project(z + step * self.direction(grad))

    def gain(self, z: Tensor, grad: Tensor) -> Tensor:
        """The Frank-Wolfe gap sup ⟨grad, z' - z⟩ over z' in the ball, at most (B,); in ℓ1 and ℓ2 without the box."""
        steepest = torch.linalg.vector_norm(grad.flatten(1), self.dual, dim=1)
        return self.eps.to(grad.dtype) * steepest - (grad * (z - self.x)).flatten(1).sum(1)


def ball(x: Tensor, eps: float | Tensor, norm: float) -> Ball:
    """The ball of radius ``eps`` (in pixel values, [0, 1]) around each point of a batch, for ``norm`` 1, 2 or inf.

    Args:
        x: centers (B, C, H, W).
        eps: one radius for all, or one for each (B,).
        norm: of the distance.

    Raises:
        AttackError: another norm.
    """
    eps = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))
    if norm == math.inf:
        return LinfBall.around(x, eps)
    if norm not in (1, 2):
        raise AttackError(f"norm={norm!r} is not known here; expected 1, 2 or inf")
    return L2Ball(x, eps) if norm == 2 else L1Ball(x, eps)


@dataclass(frozen=True)
class LinfBall(Ball):
    """The ℓ∞ ball cut with the box: a box itself, from ``low`` to ``high``."""

    low: Tensor
    high: Tensor

    @staticmethod
    def around(x: Tensor, eps: Tensor) -> "LinfBall":
        """Ends rounded inward: in float64 by one step, since x ± ε itself rounds, then to the type of x."""
        center, radius = x.double(), column(eps, x.double())
        low = torch.nextafter(center - radius, torch.full_like(center, math.inf)).clamp(min=0)
        high = torch.nextafter(center + radius, torch.full_like(center, -math.inf)).clamp(max=1)
        low, high = _round(low, x.dtype, up=True), _round(high, x.dtype, up=False)
        # ε below the spacing of floats: x alone
        return LinfBall(x, eps, torch.minimum(low, x), torch.maximum(high, x))

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball cut with the box."""
        u = random.uniform(keys, self.x[0].numel()).to(self.x.dtype).view_as(self.x)
        return self.project(self.low + u * (self.high - self.low))

    def project(self, z: Tensor) -> Tensor:
        """Clip coordinate by coordinate."""
        return torch.clamp(z, self.low, self.high)

    def direction(self, grad: Tensor) -> Tensor:
        """Its sign."""
        return grad.sign()

    def gain(self, z: Tensor, grad: Tensor) -> Tensor:
        """Σ_i |g_i| times the way that is left upward or downward."""
        return (grad * (torch.where(grad > 0, self.high, self.low) - z)).flatten(1).sum(1)


def _round(value: Tensor, dtype: torch.dtype, *, up: bool) -> Tensor:
    rounded = value.to(dtype)
    end = torch.full_like(rounded, math.inf if up else -math.inf)
    wrong = rounded.double() < value if up else rounded.double() > value
    return torch.where(wrong, torch.nextafter(rounded, end), rounded)


def _land(x: Tensor, delta: Tensor, eps: Tensor, norm: float) -> Tensor:
    """X + delta in the type of x, with ‖delta‖ ≤ ε exactly: rounded toward x wherever rounding would overstep.

    The length is the only sum here, and a float64 one is right to a few 1e-13; single differences are right to 1e-16.
    """
    center, delta = x.double(), delta.view_as(x)
    length = torch.linalg.vector_norm(delta.flatten(1), norm, dim=1, dtype=torch.float64)
    shrink = (eps * (1 - 1e-12) / length.clamp(min=1e-300)).clamp(max=1)
    delta = delta * shrink.view(-1, *[1] * (x.ndim - 1))
    point = (center + delta).to(x.dtype).clamp_(0, 1)
    over = (point - center).abs_() > delta.abs_()
    return torch.where(over, torch.nextafter(point, x), point)


@dataclass(frozen=True)
class L2Ball(Ball):
    """The ℓ2 ball cut with the box."""

    dual = 2

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball, then projected on the box."""
        count = self.x[0].numel()
        gauss = random.normal(keys, count)
        radius = random.uniform(keys ^ 1, 1) ** (1 / count)
        delta = gauss / gauss.norm(dim=1, keepdim=True).clamp(min=1e-300) * radius * self.eps[:, None]
        return self.project(self.x + delta.to(self.x.dtype).view_as(self.x))

    def project(self, z: Tensor) -> Tensor:
        """The closest point of the intersection.

        It is x + clip(t (z - x)) for the largest t ≤ 1 that fits: coordinates that meet the box stop there, and the
        others share what is left of ε². Each pass finds t for the coordinates known to have stopped; the set only grows.
        """
        x, z = wide(self.x).flatten(1), wide(z).flatten(1)
        delta = z - x
        room = torch.where(delta > 0, 1 - x, x)
        size = delta.abs()
        t = self._scale(size, torch.zeros_like(size), size > 0)
        for _ in range(20):
            stopped = size * t > room
            new = self._scale(size, room, ~stopped)
            if torch.equal(new, t):
                break
            t = new
        return _land(self.x, torch.minimum(size * t, room) * delta.sign(), self.eps, 2)

    def _scale(self, size: Tensor, room: Tensor, free: Tensor) -> Tensor:
        used = torch.where(free, 0, room).square().sum(1, keepdim=True)
        left = (self.eps[:, None].square().to(size.dtype) - used).clamp(min=0)
        moving = torch.where(free, size, 0).square().sum(1, keepdim=True)
        least = 1e-300 if size.dtype == torch.float64 else 1e-38
        return (left / moving.clamp(min=least)).sqrt().clamp(max=1)

    def direction(self, grad: Tensor) -> Tensor:
        """The gradient over its ℓ2 norm; zero where the gradient is."""
        flat = wide(grad).flatten(1)
        unit = flat / flat.abs().amax(1, keepdim=True).clamp(min=1e-38)
        return (unit / unit.norm(dim=1, keepdim=True).clamp(min=1e-38)).view_as(grad).to(grad.dtype)


@dataclass(frozen=True)
class L1Ball(Ball):
    """The ℓ1 ball cut with the box."""

    dual = math.inf

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball, then projected on the box.

        n coordinates of n + 1 exponential numbers over their sum are uniform in the simplex; signs are fair.
        """
        v = 2 * random.uniform(keys, self.x[0].numel() + 1) - 1  # never 0
        size = -v.abs().log()
        delta = (v.sign() * size / size.sum(1, keepdim=True))[:, :-1] * self.eps[:, None]
        return self.project(self.x + delta.to(self.x.dtype).view_as(self.x))

    def project(self, z: Tensor) -> Tensor:
        """The closest point of the intersection.

        It is x + sign(z - x) clip(|z - x| - θ, 0, room) for the smallest θ ≥ 0 that fits. Its length falls with θ in
        straight pieces, so Newton's steps end on the right piece and at θ itself; the bracket around θ keeps them there.
        """
        x, delta = self.x.flatten(1).double(), (z.double() - self.x).flatten(1)
        size, room, eps = delta.abs(), torch.where(delta > 0, 1 - x, x), self.eps[:, None]
        excess = torch.minimum(size, room).sum(1, keepdim=True) - eps
        low = theta = torch.zeros_like(excess)
        top = size.amax(1, keepdim=True)
        high, settled = torch.where(excess > 0, top, 0), excess <= 0
        for k in range(100):
            over = (size - theta).clamp(min=0)
            excess = torch.minimum(over, room).sum(1, keepdim=True) - eps
            low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
            falling = ((over > 0) & (over < room)).sum(1, keepdim=True)
            new = theta + excess / falling.clamp(min=1)
            settled |= (excess.abs() <= 1e-13 * eps) | ((falling > 0) & ((new - theta).abs() <= 1e-15 * top))
            halve = (falling == 0) | (new < low) | (new > high) | (k > 16 and k % 2 == 1)
            new = torch.where(halve, (low + high) / 2, new)
            if settled.all():
                break
            theta = torch.where(settled, theta, new)  # the same in any batch
        inside = torch.minimum((size - theta).clamp(min=0), room) * delta.sign()
        return _land(self.x, inside, self.eps, 1)

    def direction(self, grad: Tensor) -> Tensor:
        """All weight on the largest coordinate, shared where several are; zero where the gradient is."""
        flat = wide(grad).flatten(1)
        top = (flat.abs() == flat.abs().amax(1, keepdim=True)) * flat.sign()
        return (top / top.abs().sum(1, keepdim=True).clamp(min=1)).view_as(grad).to(grad.dtype)

    def ascend(self, z: Tensor, grad: Tensor, step: float) -> Tensor:
        """Π(z + v), v the best of all steps with ‖v‖_1 ≤ step that stay in the box.

        It fills the coordinates in the order of |grad|, each as far as the box lets it. Away from the box that is
        step · direction; at the box, that direction would be cut off there and no other coordinate would ever move.
        No two points of the ball are further apart than 2 ε, so a longer step is that long.
        """
        flat, slope = wide(z).flatten(1), wide(grad).flatten(1)
        room = torch.where(slope > 0, 1 - flat, flat) * (slope != 0)
        order = slope.abs().argsort(dim=1, descending=True, stable=True)
        most = room.gather(1, order).double()
        before = most.cumsum(1) - most
        filled = ((2 * self.eps).clamp(max=step)[:, None] - before).clamp(min=0).minimum(most).to(flat.dtype)
        v = torch.zeros_like(flat).scatter_(1, order, filled) * slope.sign()
        return self.project((flat + v).view_as(z))
