"""Robust accuracy as Wen, Li & Jia measure it."""

import math

from torch import nn

from opnorm._core.attack_settings import check_settings
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Row, Rows, register
from opnorm.analyses._shared.points import attack_label, correct_points, first
from opnorm.attacks import pgd
from opnorm.attacks.result import attack_call
from opnorm.data import Dataset
from opnorm.report import Column, Stat


@register("accuracy and robustness")
def wen_robust_accuracy(
    eps: float = 8 / 255, step: float = 2 / 255, steps: int = 10, points: int | None = 500, seed: int = 0
) -> Analysis:
    """The share of the correctly classified test points that ℓ∞ PGD leaves correct.

    Of the first ``points``. Not the share of all of them: a model that is correct less often may score higher. ``step`` is
    the length of a step of PGD.

    Returns:
        One row: eps, accuracy (None where no point was correct), correct, points (those correct without attack), of (all),
        attack.

    Source: Wen, Li & Jia 2020, section 4: 10 steps of 2/255, at most 8/255.
    """
    check_sample(points, seed)
    check_settings(norm=math.inf, eps=eps, step=step, steps=steps)
    attack = pgd(math.inf, eps, steps, step, seed=seed, bf16=False)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        split = first(data, points)
        clean, correct = (int(points.sum()) for points in correct_points(model, split, attack))
        row = {"eps": eps, "accuracy": correct / clean if clean else None, "correct": correct}
        return [row | {"points": clean, "of": len(split.labels), "attack": attack_call(attack)}]

    return Analysis(rows, sentence, columns)


def sentence(rows: Rows) -> str:
    row = rows[0]
    if row["accuracy"] is None:
        return f"None of {row['of']} test images is classified correctly, so there is nothing to attack."
    return (
        f"Of the {row['points']} test images that it classifies correctly, {row['accuracy']:.1%} stay correct after "
        f"{row['attack']}."
    )


def columns(rows: Rows) -> Cells:
    row = rows[0]
    help = (
        f"Of the {row['points']} test images that are classified correctly, the share that still are after "
        f"{row['attack']}."
    )
    label = f"{attack_label(row['attack'])} ℓ∞ {row['eps']:.3g}, of the correct ones"
    return [(Column("wen", label, "percent", "high", help), Stat.share(row["correct"], row["points"]))]
