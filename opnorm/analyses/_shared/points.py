"""Points of analyses: batches with logits, samples, attacked versions; checks of settings, and summaries."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.kept_parts import in_parts, kept
from opnorm._core.layers import in_float64, plain_copy
from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm.attacks import Attack, pgd
from opnorm.attacks._checks import check_logits
from opnorm.data import Dataset, Split
from opnorm.errors import AttackError, SpecError
from opnorm.report import Cell, Column, Point, Stat, significant

__all__ = [
    "JACOBIANS",
    "ROTH_ATTACK",
    "SPLITS",
    "amounts",
    "at_any_radius",
    "attack_label",
    "attacked",
    "attacked_at_once",
    "batches",
    "by_rank",
    "clean_cells",
    "correct_after",
    "correct_points",
    "cross_entropy",
    "first",
    "in_double",
    "logits_of",
    "random_network",
    "sample",
    "six_digits",
    "summary",
]

BATCH = 500
LARGEST = 2**28  # bytes of the logits of a split that are kept
ROTH_ATTACK = pgd(norm=2, eps=0.5)
ATTACKED_NUMBERS = 2**16  # in the inputs of a part that is attacked, where these are small
JACOBIANS = 20  # points of a part, where each has an explicit Jacobian
RANKS = 40  # points on a line
SPLITS = {"train": "training", "test": "test"}  # and their names in a sentence


def attack_label(call: str) -> str:
    """The short name of an attack for a column: "PGD", "APGD" or "AutoAttack", with the version; its help has the call."""
    name = {"pgd": "PGD", "fgsm": "FGSM", "autoattack": "AutoAttack"}.get(call.partition("(")[0], call)
    version = re.search(r'version="(\w+)"', call)
    return ("APGD" if "attacks=" in call else name) + (f" {version[1]}" if version else "")


def clean_cells(row: Mapping[str, Any]) -> list[tuple[Column, Cell]]:
    """The accuracy without an attack on the points of a row of robust accuracy, which is never below that.

    The accuracy of the whole split can be, where the points are not all of it. No column for rows that were kept before
    ``clean_correct`` was.
    """
    if "clean_correct" not in row:
        return []
    points = row["points"]
    help = f"Share of the {points} images that are attacked that is classified correctly without an attack."
    column = Column(f"clean_of_{points}", f"clean, first {points:,}", "percent", None, help)
    return [(column, Stat.share(row["clean_correct"], points))]


def at_any_radius(call: str) -> str:
    """The call of an attack without its radius, for rows at several of them."""
    return re.sub(r"\beps=[^,)]*(, )?", "", call)


def amounts(values: float | Sequence[float]) -> list[float]:
    """Numbers, or one, without repetitions, the smallest first."""
    return sorted({*values} if isinstance(values, Sequence) else {values})


def first(data: Dataset, points: int | None) -> Split:
    """The first so many test points; all when None."""
    return Split(data.test.images[:points], data.test.labels[:points])


def sample(model: nn.Module, data: Dataset, points: int | None, seed: int) -> tuple[Tensor, Tensor]:
    """Random test points, pixels in [0, 1], and their labels, in the order of the data, where the model is.

    Raises:
        SpecError: there are fewer.
    """
    images, labels = data.test
    if points is not None and points > len(labels):
        raise SpecError(f"points={points}: {data.name} has {len(labels)} test points; ask for fewer")
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:points]
    chosen = chosen.sort().values.to(images.device)
    return _pixels(images[chosen], labels[chosen], model)


def batches(split: Split, model: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Pixels in [0, 1] and labels, where the model is."""
    for images, labels in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True):
        yield _pixels(images, labels, model)


def _pixels(images: Tensor, labels: Tensor, model: nn.Module) -> tuple[Tensor, Tensor]:
    one = torch.zeros((), dtype=torch.float32)
    weight = next((p for p in model.parameters() if p.is_floating_point()), one)
    return images.to(weight.device, weight.dtype) / 255, labels.to(weight.device)


def logits_of(model: nn.Module, split: Split) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The logits of all points of a split, batch by batch, in eval mode and without gradients.

    Args:
        model: comes back in the mode in which it was.
        split: such as ``data.test``, or ``Split(images, labels)`` for some points of it.

    Yields:
        pixels (B, C, H, W) in [0, 1], labels (B,) and logits (B, K), on the model's device and in its precision.

    Raises:
        AttackError: the model returns no finite logits of shape (B, K), or a label names no class.
    """
    classes = 1
    for x, y in batches(split, model):
        if len(split.labels) * 4 * classes <= LARGEST:
            logits = kept(partial(_logits, model, x, y), y)["logits"]
        else:
            logits = _logits(model, x, y)["logits"]
        classes = logits.shape[1]
        yield x, y, logits


def _logits(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    with evaluating(model):
        logits = output_of(model, x)
    check_logits(logits, y)
    return {"logits": logits}


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each point (B,), in float64: in float32 that of a confident answer rounds to 0."""
    return F.cross_entropy(logits.double(), y, reduction="none")


def correct_after(model: nn.Module, x: Tensor, y: Tensor, attack: Attack) -> Tensor:
    """Whether the model still classifies each point correctly after the attack, (B,)."""
    if not len(x):  # some networks take no empty batch
        return torch.zeros_like(y, dtype=torch.bool)

    def survives(x: Tensor, y: Tensor) -> Tensor:
        moved = attack(model, x, y)
        with evaluating(model):
            return output_of(model, moved).argmax(1) == y

    return in_parts(survives, x, y, size=attacked_at_once(x))


def attacked_at_once(x: Tensor) -> int:
    """How many points an analysis attacks before it keeps what it found: fewer where an attack takes longer."""
    return max(100 if x.device.type == "cpu" else 500, ATTACKED_NUMBERS // max(x[:1].numel(), 1))


def correct_points(model: nn.Module, split: Split, attack: Attack) -> tuple[Tensor, Tensor]:
    """Whether each point is classified correctly, and whether it still is after the attack; both (N,)."""
    clean, robust = [], []
    for x, y, logits in logits_of(model, split):
        correct = logits.argmax(1) == y
        survived = correct.clone()
        survived[correct] = correct_after(model, x[correct], y[correct], attack)
        clean.append(correct)
        robust.append(survived)
    return torch.cat(clean), torch.cat(robust)


def attacked(model: nn.Module, x: Tensor, y: Tensor, attack: Attack, seed: int) -> Tensor:
    """The attacked points.

    Raises:
        AttackError: one of them did not move, so that there is no direction.
    """
    found = in_parts(lambda x, y: attack(model, x, y, seed=seed), x, y, size=attacked_at_once(x))
    still = int(((found - x).flatten(1).abs().amax(1) == 0).sum())
    if still:
        raise AttackError(f"the attack left {still} of {len(x)} points where they are; is its eps 0?")
    return found


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64, in eval mode: differences over short distances are lost in float32's rounding."""
    return in_float64(model)


def random_network(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the network with new weights: every module that has ``reset_parameters`` is initialized again."""
    fresh = plain_copy(model).cpu()
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
