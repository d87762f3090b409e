"""The result of an evaluation by AutoAttack: a record, and the confidence interval of a share."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm import spec
from opnorm._core.confidence import confidence_interval
from opnorm.errors import SpecError

__all__ = ["AttackResult", "StageResult", "attack_call", "gradient_warnings", "join_results"]


class StageResult(NamedTuple):
    """The result of one attack.

    Attributes:
        name: such as APGD-T.
        searches: for each point: restarts times targets.
        attacked: number of points; an attack may begin on the last points of the one before.
        misclassified: number of points that it made misclassified.
        cpu_seconds, wall_seconds: attacks that share a batch share its time by their passes.
        zero_gradients: number of robust points whose last gradient was exactly zero.
        nonfinite_gradients: number of points with a NaN or infinite gradient.
        counts: of passes through the model, and of searches that ended early.
    """

    name: str
    searches: int
    attacked: int
    misclassified: int
    cpu_seconds: float
    wall_seconds: float
    zero_gradients: int
    nonfinite_gradients: int
    counts: dict[str, int]


@dataclass(frozen=True)
class AttackResult:
    """The result of all attacks, for every point.

    Attributes:
        points: (B, ...), exactly in the ball and in [0, 1]; the clean point where no adversarial one was found.
        correct: (B,), the clean point is classified correctly.
        certified: (B,), correct and proved to be robust.
        misclassified: (B,), correct, and misclassified at ``points``.
        stage_index: (B,), the index in ``stages`` of the attack that made the point misclassified; -1 for none.
        stages: the attacks that ran, in their order.
        notes: remarks on the reliability of the result, each a sentence.
    """

    points: Tensor
    correct: Tensor
    certified: Tensor
    misclassified: Tensor
    stage_index: Tensor
    stages: tuple[StageResult, ...]
    notes: tuple[str, ...]

    @property
    def robust(self) -> Tensor:
        """(B,), correct, and no adversarial point was found."""
        return self.correct & ~self.misclassified

    @property
    def clean_accuracy(self) -> float:
        """The share of correct points."""
        return float(self.correct.double().mean())

    @property
    def robust_accuracy(self) -> float:
        """The share of robust points, an upper bound of the true one."""
        return float(self.robust.double().mean())

    @property
    def certified_accuracy(self) -> float:
        """The share of certified points, a lower bound of the true robust accuracy."""
        return float(self.certified.double().mean())

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the robust accuracy on the whole distribution, under the same attack."""
        return confidence_interval(int(self.robust.sum()), len(self.robust))


def join_results(parts: Sequence[AttackResult]) -> AttackResult:
    """The result for the points of all parts, in their order; the last attacks may not have run in every part."""
    columns = itertools.zip_longest(*(part.stages for part in parts))
    stages = tuple(_sum([stage for stage in column if stage]) for column in columns)
    notes = [note for part in parts for note in part.notes if note not in gradient_warnings(part.stages)]
    names = ("points", "correct", "certified", "misclassified", "stage_index")
    tensors = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
    return AttackResult(
        **tensors, stages=stages, notes=tuple(dict.fromkeys([*notes, *gradient_warnings(stages)]))
    )


def _sum(stages: Sequence[StageResult]) -> StageResult:
    first = stages[0]
    added = [k for k in StageResult._fields if k not in ("name", "searches", "counts")]
    totals = {k: sum(getattr(stage, k) for stage in stages) for k in added}
    counts = {k: sum(stage.counts.get(k, 0) for stage in stages) for k in first.counts}
    return first._replace(searches=max(stage.searches for stage in stages), counts=counts, **totals)


def attack_call(attack: object) -> str:
    """The call that makes an attack, such as ``autoattack(norm=inf, eps=8/255, version="standard")``.

    Norm, radius, steps and version are always written out, other settings where they differ from their defaults. "" for an
    object of the user's own that has no call.
    """
    try:
        made_by = spec.spec_of(attack)
    except SpecError:
        return ""
    named = {"norm", "eps", "steps", "version", *dict(spec.short(made_by).kwargs)}
    every = spec.full(made_by)
    return str(spec.Call(every.name, every.args, tuple((k, v) for k, v in every.kwargs if k in named)))


FAULTS = ("exactly zero", "NaN or infinite")


def gradient_warnings(stages: Sequence[StageResult], unit: str = "points") -> list[str]:
    """A sentence for each attack whose gradients were zero or not finite at some points."""
    return [
        f"the gradient of {stage.name} is {fault} for {count} of {stage.attacked} {unit}: the attack has no direction "
        "there, and a robust accuracy from it is too high"
        for stage in stages
        for count, fault in zip((stage.zero_gradients, stage.nonfinite_gradients), FAULTS, strict=True)
        if count
    ]
