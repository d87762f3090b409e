"""Robust accuracy as Wen, Li & Jia measure it."""

import math
from collections.abc import Sequence

from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import batches, check_points, correct_after, correct_points, first
from opnorm.attacks import pgd
from opnorm.data import Dataset
from opnorm.report import Cell, Column


@register("accuracy and robustness")
def wen_robust_accuracy(
    eps: float = 8 / 255, step: float = 2 / 255, steps: int = 10, points: int | None = 500, seed: int = 0
) -> Analysis:
    """The share of the correctly classified test points that ℓ∞ PGD leaves correct.

    Not the share of all points: a model that is correct less often may score higher.

    Args:
        eps: radius, in pixel values of [0, 1].
        step: length of a step.
        steps: of PGD, from a random start.
        points: the first so many test points; all when None.
        seed: of the random starts.

    Returns:
        One row: eps, accuracy (None where no point was correct), correct, points (those correct without attack), of (all),
        attack.

    Raises:
        SpecError: fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Wen, Li & Jia 2020, section 4: 10 steps of 2/255, at most 8/255.
    """
    attack = pgd(math.inf, eps, steps, step, seed=seed)
    check_points(points)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        split, clean, correct = first(data, points), 0, 0
        for x, y in correct_points(model, batches(split, model)):
            clean += len(y)
            correct += int(correct_after(model, x, y, attack).sum())
        return [
            {
                "eps": eps,
                "accuracy": correct / clean if clean else None,
                "correct": correct,
                "points": clean,
                "of": len(split.labels),
                "attack": f"PGD-{steps}",
            }
        ]

    return Analysis(rows, sentence, columns)


def sentence(rows: Sequence[Row]) -> str:
    row = rows[0]
    if row["accuracy"] is None:
        return f"None of {row['of']} test images is classified correctly, so there is nothing to attack."
    return (
        f"Of the {row['points']} test images that it classifies correctly, {row['accuracy']:.1%} stay correct after "
        f"{row['attack']} at ℓ∞ ε = {row['eps']:.3g}."
    )


def columns(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    row = rows[0]
    help = (
        f"Of the {row['points']} test images that are classified correctly, the share that still are after {row['attack']} "
        f"at ℓ∞ ε = {row['eps']:.3g}."
    )
    return [
        (Column("wen", f"{row['attack']}, of the correct ones", "percent", "high", help), row["accuracy"])
    ]
