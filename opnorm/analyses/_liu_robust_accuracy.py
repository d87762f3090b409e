"""Robust accuracy as Liu et al. measure it."""

import math
from collections.abc import Sequence

from torch import nn

from opnorm._core.attack_settings import check_radii
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.by_point import pack
from opnorm.analyses._shared.points import amounts, attack_label, correct_points, first
from opnorm.attacks import fgsm, pgd
from opnorm.attacks.result import attack_call
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

    Of the first ``points``; both attacks are ℓ∞. Each attack and radius is independent of the others, as in the paper's
    tables, so FGSM may do less at a larger radius. The paper does not give the steps' length; it is ε / 4.

    Returns:
        One row an attack and radius: attack, eps, accuracy, correct, points, by_point (see :func:`accuracy`).

    Source: Liu et al. 2020, Tables 1 to 4: ε = 0.03 for MNIST; 0.05, 0.03, 0.01 (FGSM) and 0.03, 0.01 (PGD10) for CIFAR-10.
    """
    check_sample(points, seed)
    check_radii("fgsm_eps", fgsm_eps, math.inf)
    check_radii("pgd_eps", pgd_eps, math.inf)
    attacks = [(eps, fgsm(eps)) for eps in amounts(fgsm_eps)]
    attacks += [(eps, pgd(math.inf, eps, 10, seed=seed, bf16=False)) for eps in amounts(pgd_eps)]

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        split, found = first(data, points), []
        for eps, attack in attacks:
            _, robust = correct_points(model, split, attack)
            correct, total = int(robust.sum()), len(robust)
            row = {"attack": attack_call(attack), "eps": eps, "accuracy": correct / total, "correct": correct}
            found.append(row | {"points": total, "by_point": pack(robust)})
        return found

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    parts = [f"{row['accuracy']:.1%} after {row['attack']}" for row in rows]
    return f"Of {rows[0]['points']} images, still classified correctly: {', '.join(parts)}."


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "fgsm-and-pgd",
        "Accuracy under one step and under ten",
        "The share of test images still classified correctly after one step of the attack (FGSM) and after ten (PGD), at "
        "each size of the change.",
    )
    panels = {"FGSM": Panel("After FGSM", percent=True), "PGD": Panel("After PGD, 10 steps", percent=True)}
    points = [Point(method_of(row), attack_label(row["attack"]), row["eps"], row["accuracy"]) for row in rows]
    return draw_curves(points, methods, heading, panels, eps_axis())
