"""An attack that is one search."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.attacks._batching import Options, Problem, Searches, SearchResult, run_searches
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._search import Search
from opnorm.attacks.losses import wide

__all__ = ["SearchAttack"]


@dataclass(frozen=True, eq=False)
class SearchAttack:
    """The attack that runs one search; its settings are those of the factories."""

    search: Search[Any]
    norm: float
    eps: float
    restarts: int = 1
    targets: int = 0
    stop_at_success: bool = True
    mode: Mode = "eval"
    seed: int = 0

    @in_default_modes
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point; with ``stop_at_success`` a misclassified clean point stays as it is."""
        check_inputs(x, y)
        points = x.detach().clone()
        if self.eps == 0 or not len(x):
            return points
        with model_state_preserved(model, self.mode), torch.no_grad():
            logits = output_of(model, points)
            check_logits(logits, y)
            attacked = (logits.argmax(1) == y) | (not self.stop_at_success)
            result = run_searches(
                Problem(model, points, y, wide(logits), self.eps, self.norm),
                [Searches(self.search, self.targets, self.restarts)],
                Options(self.seed if seed is None else seed, len(x), self.stop_at_success),
                SearchResult.start(points, attacked),
            )
        result.records[0].gradients.warn()
        return result.points
