"""The largest change of the loss within a ball."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import amounts, batches, check_points, cross_entropy, first
from opnorm.attacks import pgd
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

    Of each point, max |CE(f(x*), y) - CE(f(x), y)| over the x* that ℓ∞ PGD finds at this radius and at the smaller ones,
    with steps of ε / 4, the ratio of the paper's attack. A lower bound, as PGD need not find the largest change.

    Args:
        eps: radii, in pixel values of [0, 1].
        steps: of PGD at each radius, from a random start.
        points: the first so many test points; all when None.
        seed: of the random starts.

    Returns:
        One row a radius, the smallest first: eps, mean, std (divided by the number of points), points.

    Raises:
        SpecError: no radius, or fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Wen, Li & Jia 2020, B.5, Fig. 8 and Table 1.
    """
    attacks = {radius: pgd(math.inf, radius, steps, radius / 4, seed=seed) for radius in amounts("eps", eps)}
    check_points(points)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        parts: dict[float, list[Tensor]] = {radius: [] for radius in attacks}
        for x, y in batches(first(data, points), model):
            largest = torch.zeros(len(y), dtype=torch.float64, device=x.device)
            clean = _loss(model, x, y)
            for radius, attack in attacks.items():
                largest = torch.maximum(largest, (_loss(model, attack(model, x, y), y) - clean).abs())
                parts[radius].append(largest)
        changes = {radius: torch.cat(part) for radius, part in parts.items()}
        return [
            {
                "eps": radius,
                "mean": float(change.mean()),
                "std": float(change.std(correction=0)),
                "points": len(change),
            }
            for radius, change in changes.items()
        ]

    return Analysis(rows, sentence, chart=chart)


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with evaluating(model):
        return cross_entropy(model(x), y)


def sentence(rows: Sequence[Row]) -> str:
    row = max(rows, key=lambda row: row["eps"])
    return (
        f"Within ε = {row['eps']:.3g} the loss of a test image changes by up to {row['mean']:.3g} on average (standard "
        f"deviation {row['std']:.3g})."
    )


def chart(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """Mean and standard deviation of the largest change of the loss against ε (Wen, Li & Jia 2020, Fig. 8)."""
    heading = Heading(
        "loss-variation",
        "Variation of the loss",
        "The largest change of a test image's loss by an attack of size ε: its mean over the images, and its standard "
        "deviation over them.",
    )
    panels = {"mean": Panel("Mean over the images"), "std": Panel("Standard deviation over the images")}
    points = [Point(method_of(row), key, row["eps"], row[key]) for row in rows for key in panels]
    return draw_curves(points, methods, heading, panels, eps_axis())
