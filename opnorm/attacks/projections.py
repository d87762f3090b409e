"""Balls around a point, cut with the box [0, 1], exact in float arithmetic.

A ball is a small object made once for a batch of centers ``x``: it draws a random start, moves any point back inside,
and turns a gradient into a step. What it returns lies in the ball and in the box not up to rounding but exactly:
the peers' points overstep a decimal ε by about 2e-8.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from opnorm.attacks import random
from opnorm.errors import AttackError

__all__ = ["Ball", "L2Ball", "LinfBall", "ball"]


@runtime_checkable
class Ball(Protocol):
    """The points of [0, 1]^(C, H, W) within ``eps`` of each center, in some norm."""

    @property
    def x(self) -> Tensor:
        """The centers (B, C, H, W)."""

    def start(self, keys: Tensor) -> Tensor:
        """Uniformly random points, one for each key; see :mod:`opnorm.attacks.random`."""

    def project(self, z: Tensor) -> Tensor:
        """The closest points inside (B, C, H, W)."""

    def direction(self, grad: Tensor) -> Tensor:
        """The unit step that climbs fastest along the gradient (Roth et al. 2020, Eq. 17)."""

    def select(self, kept: Tensor) -> "Ball":
        """The balls of some of the points."""


def ball(x: Tensor, eps: float, norm: float) -> Ball:
    """The ball of radius ``eps`` (in pixel values, [0, 1]) around each point of a batch, for ``norm`` 2 or inf.

    Raises:
        AttackError: another norm.
    """
    if norm == math.inf:
        return LinfBall.around(x, eps)
    if norm == 2:
        return L2Ball(x, eps)
    raise AttackError(f"norm={norm!r} is not known here; expected 2 or inf")


@dataclass(frozen=True)
class LinfBall:
    """The ℓ∞ ball cut with the box: a box itself, from ``low`` to ``high``."""

    x: Tensor
    low: Tensor
    high: Tensor

    @staticmethod
    def around(x: Tensor, eps: float) -> "LinfBall":
        """Ends rounded inward: in float64 by one step, since x ± ε itself rounds, then to the type of x."""
        center = x.double()
        low = torch.nextafter(center - eps, torch.full_like(center, math.inf)).clamp(min=0)
        high = torch.nextafter(center + eps, torch.full_like(center, -math.inf)).clamp(max=1)
        low, high = _round(low, x.dtype, up=True), _round(high, x.dtype, up=False)
        return LinfBall(
            x, torch.minimum(low, x), torch.maximum(high, x)
        )  # ε below the spacing of floats: x alone

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

    def select(self, kept: Tensor) -> "LinfBall":
        """The balls of some of the points."""
        return LinfBall(self.x[kept], self.low[kept], self.high[kept])


def _round(value: Tensor, dtype: torch.dtype, *, up: bool) -> Tensor:
    rounded = value.to(dtype)
    end = torch.full_like(rounded, math.inf if up else -math.inf)
    wrong = rounded.double() < value if up else rounded.double() > value
    return torch.where(wrong, torch.nextafter(rounded, end), rounded)


def _wide(value: Tensor) -> Tensor:
    """In float32 at least: squares of 16-bit floats overflow and vanish."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


@dataclass(frozen=True)
class L2Ball:
    """The ℓ2 ball cut with the box."""

    x: Tensor
    eps: float

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball, then projected on the box."""
        count = self.x[0].numel()
        gauss = random.normal(keys, count)
        radius = random.uniform(keys ^ 1, 1) ** (1 / count)
        delta = gauss / gauss.norm(dim=1, keepdim=True).clamp(min=1e-300) * radius * self.eps
        return self.project(self.x + delta.to(self.x.dtype).view_as(self.x))

    def project(self, z: Tensor) -> Tensor:
        """The closest point of the intersection.

        It is x + clip(t (z - x)) for the largest t ≤ 1 that fits: coordinates that meet the box stop there, and the
        others share what is left of ε². Each pass finds t for the coordinates known to have stopped; the set only grows.
        """
        x, z = _wide(self.x).flatten(1), _wide(z).flatten(1)
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
        inside = torch.minimum(size * t, room) * delta.sign()
        return self._exactly(inside.view_as(self.x))

    def _scale(self, size: Tensor, room: Tensor, free: Tensor) -> Tensor:
        left = self.eps**2 - torch.where(free, 0, room).square().sum(1, keepdim=True)
        moving = torch.where(free, size, 0).square().sum(1, keepdim=True)
        return (
            (left.clamp(min=0) / moving.clamp(min=1e-300 if size.dtype == torch.float64 else 1e-38))
            .sqrt()
            .clamp(max=1)
        )

    def _exactly(self, delta: Tensor) -> Tensor:
        """X + delta, shrunk until the float64 length of what is really added is at most ε, rounding included."""
        limit = self.eps * (1 - 1e-12)  # the float64 sum of squares is right to a few 1e-13
        center, delta = self.x.double(), delta.double()
        for attempt in range(24):  # the last ones shrink to nothing, which always fits
            point = (center + delta).to(self.x.dtype).clamp(0, 1)
            length = (point.double() - center).flatten(1).norm(dim=1)
            far = length > limit
            if not far.any():
                break
            shrink = torch.where(
                far, limit / length.clamp(min=1e-300) * (1 - 2.0 ** min(attempt - 22, 0)), 1.0
            )
            delta = delta * shrink.view(-1, *[1] * (delta.ndim - 1))
        return point

    def direction(self, grad: Tensor) -> Tensor:
        """The gradient over its ℓ2 norm; zero where the gradient is."""
        shape = (-1, *[1] * (grad.ndim - 1))
        unit = _wide(grad) / _wide(grad).flatten(1).abs().amax(1).clamp(min=1e-38).view(shape)
        return (unit / unit.flatten(1).norm(dim=1).clamp(min=1e-38).view(shape)).to(grad.dtype)

    def select(self, kept: Tensor) -> "L2Ball":
        """The balls of some of the points."""
        return L2Ball(self.x[kept], self.eps)
