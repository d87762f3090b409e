"""How steep a network is: bounds that hold everywhere beside what is seen at the data, and what they say of robustness."""

import math

import torch
from torch import nn

from opnorm.analyses.basic import Analysis, Row
from opnorm.analyses.points import amounts, check_count, sample, summary
from opnorm.attacks._pgd import pgd
from opnorm.attacks.minimum_norm import minimal_eps
from opnorm.certificates.radius import lipschitz_radius
from opnorm.data import Dataset
from opnorm.errors import SpecError
from opnorm.jacobian import jacobian_norm, secant_ascent
from opnorm.norms.network.lipschitz import lipschitz_bound
from opnorm.spec import factory

__all__ = ["lipschitz_bracket", "robust_radius"]

BATCH = 100


@factory("analysis")
def lipschitz_bracket(
    norm: float = 2, radius: float = 0.1, points: int = 100, steps: int = 20, seed: int = 0
) -> Analysis:
    """The network's Lipschitz constant from ℓp to ℓp, from above and from below, of the logits.

    - from above, on all inputs: the layers' norms along the graph (:func:`opnorm.norms.lipschitz_bound`);
    - from below: the largest ‖J(x)‖_p at test points, and the largest secant slope ‖f(x + z) - f(x)‖_p / ‖z‖_p found by
      ascent over ‖z‖_p = ``radius``, which begins at the Jacobian's own maximizer.

    How far they are apart says how little the global bound knows of the data.

    Args:
        norm: p: 1, 2 or inf.
        radius: ‖z‖_p in pixel values of [0, 1], which x + z may leave.
        points: how many test points.
        steps: of the ascent.
        seed: of the choice of points.

    Returns:
        One row: norm, points, radius; upper (None where it is not known) and reason; jacobian and secant (the largest);
        jacobian_mean, secant_mean.

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Liang & Huang 2021, Definition 1; Roth, Kilcher & Hofmann 2020, Sec. 3.
    """
    check_count(points=points, steps=steps)
    _check_norm(norm)
    amounts("radius", radius, zero=False)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        bound = lipschitz_bound(model, x[:1], norm)
        local, slopes = [], []
        for part in x.split(BATCH):
            found = jacobian_norm(model, part, norm, norm)
            local.append(found.lower)
            ascent = secant_ascent(model, part, found.v, radius, norm, norm, steps)
            slopes.append(torch.stack([secant.slope for secant in ascent]).amax(0).double())
        jacobian, secant = torch.cat(local), torch.cat(slopes)
        return [
            {
                "norm": f"{norm:g}",
                "points": points,
                "radius": radius,
                "upper": bound.value,
                "reason": bound.reason,
                "jacobian": float(jacobian.max()),
                "secant": float(secant.max()),
                "jacobian_mean": summary(jacobian)["mean"],
                "secant_mean": summary(secant)["mean"],
            }
        ]

    return analysis


@factory("analysis")
def robust_radius(
    norm: float = math.inf, highest: float = 0.3, points: int = 100, steps: int = 20, seed: int = 0
) -> Analysis:
    """For each point an interval around its robust radius, the distance of the closest misclassified input.

    - from below, certified: margin over Lipschitz constant (:func:`opnorm.certificates.lipschitz_radius`), and at most
      n^(1/p), as no two points of [0, 1]^n are further apart;
    - from above: the closest misclassified input that PGD finds by bisection
      (:func:`opnorm.attacks.minimum_norm.minimal_eps`).

    Both are 0 at points that are wrong from the beginning.

    Args:
        norm: p: 1, 2 or inf.
        highest: the largest radius that is attacked, in pixel values of [0, 1].
        points: how many test points.
        steps: of PGD.
        seed: of the choice of points and of the attack.

    Returns:
        One row: norm, points, highest, lipschitz (an upper bound on the constant of the logits from ℓp to ℓp, or None where
        it is not known) and reason; certified and attacked (lists, point by point; attacked is None where nothing was found
        up to ``highest``).

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        AttackError: a radius that makes no sense.

    Source: Tsuzuku, Sato & Sugiyama 2018 (margin over Lipschitz constant).
    """
    check_count(points=points, steps=steps)
    _check_norm(norm)
    amounts("highest", highest, zero=False)
    pgd(norm, highest, steps, seed=seed)  # what is wrong with it is said now

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        bound = lipschitz_bound(model, x[:1], norm)
        certified = lipschitz_radius(model, x, y, norm).clamp(max=x[0].numel() ** (1 / norm)).tolist()
        attacked: list[float | None] = []
        for z, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            found = minimal_eps(
                model,
                z,
                labels,
                lambda eps: pgd(norm, eps, steps, stop_at_success=True, seed=seed),
                norm,
                highest,
            )
            attacked += [float(f"{d:.6g}") if math.isfinite(d) else None for d in found.distance.tolist()]
        return [
            {
                "norm": f"{norm:g}",
                "points": points,
                "highest": highest,
                "lipschitz": bound.value,
                "reason": bound.reason,
                "certified": certified,
                "attacked": attacked,
            }
        ]

    return analysis


def _check_norm(norm: float) -> None:
    if isinstance(norm, bool) or norm not in (1, 2, math.inf):
        raise SpecError(f"norm={norm!r} is not known here; expected 1, 2 or inf")
