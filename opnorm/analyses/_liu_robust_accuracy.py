"""Robust accuracy as Liu et al. measure it."""

import math
from collections.abc import Sequence

from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import (
    amounts,
    batches,
    check_points,
    correct_after,
    correct_points,
    first,
)
from opnorm.attacks import Attack, fgsm, pgd
from opnorm.data import Dataset
from opnorm.report import Chart, Heading, Panel, Point, draw_curves, eps_axis, method_of


@register("accuracy and robustness")
def liu_robust_accuracy(
    fgsm_eps: Sequence[float] = (0.01, 0.03, 0.05),
    pgd_eps: Sequence[float] = (0.01, 0.03),
    points: int | None = 500,
    seed: int = 0,
) -> Analysis:
    """The share of test points that are correct after FGSM, and after PGD with 10 steps, at the radii of the paper.

    Each attack and radius is independent of the others, as in the paper's tables, so FGSM may do less at a larger radius.
    The paper does not give the steps' length; it is ε / 4.

    Args:
        fgsm_eps: ℓ∞ radii of FGSM, in pixel values of [0, 1].
        pgd_eps: ℓ∞ radii of PGD10.
        points: the first so many test points; all when None.
        seed: of PGD's random starts.

    Returns:
        One row an attack and radius: attack, eps, accuracy, correct, points.

    Raises:
        SpecError: no radius, or fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Liu et al. 2020, Tables 1 to 4: ε = 0.03 for MNIST; 0.05, 0.03, 0.01 (FGSM) and 0.03, 0.01 (PGD10) for CIFAR-10.
    """
    attacks: list[tuple[str, float, Attack]] = [
        *(("FGSM", radius, fgsm(radius)) for radius in amounts("fgsm_eps", fgsm_eps)),
        *(("PGD10", radius, pgd(math.inf, radius, 10, seed=seed)) for radius in amounts("pgd_eps", pgd_eps)),
    ]
    check_points(points)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        split = first(data, points)
        total, found = len(split.labels), []
        for name, radius, attack in attacks:
            correct = sum(
                int(correct_after(model, x, y, attack).sum())
                for x, y in correct_points(model, batches(split, model))
            )
            row = {
                "attack": name,
                "eps": radius,
                "accuracy": correct / total,
                "correct": correct,
                "points": total,
            }
            found.append(row)
        return found

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Sequence[Row]) -> str:
    parts = [f"{row['accuracy']:.1%} after {row['attack']} at ε = {row['eps']:.3g}" for row in rows]
    return f"Still classified correctly: {', '.join(parts)}."


def chart(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """Accuracy under FGSM and PGD10, independently at each radius (Liu et al. 2020, Tables 1 to 4)."""
    heading = Heading(
        "fgsm-and-pgd",
        "Accuracy under one step and under ten",
        "The share of test images still classified correctly after one step of the attack (FGSM) and after ten (PGD), at "
        "each size of the change.",
    )
    panels = {"FGSM": Panel("After FGSM", percent=True), "PGD10": Panel("After PGD, 10 steps", percent=True)}
    points = [Point(method_of(row), row["attack"], row["eps"], row["accuracy"]) for row in rows]
    return draw_curves(points, methods, heading, panels, eps_axis())
