"""What AutoAttack says of points: a record, and the confidence interval of a share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

__all__ = ["Stage", "Verdict", "blindness", "wilson"]


class Stage(NamedTuple):
    """What one attack did.

    Attributes:
        name: such as APGD-T.
        jobs: restarts times targets of each point.
        tried: points that it was given; the next attack may begin on the last points of the one before.
        broken: of these, the points that it fooled.
        seconds: of the processor; attacks that shared a batch share its time by their passes.
        wall_seconds: on the clock.
        zero_gradients: points not broken whose last gradient was exactly zero.
        bad_gradients: points with a NaN or infinite gradient.
        counts: of passes; see :class:`opnorm.attacks._batching.Tally`.
    """

    name: str
    jobs: int
    tried: int
    broken: int
    seconds: float
    wall_seconds: float
    zero_gradients: int
    bad_gradients: int
    counts: dict[str, int]


@dataclass(frozen=True)
class Verdict:
    """What became of every point.

    Attributes:
        points: (B, C, H, W), exactly in the ball and in [0, 1]; the clean point where none was found.
        right: (B,), the model gets the clean point right.
        certified: (B,), right and proved to stay so.
        fooled: (B,), right at first, and wrong at ``points``.
        by: (B,), which of ``stages`` broke the point; -1 for none.
        stages: the attacks that ran, in their order.
        notes: what a reader should know, each a sentence.
    """

    points: Tensor
    right: Tensor
    certified: Tensor
    fooled: Tensor
    by: Tensor
    stages: tuple[Stage, ...]
    notes: tuple[str, ...]

    @property
    def clean_accuracy(self) -> float:
        """The share of points that are right without an attack."""
        return _share(self.right)

    @property
    def robust_accuracy(self) -> float:
        """The share of all points that are right and stand: an upper end of the truth."""
        return _share(self.right & ~self.fooled)

    @property
    def certified_accuracy(self) -> float:
        """The share of all points that are proved: a lower end of the truth."""
        return _share(self.certified)

    @property
    def interval(self) -> tuple[float, float]:
        """Where the robust accuracy would be on endlessly many such points, with a confidence of 95 %."""
        return wilson(int((self.right & ~self.fooled).sum()), len(self.right))


def _share(which: Tensor) -> float:
    return float(which.double().mean())


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The interval of shares that would give so many successes within z standard deviations; (0, 1) without trials.

    Source: Wilson 1927.
    """
    if trials == 0:
        return 0.0, 1.0
    share, weight = successes / trials, z * z / trials
    center, half = share + weight / 2, z * math.sqrt(share * (1 - share) / trials + weight / (4 * trials))
    return max((center - half) / (1 + weight), 0.0), min((center + half) / (1 + weight), 1.0)


def blindness(stages: Sequence[Stage], what: str = "points") -> list[str]:
    """A sentence for each attack whose gradients said nothing at some points."""
    return [
        f"the gradient of {stage.name} is {fault} for {count} of {stage.tried} {what}: the attack is blind there, "
        "and a robust accuracy from it is too high"
        for stage in stages
        for fault, count in (("exactly zero", stage.zero_gradients), ("NaN or infinite", stage.bad_gradients))
        if count
    ]
