"""Adversarial ascent beside the power method: how far Theorem 1 of Roth et al. holds."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from opnorm._core.kept_parts import kept
from opnorm._core.orders import check_alpha, check_orders
from opnorm._core.settings import check_amounts, check_count, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import amounts, in_double, sample, summary
from opnorm.data import Dataset
from opnorm.jacobian import theorem_1
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, method_of

BATCH = 50


@register("neighborhood of the data")
def power_method_agreement(
    eps: Sequence[float] = (0.001, 0.01, 0.03, 0.1, 0.3, 1),
    p: float = 2,
    q: float = 2,
    steps: int = 10,
    points: int | None = 100,
    seed: int = 0,
    alpha: float = math.inf,
) -> Analysis:
    """How far Theorem 1 holds on this network: adversarial ascent beside the power method, as ε grows.

    Both start at the same random place and take ``steps`` steps: ascent on ‖f(x') - f(x)‖_q within ℓp distance ε of a random
    test point x, and the power method for ‖J(x)‖_{p→q}. Within one linear region they are the same in the limit of long
    steps, ``alpha=inf``; a finite step length α is that of Eq. 11, in units of ε for the ascent. In float64; f are the
    logits.

    Returns:
        One row a radius: p, q, alpha, eps, steps, points; cosine and cosine_sem (of the last directions); first_cosine (of
        those after one step); slope (of the ascent's secant over the power method's gain, mean); same_region (the share of
        points whose whole ascent stays in the linear region of x) and worst_inside (the smallest cosine of any step at
        those, which is 1 by the theorem; None where there are none).

    Raises:
        NormError: p or q below 1, or another α.

    Source: Roth, Kilcher & Hofmann 2020, Theorem 1.
    """
    check_sample(points, seed)
    check_count("steps", steps)
    check_orders(p, q)
    check_alpha(alpha, p)
    check_amounts("eps", eps, zero=False)
    radii = amounts(eps)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        double, x = in_double(model), x.double()
        found = []
        for radius in radii:
            settings: dict[str, Any] = {"steps": steps, "seed": seed, "alpha": alpha}
            parts = [
                kept(partial(_part, double, some, radius, p, q, **settings), some) for some in x.split(BATCH)
            ]
            cosine = torch.cat([part["cosine"] for part in parts], 1)
            slope = torch.cat([part["slope"] / part["gain"].clamp(min=1e-300) for part in parts])
            inside = torch.cat([part["same_region"] for part in parts])
            last = summary(cosine[-1])
            row: Row = {"p": f"{p:g}", "q": f"{q:g}", "alpha": f"{alpha:g}"}
            row |= {"eps": radius, "steps": steps, "points": len(x)}
            row |= {"cosine": last["mean"], "cosine_sem": last["sem"]}
            row |= {"first_cosine": summary(cosine[0])["mean"], "slope": summary(slope)["mean"]}
            row["same_region"] = float(inside.double().mean())
            row["worst_inside"] = float(cosine[:, inside].min()) if inside.any() else None
            found.append(row)
        return found

    return Analysis(rows, sentence, chart=chart)


def _part(*args: Any, **settings: Any) -> dict[str, Any]:
    """What is needed of a test of Theorem 1."""
    found = theorem_1(*args, **settings)
    return {key: getattr(found, key) for key in ("cosine", "slope", "gain", "same_region")}


def sentence(rows: Rows) -> str:
    return (
        "Adversarial ascent and the power method end in nearly the same direction (cosine 0.9 or more) "
        f"{_range(rows, 'cosine', 0.9)}; most ascents stay in one linear region {_range(rows, 'same_region', 0.5)}."
    )


def _range(rows: Rows, key: str, least: float) -> str:
    """Up to which radius a value is at least so large, beginning at the smallest radius."""
    ordered = sorted(rows, key=lambda row: row["eps"])
    radii = [row["eps"] for row in itertools.takewhile(lambda row: row[key] >= least, ordered)]
    return f"up to ε = {radii[-1]:g}" if radii else f"not even at ε = {ordered[0]['eps']:g}"


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "power-method-agreement",
        "Adversarial ascent and the power method",
        "Within one linear region of the network, adversarial ascent takes the same steps as the power method on the "
        "Jacobian. The chart shows the cosine between the two after the last step, and the share of images whose whole "
        "ascent stays in the image's own region.",
    )
    panels = {
        "cosine": Panel("Cosine after the last step"),
        "same_region": Panel("Within one linear region", percent=True),
    }
    points = [Point(method_of(row), key, row["eps"], row[key]) for row in rows for key in panels]
    x = Axis("ε (pixels are in [0, 1]; log scale)", log=True)
    return draw_curves(points, methods, heading, panels, x)
