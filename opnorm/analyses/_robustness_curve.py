"""The smallest radius at which each point is misclassified, and accuracy against ε."""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_radii, check_settings
from opnorm._core.kept_parts import in_parts
from opnorm._core.settings import check_count, check_sample
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import amounts, at_any_radius, attacked_at_once, batches, first
from opnorm.attacks import Attack, pgd
from opnorm.attacks.minimum_norm import accuracy_curve, minimal_eps
from opnorm.attacks.result import attack_call
from opnorm.data import Dataset
from opnorm.report import Chart, Heading, accuracy_against_eps, norm_name


@register("accuracy and robustness")
def robustness_curve(
    norm: float = math.inf,
    eps: Sequence[float] = (0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255),
    steps: int = 20,
    halvings: int = 6,
    points: int | None = 200,
    seed: int = 0,
) -> Analysis:
    """The smallest radius at which PGD finds an adversarial point, for each test point, and the accuracy against ε.

    Of the first ``points``. ``eps`` are the radii of the curve; the largest is the largest that is tried. Each point's
    radius is found on a grid of 2^``halvings`` (at most 24), or where PGD's own point is closer.

    Returns:
        One row: norm, attack, points, minimal_eps (a list in the order of the data: 0 where the clean point is
        misclassified, None where PGD failed at the largest radius), eps and accuracy (lists; the accuracy never rises and
        is an upper bound).

    Source: the curves of Roth et al. 2020, Fig. 3.
    """
    check_radii("eps", eps, norm, all_zero=False)
    check_settings(steps=steps)
    check_count("halvings", halvings, 0)
    check_sample(points, seed)
    radii = amounts(eps)

    def attack(radius: float) -> Attack:
        return pgd(norm, radius, steps, stop_at_success=True, seed=seed)

    call = at_any_radius(attack_call(attack(radii[-1])))  # raises what is wrong with the settings

    def rows(model: nn.Module, data: Dataset) -> list[Row]:

        def closest(x: Tensor, y: Tensor) -> Tensor:
            return minimal_eps(model, x, y, attack, norm, radii[-1], halvings).distance

        parts = batches(first(data, points), model)
        distance = torch.cat([in_parts(closest, x, y, size=attacked_at_once(x)) for x, y in parts])
        row = {"norm": f"{norm:g}", "attack": f"{call} with ε by bisection", "points": len(distance)}
        row["minimal_eps"] = [d if d < math.inf else None for d in distance.tolist()]
        return [row | {"eps": radii, "accuracy": accuracy_curve(distance, radii).tolist()}]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        half = statistics.median(math.inf if d is None else d for d in row["minimal_eps"])
        unbroken = f"fewer than half up to {row['eps'][-1]:.3g}"
        end = f"half of them at {half:.3g}" if half < math.inf else unbroken
        parts.append(f"in {norm_name(row['norm'])} {end}")
    return f"Test images that become misclassified: {'; '.join(parts)} (smallest ε found by {rows[0]['attack']})."


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "robustness-curve",
        "Robustness curve",
        "For each test image, the smallest change that leads to a wrong class was searched for; the chart shows the share "
        "of images that need more than ε. At 0 nothing is changed. A line that stays high is a robust network.",
    )
    flat = [
        {**row, "eps": eps, "accuracy": accuracy}
        for row in rows
        for eps, accuracy in zip(row["eps"], row["accuracy"], strict=True)
    ]
    return accuracy_against_eps(flat, methods, heading)
