"""Learning-rate schedules: the factor on the learning rate after a share of the training."""

import math
from collections.abc import Callable, Sequence

from opnorm._core.training_numbers import check_milestones, check_warmup
from opnorm.spec import factory

__all__ = ["constant", "cosine", "step"]

Schedule = Callable[[float, int], float]
"""(epochs done, fractions included; epochs in all) -> factor."""


@factory("schedule")
def constant() -> Schedule:
    """Always 1."""
    return lambda done, epochs: 1.0


@factory("schedule")
def cosine(warmup: float = 0.0) -> Schedule:
    """½ (1 + cos(π t / T)), after a linear rise over ``warmup`` epochs.

    Raises:
        SpecError: a negative warm-up.
    """
    check_warmup(warmup)

    def factor(done: float, epochs: int) -> float:
        if done < warmup:
            return done / warmup
        return 0.5 * (1 + math.cos(math.pi * (done - warmup) / max(epochs - warmup, 1e-9)))

    return factor


@factory("schedule")
def step(milestones: Sequence[int] = (75, 90, 100), gamma: float = 0.1) -> Schedule:
    """Multiply by ``gamma`` when each of the ``milestones`` (epochs done) is reached.

    Raises:
        SpecError: milestones that do not rise, or a gamma that is not positive.
    """
    check_milestones(milestones, gamma)
    return lambda done, epochs: gamma ** sum(done >= m for m in milestones)
