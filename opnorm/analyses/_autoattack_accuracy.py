"""Robust accuracy by AutoAttack, with signs of gradient masking."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_autoattack
from opnorm._core.kept_parts import kept
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Row, Rows, register
from opnorm.analyses._shared.by_point import pack
from opnorm.analyses._shared.points import attack_label, attacked_at_once, batches, clean_cells, first
from opnorm.attacks import AutoAttack, autoattack
from opnorm.attacks.gradient_masking import check_gradient_masking
from opnorm.attacks.result import AttackResult, StageResult, attack_call, join_results
from opnorm.data import Dataset
from opnorm.report import Column, Stat, norm_name


@register("accuracy and robustness")
def autoattack_accuracy(
    norm: float = math.inf,
    eps: float = 8 / 255,
    version: str = "standard",
    points: int | None = 100,
    seed: int = 0,
) -> Analysis:
    """The share of test points that are robust to AutoAttack, and signs of masked gradients, which would make it too high.

    Of the first ``points``; ``version`` is "standard" (as published), "plus", "rand" or "fast", see
    :func:`opnorm.attacks.autoattack`.

    Returns:
        One row: norm, eps, clean_accuracy, clean_correct, accuracy, low and high (the 95 % interval of accuracy), correct,
        points, attack, by_point (see :func:`accuracy`),
        misclassified (points, by attack), masking_passed, masking (the reasons), notes.

    Source: Croce & Hein 2020 (ICML).
    """
    check_sample(points, seed)
    check_autoattack(norm=norm, eps=eps, version=version)
    attack = autoattack(norm, eps, version=version, seed=seed)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = (torch.cat(parts) for parts in zip(*batches(first(data, points), model), strict=True))
        size = attacked_at_once(x)
        parts = zip(x.split(size), y.split(size), strict=True)
        result = join_results([_kept_result(attack, model, *part) for part in parts])
        masking = check_gradient_masking(model, x, y, result, norm=norm, eps=eps, random=version == "rand")
        low, high = result.interval
        row = {"norm": f"{norm:g}", "eps": eps, "clean_accuracy": result.clean_accuracy}
        row["clean_correct"] = int(result.correct.sum())
        row |= {"accuracy": result.robust_accuracy, "low": low, "high": high}
        row |= {"correct": int(result.robust.sum()), "points": len(y), "attack": attack_call(attack)}
        row["by_point"] = pack(result.robust)
        row["misclassified"] = {stage.name: stage.misclassified for stage in result.stages}
        row |= {"masking_passed": masking.passed, "masking": masking.summary, "notes": list(result.notes)}
        return [row]

    return Analysis(rows, sentence, columns, caution=caution)


def _kept_result(attack: AutoAttack, model: nn.Module, x: Tensor, y: Tensor) -> AttackResult:
    def evaluate() -> dict[str, Any]:
        result = attack.evaluate(model, x, y)
        return vars(result) | {"stages": [stage._asdict() for stage in result.stages]}

    found = kept(evaluate, x, y)
    stages = tuple(StageResult(**stage) for stage in found["stages"])
    return AttackResult(**found | {"stages": stages, "notes": tuple(found["notes"])})


def sentence(rows: Rows) -> str:
    row = rows[0]
    return (
        f"{row['accuracy']:.1%} of {row['points']} test images are robust to {row['attack']} "
        f"(95 % interval {row['low']:.1%} to {row['high']:.1%}); {row['masking'].rstrip('.').replace(chr(10), '; ')}."
    )


def caution(rows: Rows) -> str:
    found = [row for row in rows if not row["masking_passed"] or row["notes"]]
    if not found:
        return ""
    signs = "; ".join(
        [
            *(row["masking"].replace("\n", "; ") for row in found if not row["masking_passed"]),
            *found[0]["notes"],
        ]
    )
    return f"the accuracy under AutoAttack may mislead: {signs.rstrip('.?')}."


def columns(rows: Rows) -> Cells:
    found: Cells = clean_cells(rows[0])
    for row in rows:
        label = f"{attack_label(row['attack'])} {norm_name(row['norm'])} {row['eps']:.3g}"
        help = f"Share of {row['points']} test images that are robust to {row['attack']}."
        column = Column(f"autoattack_{row['norm']}", label, "percent", "high", help)
        found.append((column, Stat.share(row["correct"], row["points"])))
    return found
