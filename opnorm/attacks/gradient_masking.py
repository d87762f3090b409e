"""Indicators of gradient masking: whether the robust accuracy of an attack may be far too high.

An attack that finds nothing may have met a robust model, or a model whose gradients are useless: rounded inputs, a
saturated softmax, random layers. Each indicator is a small experiment on some of the points, cheap compared to the attack.

The component "the attack" names an attack that is weaker than another one with gradients, which is no masking.

Source: Athalye, Carlini & Wagner 2018 (iterative below random search, unbounded attacks below 100 %); Uesato et al. 2018
(attacks without gradients); Carlini et al. 2019; Croce et al. 2022 (checks of AutoAttack).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.confidence import like_guessing
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.attacks._masking_experiments import CORRECT, ROBUST, Outcome, other_attack
from opnorm.attacks._masking_points import STEPS, Points, sample
from opnorm.attacks._pgd import pgd
from opnorm.attacks.losses import wide
from opnorm.attacks.result import AttackResult

__all__ = ["GradientMaskingReport", "Indicator", "check_gradient_masking", "check_transfer"]


class Indicator(NamedTuple):
    """The outcome of one experiment.

    Attributes:
        component: what the experiment examines, such as "the input layer".
        suspicious: whether it indicates gradient masking.
        text: the observation, with its numbers.
    """

    component: str
    suspicious: bool
    text: str


@dataclass(frozen=True)
class GradientMaskingReport:
    """All indicators of one evaluation."""

    indicators: tuple[Indicator, ...]

    @property
    def passed(self) -> bool:
        """No indicator is suspicious."""
        return not any(indicator.suspicious for indicator in self.indicators)

    @property
    def summary(self) -> str:
        """A line for each suspicious indicator, or one line that there is none."""
        if self.passed:
            return f"gradient masking: none of the {len(self.indicators)} indicators found"
        return "\n".join(f"check {i.component}: {i.text}" for i in self.indicators if i.suspicious)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        indicators = [indicator._asdict() for indicator in self.indicators]
        return {"passed": self.passed, "summary": self.summary, "indicators": indicators}


@in_default_modes
def check_gradient_masking(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    result: AttackResult,
    *,
    norm: float,
    eps: float,
    mode: Mode = "eval",
    random: bool = False,
) -> GradientMaskingReport:
    """Look for gradient masking after an attack: the experiments of CORRECT and ROBUST on up to 64 points each.

    Args:
        model: as it was attacked; its state is preserved.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        result: of the attack on these points.
        norm: of the ball; experiments that attack are for 1, 2 and inf.
        eps: its radius, in pixel values.
        mode: of the model meanwhile.
        random: the model is known to draw random numbers, and the attack averaged over them.
    """
    if not result.correct.any():
        text = "it classifies no clean point correctly: wrong labels, other pixels or a diverged training?"
        return GradientMaskingReport((Indicator("the model", True, text),))
    counts = int(result.correct.sum()), int(result.robust.sum())
    indicators = [_guessing(counts[0], y)]
    with model_state_preserved(model, mode), torch.no_grad():
        for experiments, mask in ((CORRECT, result.correct), (ROBUST, result.robust)):
            if mask.any():
                some = sample(mask)
                points = Points(model, x[some], y[some], norm, eps, random, result.stages, *counts)
                for component, functions in experiments.items():
                    outcomes = [experiment(points) for experiment in functions]
                    indicators += [_indicator(component, outcome) for outcome in outcomes if outcome]
    return GradientMaskingReport(tuple(indicators))


def _guessing(correct: int, y: Tensor) -> Indicator:
    """Whether the accuracy is that of guessing among the classes of the points, as of an untrained model."""
    classes = len(y.unique())
    text = f"it classifies {correct} of {len(y)} clean points of {classes} classes correctly"
    if classes == 1 or not like_guessing(correct, len(y), 1 / classes):
        return Indicator("the model", False, text)
    return Indicator("the model", True, f"{text}, which may be guessing: is it trained?")


@in_default_modes
def check_transfer(
    model: nn.Module, other: nn.Module, x: Tensor, y: Tensor, result: AttackResult,
    norm: float, eps: float, mode: Mode = "eval",
) -> Indicator | None:  # fmt: skip
    """Whether PGD on another model finds adversarial points that the attack on the model itself did not find.

    None where the attack left no robust point. Arguments as for :func:`check_gradient_masking`; ``other`` is a model for
    the same classes.
    """
    if not result.robust.any():
        return None
    some = sample(result.robust)
    points = pgd(norm, eps, STEPS)(other, x[some], y[some])
    with model_state_preserved(model, mode), torch.no_grad():
        found = int((wide(output_of(model, points)).argmax(1) != y[some]).sum())
    fall = found / len(some) * int(result.robust.sum()) / int(result.correct.sum())
    return _indicator("the attack", other_attack("PGD on the surrogate", found, len(some), fall))


def _indicator(component: str, outcome: Outcome) -> Indicator:
    suspicious, bad, fine = outcome
    return Indicator(component, suspicious, bad if suspicious else fine)
