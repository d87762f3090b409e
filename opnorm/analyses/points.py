"""What analyses of single points share: which points, their attacked versions, a network of random weights, summaries."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opnorm.attacks._checks import is_amount
from opnorm.attacks._pgd import Attack
from opnorm.data import Dataset
from opnorm.errors import AttackError, SpecError

__all__ = ["amounts", "attacked", "check_count", "in_double", "random_network", "sample", "summary"]


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
        AttackError: one of them did not move, so that it names no direction.
    """
    found = attack(model, x, y, seed=seed)
    still = int(((found - x).flatten(1).abs().amax(1) == 0).sum())
    if still:
        raise AttackError(f"the attack left {still} of {len(x)} points where they are; is its eps 0?")
    return found


def in_double(model: nn.Module) -> nn.Module:
    """A copy in float64, in eval mode: differences over short distances drown in float32's rounding."""
    return copy.deepcopy(model).double().eval()


def random_network(model: nn.Module, seed: int) -> nn.Module:
    """A copy of the network with new weights: every module that has ``reset_parameters`` starts anew."""
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
    return {"mean": _short(values.mean(0)), "sem": _short(error)}


def _short(value: Tensor) -> Any:
    numbers = value.tolist()
    return [float(f"{v:.6g}") for v in numbers] if isinstance(numbers, list) else float(f"{numbers:.6g}")
