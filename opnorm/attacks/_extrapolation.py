"""Stopping a search early, by extrapolation of its progress."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FIRST_STEPS", "Extrapolation"]

PER_DOUBLING, DOUBLINGS = 4, 5  # checks while the steps double, in the last five doublings
FIRST_STEPS = 10  # within which nothing is extrapolated


@lru_cache(maxsize=16)
def _checks(steps: int, device: torch.device) -> Tensor:
    checks = {round(steps * 2 ** (-j / PER_DOUBLING)) for j in range(1, PER_DOUBLING * DOUBLINGS + 1)}
    return torch.tensor(sorted(checks), device=device)


@dataclass(frozen=True)
class Extrapolation:
    """Whether a search will keep its value below zero.

    Each doubling of the steps raises the value less than the one before. So a search falls short when ``patience`` times
    its progress since k / 2, once for each doubling that is left, does not raise its value to zero; or when that
    progress itself does not raise it to a bar. This is checked four times while the steps double; the history (R, 4)
    holds the values at the last four checks, the first of them at k / 2.
    """

    steps: int
    patience: float

    @staticmethod
    def start(value: Tensor) -> Tensor:
        """The history of searches that have made no step."""
        return torch.full_like(value, -math.inf)[:, None].repeat(1, PER_DOUBLING)

    def until_check(self, k: Tensor) -> Tensor:
        """The number of steps from k (R,) to the next check or the end."""
        if self.patience == math.inf:
            return self.steps - k
        ends = torch.cat([_checks(self.steps, k.device), k.new_tensor([self.steps])])
        return ends[torch.searchsorted(ends, k, right=True).clamp(max=len(ends) - 1)] - k

    def falls_short(
        self, k: Tensor, value: Tensor, history: Tensor, bar: Tensor | float = -math.inf
    ) -> tuple[Tensor, Tensor]:
        """Whether searches fall short after k steps (R,) with their values (R,), and the new history."""
        if self.patience == math.inf:
            return torch.zeros_like(k, dtype=torch.bool), history
        now = (k[:, None] == _checks(self.steps, k.device)).any(1)
        if not now.any():  # at most of the steps
            return now, history
        doublings = (self.steps / k.clamp(min=1)).log2().to(value.dtype)
        progress = (value - history[:, 0]) * doublings  # NaN, where nothing was found yet: not short
        short = (value + self.patience * progress < 0) | (value + progress < bar)
        new = torch.cat([history[:, 1:], value[:, None]], 1)
        return now & (k > FIRST_STEPS) & short, torch.where(now[:, None], new, history)
