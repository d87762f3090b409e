"""Balls around a point, cut with the box [0, 1], exact in float arithmetic.

A ball is a small object made once for a batch of centers ``x``: it draws a random start, projects any point, and turns a
gradient into a step. What it returns lies in the ball and in the box not up to rounding but exactly.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from opnorm._core import random
from opnorm._core.lp import conjugate, dual, lp_norm
from opnorm.attacks._rows import column
from opnorm.attacks.losses import wide
from opnorm.errors import AttackError

FAR = 1e6  # a step that leaves the ball or meets the box in every coordinate whose gradient counts

__all__ = ["Ball", "L1Ball", "L2Ball", "LinfBall", "LpBall", "ball"]


@dataclass(frozen=True)
class Ball(ABC):
    """The points of [0, 1]^n within some distance of each center, in some norm.

    Attributes:
        x: centers (B, ...).
        eps: radii (B,), float64.
    """

    x: Tensor
    eps: Tensor

    @abstractmethod
    def start(self, keys: Tensor) -> Tensor:
        """Uniformly random points, one for each key; see :mod:`opnorm._core.random`."""

    @abstractmethod
    def project(self, z: Tensor) -> Tensor:
        """The closest points inside (B, ...)."""

    def near(self, z: Tensor) -> Tensor:
        """The closest points inside but for the rounding of a point, for a search whose results are projected exactly."""
        return self.project(z)

    @property
    @abstractmethod
    def norm(self) -> float:
        """1, 2, inf or another number above 1."""

    def direction(self, grad: Tensor) -> Tensor:
        """sign(g) ⊙ |g|^{p*-1} / ‖g‖_{p*}^{p*-1}: along this unit step a linear function with gradient g rises fastest.

        p = inf: the signs; p = 1: all weight on the largest coordinate, shared where several are. Zero where g is.

        Source: Roth et al. 2020, Eq. 17.
        """
        return dual(wide(grad), conjugate(self.norm)).to(grad.dtype)

    def ascend(self, z: Tensor, grad: Tensor, step: float) -> Tensor:
        """Π(z + step · direction(grad)), as published (Roth et al. 2020, Eq. 17)."""
        return self.project(z + step * self.direction(grad))

    def ascend_in_box(self, z: Tensor, grad: Tensor, step: float) -> Tensor:
        """The same; in ℓ1, where a step along few coordinates ends at the box, see :class:`L1Ball`."""
        return self.ascend(z, grad, step)

    def gain(self, z: Tensor, grad: Tensor) -> Tensor:
        """The Frank-Wolfe gap sup ⟨grad, z' - z⟩ over z' in the ball, at most (B,); without the box, but for ℓ∞ and ℓ2."""
        steepest = lp_norm(grad, conjugate(self.norm))
        return self.eps.to(grad.dtype) * steepest - (grad * (z - self.x)).flatten(1).sum(1)


def ball(x: Tensor, eps: float | Tensor, norm: float) -> Ball:
    """The ball of radius ``eps`` (in pixel values, [0, 1]) around each point of a batch.

    Args:
        x: centers (B, ...).
        eps: one radius for all, or one for each (B,).
        norm: of the distance, from 1 on.

    Raises:
        AttackError: a norm below 1.
    """
    eps = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))
    if norm == math.inf:
        return LinfBall.around(x, eps)
    if not norm >= 1:
        raise AttackError(f"norm={norm!r}: expected a number from 1 on, such as 1, 2 or inf")
    if norm in (1, 2):
        return L1Ball(x, eps) if norm == 1 else L2Ball(x, eps)
    return LpBall(x, eps, norm)


@dataclass(frozen=True)
class LinfBall(Ball):
    """The ℓ∞ ball cut with the box: a box itself, from ``low`` to ``high``."""

    low: Tensor
    high: Tensor
    norm = math.inf

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
    length = lp_norm(delta.flatten(1).double(), norm)
    shrink = (eps * (1 - 1e-12) / length.clamp(min=1e-300)).clamp(max=1)
    delta = delta * shrink.view(-1, *[1] * (x.ndim - 1))
    point = (center + delta).to(x.dtype).clamp_(0, 1)
    over = (point - center).abs_() > delta.abs_()
    return torch.where(over, torch.nextafter(point, x), point)


@dataclass(frozen=True)
class L2Ball(Ball):
    """The ℓ2 ball cut with the box."""

    norm = 2

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball, then projected on the box."""
        count = self.x[0].numel()
        gauss = random.normal(keys, count)
        radius = random.uniform(keys ^ 1, 1) ** (1 / count)
        delta = gauss / gauss.norm(dim=1, keepdim=True).clamp(min=1e-300) * radius * self.eps[:, None]
        return self.project(self.x + delta.to(self.x.dtype).view_as(self.x))

    def project(self, z: Tensor) -> Tensor:
        """The closest point of the intersection."""
        return _land(self.x, self._inside(self._delta(z)), self.eps, 2)

    def near(self, z: Tensor) -> Tensor:
        """The same in a third less time; of 16-bit points, whose rounding is coarse, the exact one."""
        if torch.finfo(self.x.dtype).bits < 32:
            return self.project(z)
        return self._inside(self._delta(z)).view_as(z).add_(self.x).clamp_(0, 1)

    def gain(self, z: Tensor, grad: Tensor) -> Tensor:
        """The gap, up to rounding: the best z' is where a long step along the gradient, cut to ball and box, ends."""
        slope = wide(grad).flatten(1)
        unit = slope / lp_norm(slope, math.inf)[:, None].clamp(min=torch.finfo(slope.dtype).tiny)
        return (slope * (self._inside(FAR * unit) - self._delta(z))).sum(1)

    def _delta(self, z: Tensor) -> Tensor:
        """Z - x, (B, n)."""
        return wide(z).flatten(1) - wide(self.x).flatten(1)

    def _inside(self, delta: Tensor) -> Tensor:
        """clip(t delta) to the box around x, for the largest t ≤ 1 that fits in the ball (B, n).

        Added to x, it is the closest point to x + delta: coordinates that meet the box stop there, and the others share what
        is left of ε². Each pass finds t for the coordinates known to have stopped; the set only grows.
        """
        x, size, sign = wide(self.x).flatten(1), delta.abs(), delta.sign()
        # ones and zeros as floats: on truth values, each operation takes three to ten times as long
        room = torch.lerp(x, 1 - x, sign.clamp(min=0))
        way, stop, eps = size.square(), room.square(), self.eps[:, None].square().to(size.dtype)
        t = _share(eps, way)
        for _ in range(20):
            stopped = (size * t).gt_(room)
            used = (stopped * stop).sum(1, keepdim=True)
            new = _share((eps - used).clamp_(min=0), (1 - stopped).mul_(way))
            if torch.equal(new, t):
                break
            t = new
        return torch.minimum(size * t, room).mul_(sign)


def _share(left: Tensor, way: Tensor) -> Tensor:
    """The largest t ≤ 1 for which t² Σ way is not more than what is left, (B, 1) and (B, n) -> (B, 1)."""
    least = 1e-300 if way.dtype == torch.float64 else 1e-38
    return (left / way.sum(1, keepdim=True).clamp_(min=least)).sqrt().clamp(max=1)


@dataclass(frozen=True)
class L1Ball(Ball):
    """The ℓ1 ball cut with the box."""

    norm = 1

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
            settled = (
                settled
                | (excess.abs() <= 1e-13 * eps)
                | ((falling > 0) & ((new - theta).abs() <= 1e-15 * top))
            )
            halve = (falling == 0) | (new < low) | (new > high) | (k > 16 and k % 2 == 1)
            new = torch.where(halve, (low + high) / 2, new)
            if settled.all():
                break
            theta = torch.where(settled, theta, new)  # the same in any batch
        inside = torch.minimum((size - theta).clamp(min=0), room) * delta.sign()
        return _land(self.x, inside, self.eps, 1)

    def ascend_in_box(self, z: Tensor, grad: Tensor, step: float) -> Tensor:
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


@dataclass(frozen=True)
class LpBall(Ball):
    """The ball of any other norm above 1, cut with the box."""

    p: float

    @property
    def norm(self) -> float:
        """P."""
        return self.p

    def start(self, keys: Tensor) -> Tensor:
        """Uniform in the ball, then projected on the box.

        Coordinates with density proportional to exp(-|t|^p) point in a direction of the cone measure; U^{1/n} is the radius.

        Source: Barthe, Guédon, Mendelson & Naor 2005.
        """
        from scipy.special import gammaincinv  # takes 0.2 s to import

        count = self.x[0].numel()
        u = 2 * random.uniform(keys, count) - 1
        size = torch.as_tensor(gammaincinv(1 / self.p, u.abs().cpu().numpy()) ** (1 / self.p)).to(u)
        radius = random.uniform(keys ^ 1, 1) ** (1 / count) * self.eps[:, None]
        delta = u.sign() * size / lp_norm(size, self.p)[:, None] * radius
        return self.project(self.x + delta.to(self.x.dtype).view_as(self.x))

    def project(self, z: Tensor) -> Tensor:
        """The closest point of the intersection.

        It is x + sign(z - x) min(u, room), with u + θ u^{p-1} = |z - x| in each coordinate, for the smallest θ ≥ 0 that
        fits. All lengths are over ε here, so that the length sought is 1. It falls with θ, and is below 1 at ‖z - x‖_{p*};
        Newton's steps end at θ, and the bracket around it keeps them there.
        """
        x, delta, p = self.x.flatten(1).double(), (z.double() - self.x).flatten(1), self.p
        eps = self.eps[:, None].clamp(min=1e-300)
        size, room = delta.abs() / eps, torch.where(delta > 0, 1 - x, x) / eps
        low = theta = torch.zeros_like(eps)
        high = lp_norm(size, conjugate(p))[:, None]
        for _ in range(100):
            u = self._shrunk(size, theta)
            excess = (torch.minimum(u, room) ** p).sum(1, keepdim=True) - 1
            settled = (excess.abs() <= 1e-13) | (high - low <= 1e-15 * high) | ((theta == 0) & (excess <= 0))
            if settled.all():
                break
            low, high = torch.where(excess > 0, theta, low), torch.where(excess > 0, high, theta)
            v = u.clamp(min=1e-150)
            falling = p * v ** (2 * p - 2) / (1 + theta * (p - 1) * v ** (p - 2)) * (u < room)
            new = theta + excess / falling.sum(1, keepdim=True).clamp(min=1e-300)
            new = torch.where((new > low) & (new < high), new, (low + high) / 2)
            theta = torch.where(settled, theta, new)  # the same in any batch
        return _land(self.x, torch.minimum(u, room) * eps * delta.sign(), self.eps, p)

    def _shrunk(self, size: Tensor, theta: Tensor) -> Tensor:
        """The u of u + θ u^{p-1} = size, by Newton's steps from above, which fall to it: in u, or in u^{p-1} if p < 2."""
        power = max(self.p - 1, 1 / (self.p - 1))
        a, b = (theta, torch.ones_like(theta)) if self.p > 2 else (torch.ones_like(theta), theta)
        w = torch.minimum(size / b.clamp(min=1e-300), (size / a.clamp(min=1e-300)) ** (1 / power))
        for _ in range(50):
            new = w - (a * w**power + b * w - size) / (a * power * w ** (power - 1) + b).clamp(min=1e-300)
            falls = new < w * (1 - 1e-14)
            if not falls.any():
                break
            w = torch.where(falls, new.clamp(min=0), w)  # the same in any batch
        return w if self.p > 2 else w**power
