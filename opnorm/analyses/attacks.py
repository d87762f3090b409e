"""Robustness as each paper measures it, and per point: the smallest radius at which an attack succeeds."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.analyses.basic import Analysis, Row, batches
from opnorm.analyses.points import amounts, check_count
from opnorm.attacks import Attack, AutoAttack, fgsm, pgd
from opnorm.attacks.minimum_norm import accuracy_curve, minimal_eps
from opnorm.data import Dataset, Split
from opnorm.errors import SpecError
from opnorm.runs.attack_evaluation import evaluate
from opnorm.spec import factory

__all__ = [
    "autoattack_accuracy",
    "liu_robust_accuracy",
    "loss_variation",
    "robustness_curve",
    "wen_robust_accuracy",
]


@factory("analysis")
def autoattack_accuracy(
    norm: float = math.inf,
    eps: float = 8 / 255,
    version: str = "standard",
    points: int | None = 100,
    seed: int = 0,
) -> Analysis:
    """The share of test points that are robust against AutoAttack, and whether gradients are masked.

    Args:
        norm: of the ball: 1, 2 or inf.
        eps: radius, in pixel values of [0, 1].
        version: "standard", "plus" or "rand"; see :func:`opnorm.attacks.autoattack`.
        points: the first so many test points, 100 unless told otherwise; all when None.
        seed: of the attack.

    Returns:
        One row: norm, eps, clean_accuracy, accuracy, low and high (the 95 % interval of accuracy), correct, points,
        attack, misclassified (points, by attack), masking_passed, masking (the reasons), notes.

    Raises:
        SpecError: fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Croce & Hein 2020 (ICML).
    """
    attack = AutoAttack(norm, eps, version, seed=seed)
    _check_points(points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, y = (torch.cat(part) for part in zip(*batches(_first(data, points), model), strict=True))
        done = evaluate(model, x, y, attack)
        result, (low, high) = done.result, done.result.interval
        return [
            {
                "norm": f"{norm:g}",
                "eps": eps,
                "clean_accuracy": result.clean_accuracy,
                "accuracy": result.robust_accuracy,
                "low": low,
                "high": high,
                "correct": int(result.robust.sum()),
                "points": len(y),
                "attack": f"AutoAttack {version}",
                "misclassified": {stage.name: stage.misclassified for stage in result.stages},
                "masking_passed": done.masking.passed,
                "masking": done.masking.summary,
                "notes": list(result.notes),
            }
        ]

    return analysis


@factory("analysis")
def wen_robust_accuracy(
    eps: float = 8 / 255, step: float = 2 / 255, steps: int = 10, points: int | None = 500, seed: int = 0
) -> Analysis:
    """Of the test points that are right at first, the share that ℓ∞ PGD leaves right.

    Not the share of all points: a model that is right less often may score higher.

    Args:
        eps: radius, in pixel values of [0, 1].
        step: length of a step.
        steps: of PGD, from a random start.
        points: the first so many test points, 500 unless told otherwise; all when None.
        seed: of the random starts.

    Returns:
        One row: eps, accuracy (None where no point was right), correct, points (those that were right), of (all), attack.

    Raises:
        SpecError: fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Wen, Li & Jia 2020, section 4: 10 steps of 2/255, at most 8/255.
    """
    attack = pgd(math.inf, eps, steps, step, seed=seed)
    _check_points(points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        split = _first(data, points)
        right, held = _stand(model, split, attack)
        return [
            {
                "eps": eps,
                "accuracy": held / right if right else None,
                "correct": held,
                "points": right,
                "of": len(split.labels),
                "attack": f"PGD-{steps}",
            }
        ]

    return analysis


@factory("analysis")
def loss_variation(
    eps: Sequence[float] = (1 / 255, 2 / 255, 4 / 255),
    steps: int = 10,
    points: int | None = 500,
    seed: int = 0,
) -> Analysis:
    """How much the loss of a test point changes at most within ε: mean and standard deviation over the points.

    Of each point, max |CE(f(x*), y) - CE(f(x), y)| over the x* that ℓ∞ PGD finds at this radius and at the smaller ones,
    with steps of ε / 4, the ratio of the paper's attack. Changes are from below, as PGD need not find the largest.

    Args:
        eps: radii, in pixel values of [0, 1].
        steps: of PGD at each radius, from a random start.
        points: the first so many test points, 500 unless told otherwise; all when None.
        seed: of the random starts.

    Returns:
        One row a radius, the smallest first: eps, mean, std (divides by the number of points), points.

    Raises:
        SpecError: no radius, or fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Wen, Li & Jia 2020, B.5, Fig. 8 and Table 1.
    """
    attacks = {radius: pgd(math.inf, radius, steps, radius / 4, seed=seed) for radius in amounts("eps", eps)}
    _check_points(points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        found: dict[float, list[Tensor]] = {radius: [] for radius in attacks}
        for x, y in batches(_first(data, points), model):
            largest = torch.zeros(len(y), dtype=torch.float64, device=x.device)
            clean = _loss(model, x, y)
            for radius, attack in attacks.items():
                largest = torch.maximum(largest, (_loss(model, attack(model, x, y), y) - clean).abs())
                found[radius].append(largest)
        rows = []
        for radius, parts in found.items():
            changes = torch.cat(parts)
            spread = float(changes.std(correction=0))
            rows.append({"eps": radius, "mean": float(changes.mean()), "std": spread, "points": len(changes)})
        return rows

    return analysis


@factory("analysis")
def liu_robust_accuracy(
    fgsm_eps: Sequence[float] = (0.01, 0.03, 0.05),
    pgd_eps: Sequence[float] = (0.01, 0.03),
    points: int | None = 500,
    seed: int = 0,
) -> Analysis:
    """The share of test points that are right after FGSM, and after PGD with 10 steps, at the radii of the paper.

    Each attack and radius stands for itself, as in the paper's tables, so FGSM may do less at a larger radius. The paper
    does not give the steps' length; it is ε / 4.

    Args:
        fgsm_eps: ℓ∞ radii of FGSM, in pixel values of [0, 1].
        pgd_eps: ℓ∞ radii of PGD10.
        points: the first so many test points, 500 unless told otherwise; all when None.
        seed: of PGD's random starts.

    Returns:
        One row an attack and radius: attack, eps, accuracy, correct, points.

    Raises:
        SpecError: no radius, or fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: Liu et al. 2020, Tables 1 to 4: ε = 0.03 for MNIST; 0.05, 0.03, 0.01 (FGSM) and 0.03, 0.01 (PGD10) for CIFAR-10.
    """
    attacks: list[tuple[str, float, Attack]] = [
        ("FGSM", radius, fgsm(radius)) for radius in amounts("fgsm_eps", fgsm_eps)
    ]
    attacks += [
        ("PGD10", radius, pgd(math.inf, radius, 10, seed=seed)) for radius in amounts("pgd_eps", pgd_eps)
    ]
    _check_points(points)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        rows, split = [], _first(data, points)
        for name, radius, attack in attacks:
            _, held = _stand(model, split, attack)
            total = len(split.labels)
            rows.append(
                {"attack": name, "eps": radius, "accuracy": held / total, "correct": held, "points": total}
            )
        return rows

    return analysis


@factory("analysis")
def robustness_curve(
    norm: float = math.inf,
    eps: Sequence[float] = (0, 1 / 255, 2 / 255, 4 / 255, 8 / 255, 16 / 255, 32 / 255),
    steps: int = 20,
    halvings: int = 6,
    points: int | None = 200,
    seed: int = 0,
) -> Analysis:
    """The smallest radius at which PGD fools each test point, and from these the accuracy against ε, which never rises.

    Args:
        norm: of the ball: 1, 2 or inf.
        eps: radii of the curve, in pixel values of [0, 1]; the largest is the largest that is tried.
        steps: of PGD at each radius that the bisection tries.
        halvings: each point's radius is found on a grid of 2^halvings, or where PGD's own point is closer.
        points: the first so many test points, 200 unless told otherwise; all when None.
        seed: of the random starts.

    Returns:
        One row: norm, attack, points, minimal_eps (a list in the order of the data: 0 where the clean point is wrong, None
        where PGD failed at the largest radius), eps and accuracy (lists; accuracy is an upper bound of the truth).

    Raises:
        SpecError: no radius above 0, or fewer than 1 point.
        AttackError: a setting that makes no sense.

    Source: the curves of Roth et al. 2020, Fig. 3.
    """
    radii = amounts("eps", eps)
    if (
        radii[-1] == 0
        or isinstance(halvings, bool)
        or not isinstance(halvings, int)
        or not 0 <= halvings <= 24
    ):
        raise SpecError(
            f"eps={eps!r}, halvings={halvings!r}: expected a radius above 0, and 0 to 24 halvings"
        )
    _check_points(points)

    def attack(radius: float) -> Attack:
        return pgd(norm, radius, steps, stop_at_success=True, seed=seed)

    attack(radii[-1])  # so that what is wrong with the settings is said now

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        distance = torch.cat(
            [
                minimal_eps(model, x, y, attack, norm, radii[-1], halvings).distance
                for x, y in batches(_first(data, points), model)
            ]
        )
        return [
            {
                "norm": f"{norm:g}",
                "attack": f"PGD-{steps}, bisection",
                "points": len(distance),
                "minimal_eps": [d if d < math.inf else None for d in distance.tolist()],
                "eps": radii,
                "accuracy": accuracy_curve(distance, radii).tolist(),
            }
        ]

    return analysis


def _check_points(points: int | None) -> None:
    if points is not None:
        check_count(points=points)


def _first(data: Dataset, points: int | None) -> Split:
    return Split(data.test.images[:points], data.test.labels[:points])


def _stand(model: nn.Module, split: Split, attack: Attack) -> tuple[int, int]:
    """How many points are right without the attack, and of these after it."""
    right = held = 0
    for x, y in batches(split, model):
        with evaluating(model):
            at_first = model(x).argmax(1) == y
        x, y = x[at_first], y[at_first]
        if len(x):
            moved = attack(model, x, y)
            with evaluating(model):
                held += int((model(moved).argmax(1) == y).sum())
        right += len(x)
    return right, held


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each point (B,), in float64."""
    with evaluating(model):
        return F.cross_entropy(model(x).double(), y, reduction="none")
