"""The largest change of the loss within a ball."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_radii, check_settings
from opnorm._core.kept_parts import in_parts
from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import amounts, attacked_at_once, cross_entropy, first, logits_of
from opnorm.attacks import Attack, pgd
from opnorm.data import Dataset
from opnorm.report import Chart, Heading, Panel, Point, draw_curves, eps_axis, method_of


@register("accuracy and robustness")
def loss_variation(
    eps: Sequence[float] = (1 / 255, 2 / 255, 4 / 255),
    steps: int = 10,
    points: int | None = 500,
    seed: int = 0,
) -> Analysis:
    """The largest change of a test point's loss within ε: mean and standard deviation over the points.

    Of each of the first ``points``, max |CE(f(x*), y) - CE(f(x), y)| over the x* that ℓ∞ PGD finds at this radius and at the
    smaller ones, with steps of ε / 4, the ratio of the paper's attack. A lower bound, as PGD need not find the largest
    change.

    Returns:
        One row a radius, the smallest first: eps, mean, std (divided by the number of points), points.

    Source: Wen, Li & Jia 2020, B.5, Fig. 8 and Table 1.
    """
    check_sample(points, seed)
    check_radii("eps", eps, math.inf)
    check_settings(steps=steps)
    attacks = {radius: pgd(math.inf, radius, steps, radius / 4, seed=seed) for radius in amounts(eps)}

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        parts: dict[float, list[Tensor]] = {radius: [] for radius in attacks}
        for x, y, logits in logits_of(model, first(data, points)):
            clean = cross_entropy(logits, y)
            largest = torch.zeros_like(clean)
            for radius, attack in attacks.items():
                change = in_parts(partial(_change, model, attack), x, y, clean, size=attacked_at_once(x))
                largest = torch.maximum(largest, change)
                parts[radius].append(largest)
        found = []
        for radius, part in parts.items():
            change = torch.cat(part)
            row = {"eps": radius, "mean": float(change.mean()), "std": float(change.std(correction=0))}
            found.append(row | {"points": len(change)})
        return found

    return Analysis(rows, sentence, chart=chart)


def _change(model: nn.Module, attack: Attack, x: Tensor, y: Tensor, clean: Tensor) -> Tensor:
    moved = attack(model, x, y)
    with evaluating(model):
        return (cross_entropy(output_of(model, moved), y) - clean).abs()


def sentence(rows: Rows) -> str:
    row = max(rows, key=lambda row: row["eps"])
    return (
        f"Within ε = {row['eps']:.3g} the loss of a test image changes by up to {row['mean']:.3g} on average (standard "
        f"deviation {row['std']:.3g})."
    )


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "loss-variation",
        "Variation of the loss",
        "The largest change of a test image's loss by an attack of size ε: its mean over the images, and its standard "
        "deviation over them.",
    )
    panels = {"mean": Panel("Mean over the images"), "std": Panel("Standard deviation over the images")}
    points = [Point(method_of(row), key, row["eps"], row[key]) for row in rows for key in panels]
    return draw_curves(points, methods, heading, panels, eps_axis())
