"""Accuracy against ε as Roth, Kilcher & Hofmann measure it."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from opnorm._core.attack_settings import check_radii, check_settings
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.by_point import pack
from opnorm.analyses._shared.points import amounts, at_any_radius, correct_points
from opnorm.attacks import pgd
from opnorm.attacks.result import attack_call
from opnorm.data import Dataset, Split
from opnorm.report import Chart, Heading, accuracy_against_eps, norm_name


@register("accuracy and robustness")
def roth_robust_accuracy(
    norm: float = 2,
    eps: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1),
    steps: int = 10,
    step: float | None = None,
    points: int | None = 2000,
    seed: int = 0,
) -> Analysis:
    """The share of test points that projected gradient ascent leaves correct, at each of several radii.

    Of ``points`` random ones, all where there are fewer. As in the paper's curves, every radius is attacked by itself, by
    ``steps`` of Eq. 17 on cross-entropy from one uniformly random point of the ball, and the last iterate counts; so a
    curve may rise, and :func:`robust_accuracy` is the tighter upper bound. The paper does not give the length of a ``step``;
    when None it is 2.5 ε / steps. The norm is any from 1 on.

    Returns:
        One row a radius, the smallest first: norm, eps, accuracy, sem (its standard error over the points, as the paper
        shades), correct, points, attack, by_point (see :func:`accuracy`).

    Source: Roth, Kilcher & Hofmann 2020, section 5.1 and Fig. 3: 10 iterations, ℓ2 and ℓ∞, 2,000 test points.
    """
    check_sample(points, seed)
    check_radii("eps", eps, norm)
    check_settings(steps=steps, step=step)
    attacks = [
        (radius, pgd(norm, radius, steps, step, seed=seed, bf16=False, ascent="roth"))
        for radius in amounts(eps)
    ]

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        images, labels = data.test
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:points]
        split, found = Split(*(t[chosen.to(t.device)] for t in (images, labels))), []
        for radius, attack in attacks:
            _, robust = correct_points(model, split, attack)
            correct, total = int(robust.sum()), len(chosen)
            share = correct / total
            row = {"norm": f"{norm:g}", "eps": radius, "accuracy": share, "correct": correct, "points": total}
            row |= {"sem": math.sqrt(share * (1 - share) / total), "attack": attack_call(attack)}
            found.append(row | {"by_point": pack(robust)})
        return found

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    parts = [f"{row['accuracy']:.1%} at {norm_name(row['norm'])} ε = {row['eps']:.3g}" for row in rows]
    attack, points = at_any_radius(rows[0]["attack"]), rows[0]["points"]
    return f"Of {points} images, still classified correctly after {attack} at each radius alone: {', '.join(parts)}."


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "pga-curve",
        "Accuracy under projected gradient ascent",
        "The share of test images that are still classified correctly after ten steps of projected gradient ascent at each "
        "size of the change, every size attacked by itself. A line that stays high is a robust network.",
    )
    return accuracy_against_eps(rows, methods, heading)
