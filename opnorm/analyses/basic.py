"""Accuracy, robust accuracy, layer norms and margins of a trained model."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.attacks import AutoAttack, autoattack, pgd
from opnorm.attacks._pgd import Attack, check_logits
from opnorm.data import Dataset, Split
from opnorm.errors import SpecError
from opnorm.norms.table import measure
from opnorm.spec import factory

__all__ = ["Analysis", "Row", "accuracy", "margins", "norm_table", "robust_accuracy"]

Row = dict[str, Any]
Analysis = Callable[[nn.Module, Dataset], list[Row]]
"""(model, data) -> rows, ready for JSON."""

BATCH = 500


@factory("analysis")
def accuracy(split: str = "test") -> Analysis:
    """The share of points whose largest logit is the right one.

    Returns:
        One row: split, accuracy, correct, points.

    Raises:
        SpecError: a split other than "train" or "test".
    """
    choose = splitter(split)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        with evaluating(model):
            right = sum(int((logits.argmax(1) == y).sum()) for logits, y in logits_of(model, choose(data)))
        points = len(choose(data).labels)
        return [{"split": split, "accuracy": right / points, "correct": right, "points": points}]

    return analysis


@factory("analysis")
def robust_accuracy(
    norm: float = math.inf,
    eps: Sequence[float] = (2 / 255, 4 / 255, 8 / 255),
    steps: int = 20,
    restarts: int = 1,
    points: int | None = 500,
    seed: int = 0,
    attack: str = "pgd",
    largest_first: bool = False,
) -> Analysis:
    """The share of test points that stay right when an attack may move them by ε, for several ε.

    A point that is fooled at one ε counts as fooled at every larger one: the balls contain each other. All points count,
    those that are wrong from the beginning as fooled.

    Args:
        norm: of the ball: 2 or inf.
        eps: radii, in pixel values of [0, 1].
        steps: of PGD at each radius, on cross-entropy.
        restarts: random starts of PGD at each radius.
        points: the first so many test points, 500 unless told otherwise; all when None.
        seed: of the random starts.
        attack: "pgd"; "apgd", the gradient attacks of AutoAttack (APGD-CE, then APGD-T against 9 classes), which are
            stronger; or "autoattack", with FAB-T and Square after them, which cost most and on honest networks hardly
            ever find more.
        largest_first: a point that stands one ε counts as standing at every smaller one, and is not attacked there. That
            saves a third or more of the passes and is still an upper bound of the truth, but a higher one where
            an attack misses in a large ball what it finds in a small one, which networks with masked gradients bring about.

    Returns:
        One row a radius, the smallest first: norm, eps, accuracy, correct, points, attack.

    Raises:
        SpecError: no radius, fewer than 1 point, or an attack of another name.
        AttackError: a setting that makes no sense.

    Source: Madry et al. 2018 (PGD); Croce & Hein 2020 (AutoAttack).
    """
    radii = sorted(set(eps if isinstance(eps, Sequence) else [eps]))
    if not radii or (points is not None and points < 1):
        raise SpecError(f"eps={eps!r}, points={points!r}: expected at least one radius and one point")
    if attack not in ("pgd", "apgd", "autoattack"):
        raise SpecError(f"attack={attack!r} is not known; expected pgd, apgd or autoattack")
    of_radius, name = _attacks(attack, norm, steps, restarts, seed)
    strikes = {radius: of_radius(radius) for radius in radii}
    together = strikes[radii[0]] if attack == "apgd" and largest_first else None  # all radii in one batch

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        split = data.test if points is None else Split(data.test.images[:points], data.test.labels[:points])
        standing = dict.fromkeys(radii, 0)
        for x, y in batches(split, model):
            if isinstance(together, AutoAttack):
                for radius, robust in zip(radii, together.robust_at(model, x, y, radii), strict=True):
                    standing[radius] += int(robust.sum())
                continue
            with evaluating(model):
                logits = model(x)
            check_logits(logits, y)
            right, stood = logits.argmax(1) == y, 0
            x, y = x[right], y[right]
            for radius, strike in reversed(strikes.items()) if largest_first else strikes.items():
                held = _standing(model, strike, x, y)
                stood = int(held.sum()) + (stood if largest_first else 0)
                standing[radius] += stood
                open_ = ~held if largest_first else held
                x, y = x[open_], y[open_]
        total = len(split.labels)
        return [
            {
                "norm": f"{norm:g}",
                "eps": radius,
                "accuracy": held / total,
                "correct": held,
                "points": total,
                "attack": name,
            }
            for radius, held in standing.items()
        ]

    return analysis


def _standing(model: nn.Module, strike: Attack, x: Tensor, y: Tensor) -> Tensor:
    if not len(x):  # there are networks that take no empty batch
        return torch.zeros_like(y, dtype=torch.bool)
    moved = strike(model, x, y)
    with evaluating(model):
        held: Tensor = model(moved).argmax(1) == y
    return held


def _attacks(
    attack: str, norm: float, steps: int, restarts: int, seed: int
) -> tuple[Callable[[float], Attack], str]:
    """An attack of a given radius, and its name."""
    if attack == "pgd":
        settings: dict[str, Any] = {"restarts": restarts, "stop_at_success": True, "seed": seed}
        return (
            lambda eps: pgd(norm, eps, steps, **settings),
            f"PGD-{steps}, {restarts} start{'s' * (restarts > 1)}",
        )
    if attack == "apgd":
        # one start, as published: it is asked of every network of a study
        chosen: dict[str, Any] = {"attacks": ("apgd-ce", "apgd-t"), "seed": seed, "restarts": 1}
        return lambda eps: autoattack(norm, eps, **chosen), "APGD-CE, APGD-T"
    return lambda eps: autoattack(norm, eps, seed=seed), "AutoAttack standard"


@factory("analysis")
def norm_table(ords: Sequence[float] = (1, 2, math.inf)) -> Analysis:
    """The operator norms of every layer.

    Returns:
        One row a layer, in the order of the forward pass; see :class:`opnorm.norms.LayerNorms`.
    """

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = next(batches(data.test, model))
        return [row.as_dict() for row in measure(model, x[:1], tuple(ords)).rows]

    return analysis


@factory("analysis")
def margins(split: str = "test") -> Analysis:
    """The margin of every point, f_y - max_{i≠y} f_i: above 0 where the point is right (Wen et al. 2020, Figs. 4, 5).

    Returns:
        One row: split, points, margins (a list, in the order of the data).

    Raises:
        SpecError: a split other than "train" or "test".
    """
    choose = splitter(split)

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        values: list[float] = []
        with evaluating(model):
            for logits, y in logits_of(model, choose(data)):
                others = logits.scatter(1, y[:, None], -math.inf).amax(1)
                values += (logits.gather(1, y[:, None]).squeeze(1) - others).tolist()
        return [{"split": split, "points": len(values), "margins": [float(f"{v:.6g}") for v in values]}]

    return analysis


def splitter(split: str) -> Callable[[Dataset], Split]:
    """What takes "train" or "test" out of a data set; SpecError for another name."""
    if split not in ("train", "test"):
        raise SpecError(f"split={split!r}: expected 'train' or 'test'")
    return lambda data: data.train if split == "train" else data.test


def batches(split: Split, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels in [0, 1] and labels, where the model is."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        yield images.to(device).float() / 255, labels.to(device)


def logits_of(model: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels, batch by batch, in the model's own mode."""
    for x, y in batches(split, model):
        logits = model(x)
        check_logits(logits, y)
        yield logits, y
