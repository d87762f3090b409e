"""Robust accuracy at several radii, by PGD or by the attacks of AutoAttack."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import GRADIENT_ATTACKS, check_evaluation
from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Row, Rows, register
from opnorm.analyses._shared.by_point import pack
from opnorm.analyses._shared.points import (
    amounts,
    at_any_radius,
    attack_label,
    attacked_at_once,
    clean_cells,
    correct_after,
    first,
    logits_of,
)
from opnorm.attacks import Attack, AutoAttack, autoattack, pgd
from opnorm.attacks.result import attack_call
from opnorm.data import Dataset
from opnorm.report import Column, Stat, accuracy_against_eps, norm_name


@register("accuracy and robustness", "robust_accuracy()", "robust_accuracy(norm=2, eps=(0.25, 0.5, 1))")
def robust_accuracy(
    norm: float = math.inf,
    eps: Sequence[float] = (2 / 255, 4 / 255, 8 / 255),
    steps: int = 20,
    restarts: int | None = None,
    points: int | None = 500,
    seed: int = 0,
    *,
    attack: str = "pgd",
    version: str = "standard",
    largest_first: bool = False,
) -> Analysis:
    """The share of test points that no attack of radius ε changes to a wrong class, for several ε.

    Of the first ``points``. A point that is misclassified at one ε counts as misclassified at every larger one: the balls
    contain each other. Points that are misclassified without an attack count as not robust.

    ``attack`` is "pgd", with ``steps`` at each radius on cross-entropy; "apgd", the gradient attacks of AutoAttack (APGD-CE,
    then APGD-T against 9 classes), which are stronger; or "autoattack", with FAB-T and Square after them, which cost most
    and hardly ever find more unless gradients are masked. ``version`` is "standard" (AutoAttack as published) or "fast", see
    :func:`opnorm.attacks.autoattack`. ``restarts`` are random starts of PGD (1 when None) or APGD-CE (the version's own).

    ``largest_first``: a point that is robust at one ε counts as robust at every smaller one, and is not attacked there. That
    saves a third or more of the passes and is still an upper bound of the truth, but a higher one where an attack misses in
    a large ball what it finds in a small one, as happens with masked gradients.

    Returns:
        One row a radius, the smallest first: norm, eps, accuracy, correct, points, clean_correct (without an attack),
        attack, by_point (see :func:`accuracy`).

    Source: Madry et al. 2018 (PGD); Croce & Hein 2020 (AutoAttack).
    """
    check_sample(points, seed)
    check_evaluation(attack, norm, eps, steps, restarts, version)
    strength = steps if attack == "pgd" else version
    attacks = {r: _attack(attack, norm, r, strength, restarts, seed) for r in amounts(eps)}

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        clean, robust = 0, {radius: list[Tensor]() for radius in attacks}
        for x, y, logits in logits_of(model, first(data, points)):
            correct = logits.argmax(1) == y
            clean += int(correct.sum())
            for radius, part in _robust(model, x[correct], y[correct], attacks, largest_first).items():
                robust[radius].append(correct.masked_scatter(correct, part))
        return [
            {"norm": f"{norm:g}", "eps": radius}
            | _shares(torch.cat(parts))
            | {
                "clean_correct": clean,
                "attack": attack_call(attacks[radius]),
                "by_point": pack(torch.cat(parts)),
            }
            for radius, parts in robust.items()
        ]

    return Analysis(rows, sentence, columns, accuracy_against_eps)


def _attack(name: str, norm: float, eps: float, strength: Any, restarts: int | None, seed: int) -> Attack:
    """PGD with so many steps, or AutoAttack in this version, or its gradient attacks."""
    if name == "pgd":
        starts = 1 if restarts is None else restarts
        return pgd(norm, eps, strength, restarts=starts, stop_at_success=True, seed=seed)
    some = GRADIENT_ATTACKS if name == "apgd" else None
    return autoattack(norm, eps, version=strength, attacks=some, restarts=restarts, seed=seed)


def _shares(right: Tensor) -> Row:
    correct, points = int(right.sum()), len(right)
    return {"accuracy": correct / points, "correct": correct, "points": points}


def _robust(
    model: nn.Module, x: Tensor, y: Tensor, attacks: dict[float, Attack], largest_first: bool
) -> dict[float, Tensor]:
    """Whether each point, all correct, is robust, at each radius; a point whose answer is known is not attacked again."""
    radii = list(attacks)
    joint = attacks[radii[0]]
    if largest_first and len(x) and isinstance(joint, AutoAttack) and joint.names == GRADIENT_ATTACKS:
        # all radii in one batch
        robust = in_parts(lambda x, y: joint.robust_at(model, x, y, radii).T, x, y, size=attacked_at_once(x))
        return dict(zip(radii, robust.unbind(1), strict=True))
    found, robust = {}, torch.full_like(y, not largest_first, dtype=torch.bool)
    for radius in reversed(radii) if largest_first else radii:
        undecided = ~robust if largest_first else robust
        survived = correct_after(model, x[undecided], y[undecided], attacks[radius])
        robust = robust.masked_scatter(undecided, survived)
        found[radius] = robust
    return found


def sentence(rows: Rows) -> str:
    parts = [f"{row['accuracy']:.1%} at {norm_name(row['norm'])} ε = {row['eps']:.3g}" for row in rows]
    attack, points = at_any_radius(rows[0]["attack"]), rows[0]["points"]
    return f"Of {points} images, still classified correctly after {attack}: {', '.join(parts)}."


def columns(rows: Rows) -> Cells:
    """The largest radius of each norm, after the accuracy of the same points; the chart shows all."""
    largest = {row["norm"]: row for row in sorted(rows, key=lambda row: row["eps"])}
    found: Cells = clean_cells(rows[0])
    for norm, row in largest.items():
        label = f"{attack_label(row['attack'])} {norm_name(norm)} {row['eps']:.3g}"
        help = f"Share of {row['points']} test images still classified correctly after {row['attack']}; an upper bound."
        share = Stat.share(row["correct"], row["points"])
        found.append((Column(f"robust_{norm}", label, "percent", "high", help), share))
    return found
