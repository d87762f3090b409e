"""The exponential moving average of the weights."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Average"]


class Average:
    """a ← d a + (1 - d) w after each step t = 1, 2, ..., with d = min(decay, (1 + t) / (10 + t)), a = w at t = 0.

    The second term lets a short training forget its initial weights. Buffers are not averaged: batch-norm statistics
    are moving averages already. (torch's AveragedModel copies the whole network, starts from the weights after the
    first step, and cannot swap its weights into the network that is trained.)

    Args:
        weights: by name; changed in place only.
        decay: in [0, 1); 0 keeps no average, and every method does nothing.

    Source: Polyak & Juditsky 1992; for adversarial training Rebuffi et al. 2021, with decay 0.995.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = [w.detach() for w in weights.values()] if decay else []
        self.state = {name: w.detach().clone() for name, w in weights.items()} if decay else {}

    def update(self, t: int) -> None:
        """Take in the weights after step ``t``, the first of which is 1."""
        if self.decay:
            d = min(self.decay, (1 + t) / (10 + t))
            torch._foreach_lerp_(list(self.state.values()), self.weights, 1 - d)

    @contextmanager
    def applied(self, constrain: Callable[[], None] = lambda: None) -> Iterator[None]:
        """The model has the averaged weights inside the block."""
        saved = [w.clone() for w in self.weights]
        self.apply(constrain)
        try:
            yield
        finally:
            _copy(self.weights, saved)

    def apply(self, constrain: Callable[[], None] = lambda: None) -> None:
        """The model has the averaged weights from now on; ``constrain`` then clips or normalizes them in the model."""
        if self.decay:
            _copy(self.weights, list(self.state.values()))
            constrain()


def _copy(to: list[Tensor], values: list[Tensor]) -> None:
    if to:
        torch._foreach_copy_(to, values)
