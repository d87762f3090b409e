"""Optimizers by name."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from opnorm.errors import SpecError
from opnorm.spec import factory

__all__ = ["sgd"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@factory("optimizer")
def sgd(lr: float = 0.1, momentum: float = 0.9, nesterov: bool = False) -> MakeOptimizer:
    """Stochastic gradient descent: v ← momentum v + g, W ← W - lr v. Weight decay is a regularizer, not an option here.

    Raises:
        SpecError: lr is not positive or momentum is outside [0, 1).
    """
    if not 0 < lr < float("inf"):
        raise SpecError(f"lr={lr!r}: expected a learning rate above 0")
    if not 0 <= momentum < 1 or (nesterov and momentum == 0):
        raise SpecError(
            f"momentum={momentum!r}, nesterov={nesterov!r}: expected a momentum in [0, 1), above 0 for nesterov"
        )
    return lambda parameters: torch.optim.SGD(parameters, lr=lr, momentum=momentum, nesterov=nesterov)
