"""Models that draw random numbers: their mean prediction, and how they are recognized."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.outputs import output_of
from opnorm.attacks.losses import wide

__all__ = ["MeanProbabilities", "is_random", "seed_global"]


class MeanProbabilities(nn.Module):
    """The logarithm of the mean of a randomized model's class probabilities over so many passes."""

    def __init__(self, model: nn.Module, passes: int) -> None:
        super().__init__()
        self.model, self.passes = model, passes

    def forward(self, x: Tensor) -> Any:
        """(B, ...) -> (B, K)."""
        first = output_of(self.model, x)
        if first.ndim != 2:
            return first  # check_logits raises the error
        logits = [wide(first), *(wide(output_of(self.model, x)) for _ in range(self.passes - 1))]
        return torch.stack([z.log_softmax(1) for z in logits]).logsumexp(0) - math.log(self.passes)


def seed_global(seed: int, device: torch.device) -> None:
    """Seed what a randomized model draws from; the caller restores it."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def is_random(model: nn.Module, x: Tensor, logits: Tensor) -> bool:
    """Whether a second pass over the first batch gives other logits."""
    first, second = logits[: len(x)], wide(output_of(model, x))
    return not torch.allclose(first, second, rtol=1e-4, atol=1e-5 * float(first.abs().max()))
