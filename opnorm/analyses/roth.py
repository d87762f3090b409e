"""What Roth, Kilcher & Hofmann 2020 look at in a trained network: its Jacobian near test points, and its linear regions.

Features are φ^{L-1}, what the last linear layer is given, unless ``layer`` names a layer whose output is meant. Points are
random test points; attacked ones are what ``attack`` makes of them (pixels in [0, 1]). Errors (``sem``) are standard errors
over the points.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.random import point_keys, uniform
from opnorm.analyses.basic import Analysis, Row
from opnorm.analyses.points import (
    amounts,
    attacked,
    check_count,
    in_double,
    random_network,
    sample,
    summary,
)
from opnorm.attacks._pgd import Attack, pgd
from opnorm.data import Dataset
from opnorm.jacobian import (
    activations,
    alignment,
    features,
    jacobian_norm,
    linearized,
    lp_norm,
    random_start,
    shared_activations,
    singular_values,
    theorem_1,
)
from opnorm.jacobian.iteration import check_orders
from opnorm.spec import factory

__all__ = [
    "jacobian_spectrum",
    "local_linearity",
    "power_method_agreement",
    "relu_cells",
    "singular_alignment",
]

ATTACK = pgd(norm=2, eps=0.5)
BATCH = 50
STEPS = 20  # of Lanczos iteration, for curves of averages


@factory("analysis")
def jacobian_spectrum(
    points: int = 200, attack: Attack = ATTACK, layer: str | None = None, seed: int = 0
) -> Analysis:
    """All singular values of the Jacobian of the features, at clean and at attacked points.

    Args:
        points: how many.
        attack: what moves them.
        layer: see the module.
        seed: of the choice of points and of the attack.

    Returns:
        Two rows: at ("clean", "attacked"), layer, points, mean and sem (lists, by rank).

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        ModelError: no such layer, or a Jacobian that does not exist; see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 left.
    """
    check_count(points=points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        f = features(model, x, layer)
        both = {"clean": x, "attacked": attacked(model, x, y, attack, seed)}
        return [
            {"at": at, "layer": f.layer, "points": points, **summary(singular_values(f, z))}
            for at, z in both.items()
        ]

    return analysis


@factory("analysis")
def singular_alignment(
    points: int = 200, attack: Attack = ATTACK, layer: str | None = None, seed: int = 0
) -> Analysis:
    """|cos| between the adversarial perturbation and each right singular vector of the Jacobian of the features.

    For comparison, the same perturbations beside the singular vectors of the network with random weights, and what a random
    direction has with any vector, sqrt(2 / (π n)) for n pixels.

    Args:
        points: how many.
        attack: what moves them.
        layer: see the module.
        seed: of the choice of points, of the attack and of the random weights.

    Returns:
        Two rows: network ("own", "random"), layer, points, chance, mean and sem (lists, by rank).

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        AttackError: the attack leaves a point where it is.
        ModelError: see :func:`jacobian_spectrum`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 2 right.
    """
    check_count(points=points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        z = attacked(model, x, y, attack, seed) - x
        chance = float(f"{math.sqrt(2 / (math.pi * x[0].numel())):.6g}")
        rows = []
        for name, network in (("own", model), ("random", random_network(model, seed))):
            f = features(network, x, layer)
            found = summary(alignment(f, x, z))
            rows.append({"network": name, "layer": f.layer, "points": points, "chance": chance, **found})
        return rows

    return analysis


@factory("analysis")
def local_linearity(
    points: int = 100,
    distances: Sequence[float] = (0, 0.1, 0.25, 0.5, 1, 1.5, 2),
    attack: Attack = ATTACK,
    layer: str | None = None,
    seed: int = 0,
) -> Analysis:
    """How far the features are from linear, and how steep they get, as one moves away from a point.

    Along z = t d, with d of ℓ2 length 1, random or toward the attacked point: the deviation ‖φ(x + z) - (φ(x) + J(x) z)‖_2
    and the largest singular value of J(x + z), against t = ‖z‖_2. Pixels are not held in [0, 1]. In float64.

    Args:
        points: how many.
        distances: t, ℓ2 lengths in pixel values of [0, 1].
        attack: whose direction is the adversarial one.
        layer: see the module.
        seed: of the choice of points, of the attack and of the random directions.

    Returns:
        One row a direction ("random", "adversarial") and distance: direction, distance, layer, points, and for deviation and
        sigma each its mean and error: deviation, deviation_sem, sigma, sigma_sem.

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        AttackError: the attack leaves a point where it is.
        ModelError: see :func:`jacobian_spectrum`.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 4.
    """
    check_count(points=points)
    lengths = amounts("distances", distances)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = sample(model, data, points, seed)
        toward = (attacked(model, x, y, attack, seed) - x).double()
        toward = toward / lp_norm(toward, 2).view(-1, *(1,) * (x.ndim - 1))
        double, x = in_double(model), x.double()
        f = features(double, x, layer)
        rows = []
        for direction, d in (("random", random_start(x, 2, seed)), ("adversarial", toward)):
            deviation = torch.cat(
                [_deviations(f, a, b, lengths) for a, b in zip(x.split(BATCH), d.split(BATCH), strict=True)],
                1,
            )
            for length, each in zip(lengths, deviation, strict=True):
                sigma = jacobian_norm(f, x + length * d, steps=STEPS).lower
                row = {"direction": direction, "distance": length, "layer": f.layer, "points": points}
                for name, values in (("deviation", each), ("sigma", sigma)):
                    found = summary(values)
                    row |= {name: found["mean"], f"{name}_sem": found["sem"]}
                rows.append(row)
        return rows

    return analysis


def _deviations(f: nn.Module, x: Tensor, d: Tensor, lengths: list[float]) -> Tensor:
    """‖φ(x + t d) - φ(x) - t J d‖_2, (lengths, B)."""
    with linearized(f, x) as J:
        here, slope = J.outputs.detach(), J.apply(d)
    with torch.no_grad():
        return torch.stack([lp_norm(f(x + t * d) - here - t * slope, 2) for t in lengths])


@factory("analysis")
def relu_cells(
    points: int = 100, eps: Sequence[float] = (0, 0.01, 0.02, 0.05, 0.1, 0.2), seed: int = 0
) -> Analysis:
    """The share of ReLU units that keep their state when uniform noise in [-ε, ε] is added to every pixel.

    Around test points, and around points drawn uniformly from [0, 1]^n, away from the data. The faster it falls with ε, the
    smaller are the linear regions. Pixels are not held in [0, 1].

    Args:
        points: how many of either kind.
        eps: ε, in pixel values of [0, 1].
        seed: of the choice of points and of the noise.

    Returns:
        One row a place ("data", "noise") and ε: around, eps, points, units, mean, sem.

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        ModelError: the network has no ReLU or other piecewise linear unit.

    Source: Roth, Kilcher & Hofmann 2020, Fig. 5.
    """
    check_count(points=points)
    radii = amounts("eps", eps)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        rows = []
        for around, center in (("data", x), ("noise", _uniform(x, seed, 1))):
            noise, parts = 2 * _uniform(center, seed, 2) - 1, []
            for a, z in zip(center.split(BATCH), noise.split(BATCH), strict=True):
                home = activations(model, a)
                parts.append(
                    torch.stack([shared_activations(home, activations(model, a + e * z)) for e in radii])
                )
            rows += [
                {
                    "around": around,
                    "eps": e,
                    "points": points,
                    "units": home.units.shape[1],
                    **summary(shared),
                }
                for e, shared in zip(radii, torch.cat(parts, 1), strict=True)
            ]
        return rows

    return analysis


def _uniform(x: Tensor, seed: int, stream: int) -> Tensor:
    return uniform(point_keys(x, seed, stream), x[0].numel()).to(x.dtype).view_as(x)


@factory("analysis")
def power_method_agreement(
    eps: Sequence[float] = (0.001, 0.01, 0.03, 0.1, 0.3, 1),
    p: float = 2,
    q: float = 2,
    steps: int = 10,
    points: int = 100,
    seed: int = 0,
) -> Analysis:
    """How far Theorem 1 holds on this network: adversarial ascent beside the power method, as ε grows.

    Both start at the same random place and take ``steps`` steps: ascent on ‖f(x') - f(x)‖_q within ℓp distance ε of x, and
    the power method for ‖J(x)‖_{p→q}. Within one linear region they are the same. In float64; f are the logits.

    Args:
        eps: radii, above 0, in pixel values of [0, 1].
        p: of the ball.
        q: of the loss.
        steps: of each.
        points: how many.
        seed: of the choice of points and of the start.

    Returns:
        One row a radius: p, q, eps, steps, points; cosine and cosine_sem (of the last directions); first_cosine (of those
        after one step); slope (of the ascent's secant over the power method's gain, mean); same_region (the share of points
        whose whole ascent stays in the linear region of x) and worst_inside (the smallest cosine of any step at those, which
        the theorem says is 1; None where there are none).

    Raises:
        SpecError: a setting that makes no sense, or fewer test points than asked for.
        NormError: p or q below 1.
        ModelError: see :func:`opnorm.jacobian.linearized`.

    Source: Roth, Kilcher & Hofmann 2020, Theorem 1.
    """
    check_count(points=points, steps=steps)
    check_orders(p, q)
    radii = amounts("eps", eps, zero=False)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        double, x = in_double(model), x.double()
        rows = []
        for radius in radii:
            parts = [theorem_1(double, part, radius, p, q, steps, seed=seed) for part in x.split(BATCH)]
            cosine = torch.cat([part.cosine for part in parts], 1)
            last = summary(cosine[-1])
            slope = torch.cat([part.slope / part.gain.clamp(min=1e-300) for part in parts])
            inside = torch.cat([part.same_region for part in parts])
            rows.append(
                {
                    "p": f"{p:g}",
                    "q": f"{q:g}",
                    "eps": radius,
                    "steps": steps,
                    "points": points,
                    "cosine": last["mean"],
                    "cosine_sem": last["sem"],
                    "first_cosine": summary(cosine[0])["mean"],
                    "slope": summary(slope)["mean"],
                    "same_region": float(inside.double().mean()),
                    "worst_inside": float(cosine[:, inside].min()) if inside.any() else None,
                }
            )
        return rows

    return analysis
