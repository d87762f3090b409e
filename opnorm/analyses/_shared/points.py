"""Points of analyses: batches and samples, attacked versions, checks of settings, summaries."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.analyses._shared.analysis import Row
from opnorm.attacks import Attack, pgd
from opnorm.attacks._checks import check_logits, is_amount
from opnorm.data import Dataset, Split
from opnorm.errors import AttackError, SpecError
from opnorm.report import Point, significant

__all__ = [
    "ROTH_ATTACK",
    "amounts",
    "attacked",
    "batches",
    "by_rank",
    "check_count",
    "check_norm",
    "check_points",
    "choose_split",
    "correct_after",
    "correct_points",
    "cross_entropy",
    "first",
    "in_double",
    "logits_of",
    "random_network",
    "sample",
    "six_digits",
    "split_name",
    "summary",
]

BATCH = 500
ROTH_ATTACK = pgd(norm=2, eps=0.5)
RANKS = 40  # points on a line


def check_count(**counts: int) -> None:
    """SpecError unless each is a whole number of at least 1."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SpecError(f"{name}={count!r}: expected a whole number of at least 1")


def amounts(name: str, values: float | Sequence[float], zero: bool = True) -> list[float]:
    """Numbers from 0 on (or above 0), the smallest first; SpecError for anything else, and for none."""
    many = list(values) if isinstance(values, Sequence) else [values]
    if not many or not all(is_amount(v) and (zero or v > 0) for v in many):
        raise SpecError(
            f"{name}={values!r}: expected one or more numbers {'from 0 on' if zero else 'above 0'}"
        )
    return sorted(set(many))


def check_norm(norm: float) -> None:
    """SpecError unless it is 1, 2 or inf."""
    if isinstance(norm, bool) or norm not in (1, 2, math.inf):
        raise SpecError(f"norm={norm!r} is not known here; expected 1, 2 or inf")


def choose_split(split: str) -> Callable[[Dataset], Split]:
    """A function that takes "train" or "test" out of a data set; SpecError for another name."""
    if split not in ("train", "test"):
        raise SpecError(f"split={split!r}: expected 'train' or 'test'")
    return lambda data: data.train if split == "train" else data.test


def split_name(row: Row) -> str:
    """The name of a row's split in a sentence."""
    return "training" if row["split"] == "train" else "test"


def check_points(points: int | None) -> None:
    """SpecError unless it is a whole number of at least 1, or None for all points."""
    if points is not None:
        check_count(points=points)


def first(data: Dataset, points: int | None) -> Split:
    """The first so many test points; all when None."""
    return Split(data.test.images[:points], data.test.labels[:points])


def batches(split: Split, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels in [0, 1] and labels, on the model's device."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        yield images.to(device).float() / 255, labels.to(device)


def logits_of(model: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and labels batch by batch, in eval mode and without gradients."""
    with evaluating(model):
        for x, y in batches(split, model):
            logits = model(x)
            check_logits(logits, y)
            yield logits, y


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each point (B,), in float64: in float32 that of a confident answer rounds to 0."""
    return F.cross_entropy(logits.double(), y, reduction="none")


def correct_points(
    model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each batch, the points that the model classifies correctly, and their labels."""
    for x, y in batches:
        with evaluating(model):
            correct = model(x).argmax(1) == y
        yield x[correct], y[correct]


def correct_after(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Whether the model still classifies each point correctly after the attack, (B,)."""
    if not len(x):  # some networks take no empty batch
        return torch.zeros_like(y, dtype=torch.bool)
    moved = attack(model, x, y)
    with evaluating(model):
        correct: Tensor = model(moved).argmax(1) == y
    return correct


def sample(model: nn.Module, data: Dataset, points: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random test points, pixels in [0, 1], and their labels, in the order of the data, where the model is.

    Raises:
        SpecError: there are fewer.
    """
    split = data.test
    if points > len(split.labels):
        raise SpecError(f"points={points}: {data.name} has {len(split.labels)} test points; ask for fewer")
    chosen = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(seed))[:points]
    chosen = chosen.sort().values.to(split.images.device)
    parameter = next(model.parameters(), torch.zeros(()))
    x = split.images[chosen].to(parameter.device, parameter.dtype) / 255
    return x, split.labels[chosen].to(parameter.device)


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int) -> Tensor:
    """The attacked points.

    Raises:
        AttackError: one of them did not move, so that there is no direction.
    """
    found = attack(model, x, y, seed=seed)
    still = int(((found - x).flatten(1).abs().amax(1) == 0).sum())
    if still:
        raise AttackError(f"the attack left {still} of {len(x)} points where they are; is its eps 0?")
    return found


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64, in eval mode: differences over short distances are lost in float32's rounding."""
    return copy.deepcopy(model).double().eval()


def random_network(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the network with new weights: every module that has ``reset_parameters`` is initialized again."""
    fresh = copy.deepcopy(model).cpu()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in fresh.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
    return fresh.to(next((p.device for p in model.parameters()), torch.device("cpu")))


def summary(values: Tensor) -> dict[str, Any]:
    """Mean and standard error over the points (the first axis) to six digits: ``mean``, ``sem``; numbers or lists."""
    error = values.std(0) / math.sqrt(len(values)) if len(values) > 1 else torch.zeros_like(values[0])
    return {"mean": six_digits(values.mean(0)), "sem": six_digits(error)}


def six_digits(values: Tensor) -> Any:
    """A number, or a list of numbers, to six significant digits; more would only make the files larger."""
    numbers = values.tolist()
    return [significant(v, 6) for v in numbers] if isinstance(numbers, list) else significant(numbers, 6)


def by_rank(method: str, panel: str, values: Sequence[float]) -> list[Point]:
    """Points of a curve by rank: at most 40 ranks, evenly on a log scale, the first and the last among them."""
    ranks = {round(len(values) ** (k / (RANKS - 1))) for k in range(RANKS)} if values else set()
    return [Point(method, panel, float(rank), values[rank - 1]) for rank in sorted(ranks)]
