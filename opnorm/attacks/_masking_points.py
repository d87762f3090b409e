"""The points of the experiments on gradient masking, and what several experiments use."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.outputs import output_of
from opnorm._core.random import point_keys, uniform
from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._batching import Options, Problem, Searches, run_searches
from opnorm.attacks._search import Search
from opnorm.attacks._square import Square
from opnorm.attacks.losses import Loss, log_odds, wide
from opnorm.attacks.projections import Ball, ball
from opnorm.attacks.result import StageResult

__all__ = ["QUERIES", "SEARCHED", "STEPS", "TARGETS", "TOLERATED", "Points", "differ", "sample"]

SAMPLE = 64  # points of an experiment
QUERIES = 300  # of Square, where the evaluation did not run it
STEPS = 40  # of APGD and PGD
TARGETS = 9  # the classes with the largest logits but the right one, where APGD has targets
CHECKED = 8  # of the points that Square alone breaks, where APGD has targets
SEARCHED = (1, 2, math.inf)  # the norms of APGD and Square
TOLERATED = 0.05  # share of points up to which an observation may be chance


def sample(mask: Tensor, most: int = SAMPLE) -> Tensor:
    """Indices of at most so many of the points, evenly spaced, since data may be sorted."""
    points = mask.nonzero().squeeze(1)
    count = min(len(points), most)
    return points[torch.arange(count, device=points.device) * len(points) // count]


@dataclass(frozen=True)
class Points:
    """The points of an experiment, the model, the attack, and how many points of all were correct and robust."""

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: float
    eps: float
    random: bool
    stages: tuple[StageResult, ...]
    correct: int
    robust: int

    @cached_property
    def ball(self) -> Ball:
        """The balls around the points."""
        return ball(self.x, self.eps, self.norm)

    @cached_property
    def precise(self) -> bool:
        """Pixels and weights are in float32 or float64."""
        dtypes = {t.dtype for t in (self.x, *self.model.parameters()) if t.is_floating_point()}
        return dtypes <= {torch.float32, torch.float64}

    def uniform(self, stream: int) -> Tensor:
        """A number in (0, 1) for each pixel (B, ...), others for each stream."""
        draws = uniform(point_keys(self.x, 0, stream), self.x[0].numel())
        return draws.to(self.x.dtype).view_as(self.x)

    def loss(self, x: Tensor) -> Tensor:
        """The log-odds (B,)."""
        return log_odds(self.compute(x), self.y)

    def compute(self, x: Tensor) -> Tensor:
        """The logits (B, K) in float32 at least."""
        return wide(output_of(self.model, x))

    @cached_property
    def logits(self) -> Tensor:
        """Of the points themselves (B, K)."""
        return self.compute(self.x)

    @cached_property
    def changed(self) -> int:
        """Number of points whose logits differ in a second pass."""
        return differ(self.logits, self.compute(self.x))

    @cached_property
    def gradient(self) -> Tensor:
        """Of the log-odds (B, ...)."""
        return self.gradient_of(log_odds)

    def gradient_of(self, loss: Loss, at: Tensor | None = None) -> Tensor:
        """Of each point's loss (B, ...), at the points themselves or at others."""
        with torch.enable_grad():
            z = (self.x if at is None else at).detach().requires_grad_()
            return torch.autograd.grad(loss(self.compute(z), self.y).sum(), z)[0]

    def broken_by(self, search: Search[Any], eps: float) -> Tensor:
        """The points (B,) for which a search finds an adversarial one."""
        problem = Problem(self.model, self.x, self.y, self.logits, eps, self.norm)
        return run_searches(problem, [Searches(search)], Options(batch=SAMPLE)).misclassified

    @property
    def without_search(self) -> bool:
        """No attack can be run: the model is random, or the norm is another one."""
        return self.random or self.norm not in SEARCHED

    @cached_property
    def found_by_square(self) -> Tensor:
        """The points that Square breaks (B,); none where AutoAttack ran it."""
        if self.without_search or any(stage.name == "Square" for stage in self.stages):
            return torch.zeros_like(self.y, dtype=torch.bool)
        return self.broken_by(Square(self.norm, QUERIES), self.eps)

    @cached_property
    def found_by_apgd(self) -> Tensor:
        """The points that APGD breaks (B,); none where AutoAttack ran it."""
        if self.without_search or any(stage.name.startswith("APGD") for stage in self.stages):
            return torch.zeros_like(self.y, dtype=torch.bool)
        return self.broken_by(apgd_search(self.norm, STEPS), self.eps)

    @cached_property
    def square_alone(self) -> int:
        """How many points Square breaks and APGD does not."""
        return int((self.found_by_square & ~self.found_by_apgd).sum())

    @cached_property
    def targeted(self) -> tuple[int, int]:
        """Of how many of these APGD with targets breaks how many; none are tried where they are at most TOLERATED."""
        if self.fall(self.square_alone) <= TOLERATED:
            return 0, 0
        rows = sample(self.found_by_square & ~self.found_by_apgd, CHECKED)
        x, y, logits = self.x[rows], self.y[rows], self.logits[rows]
        search = Searches(apgd_search(self.norm, STEPS, "dlr", targeted=True), TARGETS)
        problem = Problem(self.model, x, y, logits, self.eps, self.norm)
        return len(rows), int(run_searches(problem, [search], Options(batch=SAMPLE)).misclassified.sum())

    @property
    def square_only(self) -> float:
        """How many points Square breaks and APGD with targets does not, estimated from those that were tried."""
        tried, broken = self.targeted
        return self.square_alone * (1 - broken / max(tried, 1))

    def fall(self, found: float) -> float:
        """The share of the correct points that are robust no more, if so many of these points are not."""
        return found / len(self.x) * self.robust / self.correct


def differ(a: Tensor, b: Tensor) -> int:
    """Number of rows of logits that differ by more than rounding."""
    return int(((a - b).abs().amax(1) > 1e-4 * torch.maximum(a.abs().amax(1), a.std())).sum())
