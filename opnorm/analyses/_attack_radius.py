"""The radius of adversarial training by Roth's rule: the smallest at which an attack succeeds on almost all points."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from opnorm._core.attack_settings import check_settings
from opnorm._core.settings import check_number, check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Row, Rows, register
from opnorm.analyses._shared.points import at_any_radius, correct_after, first, logits_of
from opnorm.attacks import Attack, pgd
from opnorm.attacks.result import attack_call
from opnorm.data import Dataset
from opnorm.report import Column, norm_name

SMALLEST = 1 / 255  # the first radius that is tried
RESOLUTION = torch.finfo(torch.float32).eps / 2  # of pixels in [0, 1]


@register("accuracy and robustness")
def attack_radius(
    norm: float = 2,
    share: float = 0.99,
    steps: int = 10,
    points: int | None = 500,
    precision: float = 0.05,
    seed: int = 0,
) -> Analysis:
    """The smallest radius at which an attack succeeds on almost all inputs of a network.

    Of a network trained without attacks it is the radius for adversarial training. The attack is that of
    :func:`roth_robust_accuracy`, at those of the first ``points`` that are correct; success is taken to grow with it.

    Args:
        norm: of the ball: 1, 2, inf, or any other p from 1 on.
        share: what "almost all" means; the paper gives no number.
        steps: of the attack.
        points: number of test points.
        precision: of the radius, relative, of a bisection.
        seed: of the attack.

    Returns:
        One row: norm, share, attack, points (those that were attacked), eps (in pixel values of [0, 1], at which the share
        is reached), reason (of a None: no point is correct, or the share is not reached where the ball holds all images).

    Source: Roth, Kilcher & Hofmann 2020, section 5.1.
    """
    check_number("share", share, "a fraction above 0, at most 1", above=0, most=1)
    check_number("precision", precision, "a relative precision above 0, such as 0.05", above=0)
    check_sample(points, seed)
    check_settings(any_norm=True, norm=norm, steps=steps)

    def attack(eps: float) -> Attack:
        return pgd(norm, eps, steps, seed=seed, bf16=False, ascent="roth")

    call = at_any_radius(attack_call(attack(SMALLEST)))  # raises what is wrong with the settings

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        attacked = []
        for x, y, logits in logits_of(model, first(data, points)):
            correct = logits.argmax(1) == y
            attacked.append((x[correct], y[correct]))
        many = sum(len(y) for _, y in attacked)

        def succeeds(eps: float) -> bool:
            robust = torch.cat([correct_after(model, x, y, attack(eps)) for x, y in attacked])
            return float((~robust).double().mean()) >= share

        row: dict[str, Any] = {"norm": f"{norm:g}", "share": share, "attack": call, "points": many}
        if not many:
            return [row | {"eps": None, "reason": "no test point is classified correctly"}]
        pixels = math.prod(attacked[0][0].shape[1:])
        largest = float(pixels ** (0 if math.isinf(norm) else 1 / norm))  # this ball holds [0, 1]
        eps = _smallest(succeeds, largest, precision)
        reason = (
            f"the attack succeeds on less than {share:.0%} of the points at any radius up to {largest:.4g}"
        )
        return [row | {"eps": eps, "reason": reason if eps is None else ""}]

    return Analysis(rows, sentence, columns)


def _smallest(succeeds: Callable[[float], bool], largest: float, precision: float) -> float | None:
    """The smallest radius of success up to a relative precision, by doubling or halving, and bisection; None without one.

    Below the resolution of a pixel no smaller one is looked for.
    """
    high = min(SMALLEST, largest)
    if succeeds(high):
        while high > RESOLUTION and succeeds(high / 2):
            high /= 2
        if high <= RESOLUTION:
            return high
    else:
        while not succeeds(high):
            if high == largest:
                return None
            high = min(2 * high, largest)
    low = high / 2
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if succeeds(middle) else (middle, high)
    return high


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        found = f"not known: {row['reason']}" if row["eps"] is None else f"{row['eps']:.3g}"
        parts.append(
            f"for {row['share']:.0%} of {row['points']} correct images in {norm_name(row['norm'])}, {found}"
        )
    return f"The smallest radius at which {rows[0]['attack']} succeeds: {'; '.join(parts)}."


def columns(rows: Rows) -> Cells:
    return [
        (
            Column(
                f"attack_radius_{row['norm']}",
                f"{norm_name(row['norm'])} ε of success",
                "number",
                "high",
                f"The smallest radius at which the attack succeeds on {row['share']:.0%} of the correct test images.",
            ),
            row["eps"],
        )
        for row in rows
    ]
