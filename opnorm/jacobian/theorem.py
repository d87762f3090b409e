"""Adversarial ascent on the outputs is the power method on the Jacobian (Roth, Kilcher & Hofmann 2020, Theorem 1)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import check_tensor
from opnorm._core.lp import conjugate, dual, lp_norm, on_sphere, per_row, power_iteration, random_start
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_alpha, check_orders
from opnorm._core.settings import check_count, check_number
from opnorm.errors import NormError
from opnorm.jacobian.linear_regions import activations, same_region
from opnorm.jacobian.products import check_points, linearized

__all__ = ["Agreement", "Secant", "secant_ascent", "theorem_1"]


class Secant(NamedTuple):
    """One iterate of an ascent.

    Attributes:
        v: (B, *in), (x_k - x) / ε, of ℓp norm 1, or at most 1 for a finite α.
        slope: (B,), ‖f(x_k) - f(x)‖_q / ε: no Lipschitz constant of f from ℓp to ℓq is below it.
    """

    v: Tensor
    slope: Tensor


class Agreement(NamedTuple):
    """How well the two iterations agree after steps 1, ..., S, point by point.

    Attributes:
        cosine: (S, B) float64, between the two directions.
        distance: (S, B) float64, their difference in ℓp, between 0 and 2.
        slope: (B,), ‖f(x + εv) - f(x)‖_q / ε at the ascent's last v.
        gain: (B,), ‖J(x) v‖_q at the power method's last v.
        same_region: (B,) bool: all of the ascent's iterates lie in the linear region of x.
    """

    cosine: Tensor
    distance: Tensor
    slope: Tensor
    gain: Tensor
    same_region: Tensor


def secant_ascent(
    model: nn.Module,
    x: Tensor,
    v: Tensor,
    eps: float,
    p: float = 2,
    q: float = 2,
    *,
    steps: int = 10,
    alpha: float = math.inf,
) -> Iterator[Secant]:
    """ℓp-constrained projected gradient ascent on ‖f(x') - f(x)‖_q over ‖x' - x‖_p <= ε.

        x_k = Π(x_{k-1} + ε α g),  g = ∇‖f(x_{k-1}) - f(x)‖_q;  for α → ∞:  x_k = x + ε ψ_{p*}(g)

    Pixels are not held in [0, 1]: the theorem has no box. Yields ``steps`` + 1 iterates, the start first.

    Args:
        model: any network that works on each point of a batch by itself; in eval mode meanwhile.
        x: (B, *in); float64, with such a model, where ε is small.
        v: the start, x_0 = x + εv; ‖v‖_p = 1.
        eps: ε, above 0.
        p: of the ball.
        q: of the loss.
        steps: at least 0.
        alpha: α, above 0, of the length of Eq. 11; inf for its limit. A finite α is for p = 1, 2 and inf.

    Raises:
        NormError: a setting out of its range.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Eqs. 15 to 18.
    """
    check_orders(p, q)
    check_number("eps", eps, "a radius above 0", above=0, error=NormError)
    check_count("steps", steps, 0, error=NormError)
    check_alpha(alpha, p)
    check_points(x)
    check_tensor("v", v, "the start (B, *in)", NormError)
    if v.shape != x.shape:
        raise NormError(f"v has shape {tuple(v.shape)}; expected {tuple(x.shape)}, that of x")
    with linearized(model, x) as J:
        here = J.outputs.detach()
    for k in range(steps + 1):
        with linearized(model, x + eps * v) as J:
            change = J.outputs.detach() - here
            ascent = J.T @ dual(change, q) if k < steps else v
        yield Secant(v, lp_norm(change, q) / eps)
        if alpha == math.inf:
            v = dual(ascent, conjugate(p), v)
        else:
            far = v + alpha * ascent
            v = torch.where(per_row(lp_norm(far, p) > 1, far), on_sphere(far, p), far)


@in_default_modes
def theorem_1(
    model: nn.Module,
    x: Tensor,
    eps: float,
    p: float = 2,
    q: float = 2,
    *,
    steps: int = 10,
    seed: int = 0,
    alpha: float = math.inf,
) -> Agreement:
    """Projected gradient ascent and the power method from the same random start, step by step.

    Theorem: where the ℓp ball of radius ε around x lies in one linear region of f, both take the same steps, for
    v_k = (x_k - x) / ε, in the limit α → ∞. Elsewhere the result measures how far they differ, and for a finite α, with
    which ascent may stop inside of the ball. In float32 a small ε leaves them apart by rounding.

    Arguments and errors are those of :func:`secant_ascent`; ``steps`` is at least 1, ``seed`` is that of the start.

    Source: Roth, Kilcher & Hofmann 2020, Theorem 1.
    """
    check_orders(p, q)
    check_count("steps", steps, error=NormError)
    check_alpha(alpha, p)
    check_points(x)
    v = start = random_start(x, p, seed)
    powers = []
    with linearized(model, x) as J:
        for _ in range(steps):
            v = power_iteration(J, v, p, q, steps=1, alpha=alpha).v
            powers.append(v)
        gain = lp_norm(J @ v, q)
    secants = list(secant_ascent(model, x, start, eps, p, q, steps=steps, alpha=alpha))
    home = activations(model, x)
    inside = [same_region(home, activations(model, x + eps * secant.v)) for secant in secants]
    pairs = [
        (secant.v.flatten(1).double(), power.flatten(1).double())
        for secant, power in zip(secants[1:], powers, strict=True)
    ]
    cosine = torch.stack([torch.cosine_similarity(a, b) for a, b in pairs])
    distance = torch.stack([lp_norm(a - b, p) for a, b in pairs])
    return Agreement(cosine, distance, secants[-1].slope, gain, torch.stack(inside).all(0))
