"""Indicators of gradient masking: whether the robust accuracy of an attack may be far too high.

An attack that finds nothing may have met a robust model, or a model whose gradients are useless: rounded inputs, a
saturated softmax, random layers. Each indicator is a small experiment on some of the points, cheap compared to the attack.

Source: Athalye, Carlini & Wagner 2018; Carlini et al. 2019; Croce et al. 2022 (checks of AutoAttack).
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.confidence import confidence_interval
from opnorm._core.modes import Mode, model_state_preserved
from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._batching import Options, Problem, Searches, run_searches
from opnorm.attacks._checks import are_probabilities
from opnorm.attacks._pgd import pgd
from opnorm.attacks._search import Search
from opnorm.attacks._square import Square
from opnorm.attacks.losses import Loss, log_odds, margin, wide
from opnorm.attacks.projections import ball
from opnorm.attacks.result import AttackResult, StageResult

__all__ = ["GradientMaskingReport", "Indicator", "check_gradient_masking", "check_transfer"]

SAMPLE = 64  # points of an experiment
QUERIES = 300  # of Square, where the evaluation did not run it
STEPS = 40  # of APGD and PGD
SEARCHED = (1, 2, math.inf)  # the norms of APGD and Square
TOLERATED = 0.05  # share of points up to which an observation may be chance


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
    indicators = [_guessing(int(result.correct.sum()), y)]
    with model_state_preserved(model, mode), torch.no_grad():
        for experiments, mask in ((CORRECT, result.correct), (ROBUST, result.robust)):
            if mask.any():
                some = _sample(mask)
                points = _Points(model, x[some], y[some], norm, eps, random, result.stages)
                for component, functions in experiments.items():
                    outcomes = [experiment(points) for experiment in functions]
                    indicators += [_indicator(component, outcome) for outcome in outcomes if outcome]
    return GradientMaskingReport(tuple(indicators))


def _guessing(correct: int, y: Tensor) -> Indicator:
    """Whether the accuracy is that of guessing among the classes of the points, as of an untrained model."""
    classes = len(y.unique())
    low, _ = confidence_interval(correct, len(y))
    text = f"it classifies {correct} of {len(y)} clean points of {classes} classes correctly"
    if classes == 1 or low > 1 / classes:
        return Indicator("the model", False, text)
    return Indicator("the model", True, f"{text}, which may be guessing: is it trained?")


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
    some = _sample(result.robust)
    points = pgd(norm, eps, STEPS)(other, x[some], y[some])
    with model_state_preserved(model, mode), torch.no_grad():
        found = int((wide(model(points.clone())).argmax(1) != y[some]).sum())
    return _indicator("the attack", _other_attack("PGD on the surrogate", found, len(some)))


def _indicator(component: str, outcome: "Outcome") -> Indicator:
    suspicious, bad, fine = outcome
    return Indicator(component, suspicious, bad if suspicious else fine)


def _sample(mask: Tensor) -> Tensor:
    """Indices of at most SAMPLE of the points, evenly spaced, since data may be sorted."""
    points = mask.nonzero().squeeze(1)
    count = min(len(points), SAMPLE)
    return points[torch.arange(count, device=points.device) * len(points) // count]


@dataclass(frozen=True)
class _Points:
    """The points of an experiment, the model and the attack."""

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: float
    eps: float
    random: bool
    stages: tuple[StageResult, ...]

    def compute(self, x: Tensor) -> Tensor:
        """The logits (B, K) in float32 at least."""
        return wide(self.model(x.clone()))

    @cached_property
    def logits(self) -> Tensor:
        """Of the points themselves (B, K)."""
        return self.compute(self.x)

    @cached_property
    def changed(self) -> int:
        """Number of points whose logits differ in a second pass."""
        return _differ(self.logits, self.compute(self.x))

    @cached_property
    def gradient(self) -> Tensor:
        """Of the log-odds (B, ...)."""
        return self.gradient_of(log_odds)

    def gradient_of(self, loss: Loss) -> Tensor:
        """Of each point's loss (B, ...)."""
        with torch.enable_grad():
            z = self.x.detach().requires_grad_()
            return torch.autograd.grad(loss(self.compute(z), self.y).sum(), z)[0]

    def misclassified_by(self, search: Search[Any], eps: float) -> int:
        """Number of points for which a search finds an adversarial one."""
        problem = Problem(self.model, self.x, self.y, self.logits, eps, self.norm)
        result = run_searches(problem, [Searches(search)], Options(batch=SAMPLE))
        return int(result.misclassified.sum())


def _differ(a: Tensor, b: Tensor) -> int:
    """Number of rows of logits that differ by more than rounding."""
    return int(((a - b).abs().amax(1) > 1e-4 * torch.maximum(a.abs().amax(1), a.std())).sum())


def _size(grad: Tensor) -> Tensor:
    return grad.flatten(1).abs().amax(1)


# ---------------------------------------------------------------- experiments on correct points

Outcome = tuple[bool, str, str]
"""Whether it is suspicious, the observation if it is, and if it is not."""


def _probabilities(points: _Points) -> Outcome:
    bad = "its rows are probabilities, not logits, whose gradients vanish where the model is sure: remove the softmax"
    return are_probabilities(points.logits), bad, "its rows are logits, not probabilities"


def _second_pass(points: _Points) -> Outcome:
    total = len(points.x)
    differ = f"two passes over the same points differ for {points.changed} of {total}"
    bad = f'{differ}: the attack meets another model at each step; use version="rand"'
    fine = differ if points.changed else f"two passes over the same {total} points agree"
    return points.changed > 0 and not points.random, bad, fine


def _other_batch(points: _Points) -> Outcome | None:
    if points.changed:
        return None
    total = len(points.x)
    parts = torch.cat([points.compute(part) for part in points.x.split(max(total // 4, 1))])
    differ = _differ(points.logits, parts)
    bad = f"the logits of {differ} of {total} points depend on the batch: batch norm in train mode?"
    return differ > 0, bad, "the logits of a point do not depend on its batch"


def _small_change(points: _Points) -> Outcome:
    """Logits of float32 change with pixels by 1e-5; those of half precision need not."""
    total = len(points.x)
    dtypes = {t.dtype for t in (points.x, *points.model.parameters()) if t.is_floating_point()}
    if not dtypes <= {torch.float32, torch.float64}:
        return False, "", "not examined: the model is in half precision"
    moved = points.x + torch.where(points.x < 0.5, 1e-5, -1e-5)
    same = int((points.logits == points.compute(moved)).all(1).sum())
    bad = (
        f"the logits of {same} of {total} points stay the same when every pixel changes by 0.00001: rounding there, or "
        "saturation after it, leaves no gradient or an artificial one"
    )
    fine = f"a change of 0.00001 changes the logits of {total - same} of {total} points"
    return same > total * TOLERATED, bad, fine


def _finite_gradient(points: _Points) -> Outcome:
    size, total = _size(points.gradient), len(points.x)
    nonfinite, zero = int((~(size < math.inf)).sum()), int((size == 0).sum())
    faults = [(nonfinite, total, "NaN or infinite"), (zero, total, "exactly zero")]
    for s in points.stages:
        faults.append((s.nonfinite_gradients, s.attacked, f"NaN or infinite in {s.name}"))
        faults.append((s.zero_gradients, s.attacked, f"exactly zero at the end of {s.name}"))
    texts = [f"it is {fault} for {n} of {of} points" for n, of, fault in faults if n > of * TOLERATED]
    fine = f"it is finite and not zero for {total - nonfinite - zero} of {total} points"
    return bool(texts), "; ".join(texts), fine


def _saturation(points: _Points) -> Outcome:
    """Whether the gradient of cross-entropy vanishes where that of the log-odds does not."""
    total, lead = len(points.x), -float(margin(points.logits, points.y).median())
    grad = points.gradient_of(lambda logits, y: F.cross_entropy(logits, y, reduction="none"))
    zero = int(((_size(grad) == 0) & (_size(points.gradient) > 0)).sum())
    bad = (
        f"it is saturated (the right logit leads by {lead:.4g}): the gradient of cross-entropy is exactly zero for "
        f"{zero} of {total} points; opnorm's log-odds loss avoids this, other tools do not"
    )
    fine = f"it is not saturated: the right logit leads by {lead:.4g} at the median"
    return zero > total * TOLERATED, bad, fine


def _ascent(points: _Points) -> Outcome | None:
    """A tenth of the radius along the gradient; points that cannot move, in a corner of the box, do not count."""
    if points.random:
        return None
    grad = torch.nan_to_num(points.gradient, 0.0, 0.0, 0.0)
    z = ball(points.x, points.eps, points.norm).ascend_in_box(points.x, grad, points.eps / 10)
    moved = (z != points.x).flatten(1).any(1)
    rose = log_odds(points.compute(z), points.y) > log_odds(points.logits, points.y)
    flat, total = int((moved & ~rose).sum()), int(moved.sum())
    bad = f"it does not rise along its gradient, over a tenth of the radius, for {flat} of {total} points"
    fine = f"it rises along its gradient for {total - flat} of {total} points"
    return flat > max(total, 1) * 4 * TOLERATED, bad, fine


def _large_radius(points: _Points) -> Outcome | None:
    """When pixels may change by 0.5, all points can become the same gray image, which has one class."""
    if points.norm not in SEARCHED:
        return None
    total, size = len(points.x), points.x[0].numel()
    eps = max(points.eps, 0.5 * (size ** (1 / points.norm) if points.norm < math.inf else 1))
    robust = total - points.misclassified_by(apgd_search(points.norm, STEPS), eps)
    fine = f"at ε = {eps:.4g}, where all points can become one gray image, {robust} of {total} are robust"
    return robust > total * TOLERATED, f"{fine}; expected none", fine


# ---------------------------------------------------------------- experiments on robust points


def _square(points: _Points) -> Outcome | None:
    """An attack without gradients; its result is known where AutoAttack ran it."""
    for stage in points.stages:
        if stage.name == "Square":
            return _other_attack("Square, which uses no gradients,", stage.misclassified, stage.attacked)
    if points.random or points.norm not in SEARCHED:
        return None
    found = points.misclassified_by(Square(points.norm, QUERIES), points.eps)
    return _other_attack(f"Square, which uses no gradients, with {QUERIES} queries", found, len(points.x))


def _apgd(points: _Points) -> Outcome | None:
    """An attack with better steps, where AutoAttack did not run it."""
    ran = any(stage.name.startswith("APGD") for stage in points.stages)
    if ran or points.random or points.norm not in SEARCHED:
        return None
    found = points.misclassified_by(apgd_search(points.norm, STEPS), points.eps)
    return _other_attack(f"APGD with {STEPS} steps", found, len(points.x))


def _other_attack(name: str, found: int, attacked: int) -> Outcome:
    fine = f"{name} finds adversarial points for {found} of {attacked} points that were robust before"
    bad = f"{fine}: it is too weak here, or its gradients are masked"
    return found > max(attacked * TOLERATED, 1), bad, fine


CORRECT = {
    "the output": (_probabilities,),
    "the random layers": (_second_pass,),
    "the mode": (_other_batch,),
    "the input layer": (_small_change,),
    "the gradient": (_finite_gradient,),
    "the softmax": (_saturation,),
    "the loss": (_ascent,),
    "the large radius": (_large_radius,),
}
ROBUST = {"the attack": (_square, _apgd)}
