"""Whether a robust accuracy can be believed: the known signs that an attack was blind, looked for one by one.

An attack that finds nothing may have met a robust model, or a model whose gradients say nothing: rounded inputs, a
softmax that is always sure, random layers. Each sign is a small experiment on some of the points, and costs little
beside the evaluation itself.

Source: Athalye, Carlini & Wagner 2018; Carlini et al. 2019; Croce et al. 2022 (checks of AutoAttack).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._batching import Options, Problem, Searches, run_searches
from opnorm.attacks._pgd import pgd
from opnorm.attacks._search import Search
from opnorm.attacks._square import Square
from opnorm.attacks.losses import log_odds, margin, wide
from opnorm.attacks.projections import ball
from opnorm.attacks.result import AttackResult, StageResult

__all__ = ["GradientMaskingReport", "Indicator", "check_gradient_masking"]

SAMPLE = 64  # points that the experiments look at
QUERIES = 300  # of Square, where the evaluation did not run it
STEPS = 40  # of APGD in the experiments
MANY = 0.05  # a share of points above which a sign is more than chance


class Indicator(NamedTuple):
    """One experiment.

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
    """All experiments on one evaluation."""

    indicators: tuple[Indicator, ...]

    @property
    def passed(self) -> bool:
        """No indicator is suspicious."""
        return not any(sign.suspicious for sign in self.indicators)

    @property
    def summary(self) -> str:
        """A line for each suspicious indicator, or one line that there is none."""
        if self.passed:
            return f"gradient masking: none of the {len(self.indicators)} indicators found"
        return "\n".join(
            f"check {sign.component}: {sign.text}" for sign in self.indicators if sign.suspicious
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "passed": self.passed,
            "summary": self.summary,
            "indicators": [sign._asdict() for sign in self.indicators],
        }


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
    surrogate: nn.Module | None = None,
    seed: int = 0,
) -> GradientMaskingReport:
    """Look for the signs of masked gradients in an evaluation that has ended.

    Looked at are 64 of the points that are right, spread over all of them: do two passes agree; does the answer depend on
    the batch; are the outputs logits; do the logits feel a tiny move of the pixels; is the gradient finite and not zero,
    also that of cross-entropy; does the loss rise along it; does the accuracy fall to 0 where the ball holds a grey image
    that all points share; and do other attacks, without gradients or with better steps, break points that stood.

    Args:
        model: as it was evaluated; comes back as it was.
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        result: of the evaluation of these points.
        norm: of the ball.
        eps: its radius, in pixel values.
        mode: of the model meanwhile.
        random: the model is known to draw random numbers, and the attack averaged them out.
        surrogate: another model for the same classes; its adversarial points should not do better than those of the attack.
        seed: of the experiments.
    """
    right = result.correct.nonzero().squeeze(1)
    if not len(right):
        nothing = (
            "it gets no point right without an attack: other labels, other pixels or a diverged training?"
        )
        return GradientMaskingReport((Indicator("the model", True, nothing),))
    some = _spread(right)
    stood = _spread(result.robust.nonzero().squeeze(1))
    with model_state_preserved(model, mode), torch.no_grad():
        lab = _Lab(model, x[some], y[some], norm, eps, seed)
        signs = [_output(lab), *_randomness(lab, random), _rounding(lab), _blindness(lab, result.stages)]
        signs.append(_saturation(lab))
        if not random:
            signs.append(_ascent(lab))
        signs.append(_grey(lab))
        if len(stood):
            signs += _others(_Lab(model, x[stood], y[stood], norm, eps, seed), result.stages, random)
    if surrogate is not None and len(stood):
        signs.append(_transfer(model, surrogate, x[stood], y[stood], norm, eps, mode, seed))
    return GradientMaskingReport(tuple(signs))


class _Lab(NamedTuple):
    """What the experiments are made with."""

    model: nn.Module
    x: Tensor
    y: Tensor
    norm: float
    eps: float
    seed: int

    def logits(self, x: Tensor) -> Tensor:
        """(B, K)."""
        return wide(self.model(x))

    def breaks(self, search: Search[Any], eps: float) -> int:
        """How many of the points a search makes misclassified."""
        problem = Problem(self.model, self.x, self.y, self.logits(self.x), eps, self.norm)
        result = run_searches(problem, [Searches(search)], Options(self.seed, SAMPLE))
        return int(result.misclassified.sum())


def _spread(points: Tensor) -> Tensor:
    """At most SAMPLE of the points, evenly spread, for data may be sorted."""
    count = min(len(points), SAMPLE)
    return points[torch.arange(count, device=points.device) * len(points) // max(count, 1)]


def _far_apart(a: Tensor, b: Tensor) -> Tensor:
    """Which rows of logits differ by more than kernels round, (B,)."""
    return (a - b).abs().amax(1) > 1e-4 * torch.maximum(a.abs().amax(1), a.std())


def _output(lab: _Lab) -> Indicator:
    logits = lab.logits(lab.x)
    sums_to_one = bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all())
    if sums_to_one:
        return Indicator(
            "the output", True,
            "its rows are probabilities, not logits: their gradients vanish where the model is sure; leave out the softmax",
        )  # fmt: skip
    return Indicator("the output", False, "it gives logits, not probabilities")


def _randomness(lab: _Lab, known: bool) -> Iterable[Indicator]:
    once, total = lab.logits(lab.x), len(lab.x)
    differ = int(_far_apart(once, lab.logits(lab.x)).sum())
    if differ:
        seen = f"two passes over the same points differ for {differ} of {total}"
        hint = "" if known else ': the attack met another model at each step; use version="rand"'
        yield Indicator("the random layers", not known, seen + hint)
        return
    yield Indicator("the random layers", False, f"two passes over the same {total} points agree")
    alone = torch.cat([lab.logits(part) for part in lab.x.split(max(total // 4, 1))])
    differ = int(_far_apart(once, alone).sum())
    if differ:
        why = f"the answers for {differ} of {total} points depend on the batch that they are in: batch norm in train mode?"
        yield Indicator("the mode", True, why)
    else:
        yield Indicator("the mode", False, "an answer does not depend on the batch that a point is in")


def _rounding(lab: _Lab) -> Indicator:
    """Logits of float32 feel moves of 1e-5; those of half precision need not."""
    where, total = "the input layer", len(lab.x)
    dtypes = {t.dtype for t in (lab.x, *lab.model.parameters()) if t.is_floating_point()}
    if not dtypes <= {torch.float32, torch.float64}:
        return Indicator(where, False, "not looked at: the model is in half precision")
    nudged = lab.x + torch.where(lab.x < 0.5, 1e-5, -1e-5)
    same = int((lab.logits(lab.x) == lab.logits(nudged)).all(1).sum())
    if same > total * MANY:
        why = f"the logits of {same} of {total} points do not feel it when every pixel moves by 0.00001"
        return Indicator(
            where, True, f"{why}: rounding there, or saturation after it, leaves no gradient or one made up"
        )
    return Indicator(
        where, False, f"the logits feel it when pixels move by 0.00001, at {total - same} of {total} points"
    )


def _gradient(lab: _Lab, cross_entropy: bool = False) -> Tensor:
    """(B, C, H, W), of the log-odds, or of cross-entropy as other tools compute it."""
    with torch.enable_grad():
        z = lab.x.detach().requires_grad_()
        logits = lab.logits(z)
        loss = F.cross_entropy(logits, lab.y, reduction="none") if cross_entropy else log_odds(logits, lab.y)
        return torch.autograd.grad(loss.sum(), z)[0]


def _size(grad: Tensor) -> Tensor:
    return grad.flatten(1).abs().amax(1)


def _blindness(lab: _Lab, stages: tuple[StageResult, ...]) -> Indicator:
    where, size, total = "the gradient", _size(_gradient(lab)), len(lab.x)
    broken, zero = int((~(size < math.inf)).sum()), int((size == 0).sum())
    seen = [(broken, total, "NaN or infinite"), (zero, total, "exactly zero")]
    for stage in stages:
        seen += [
            (stage.nonfinite_gradients, stage.attacked, f"NaN or infinite in {stage.name}"),
            (stage.zero_gradients, stage.attacked, f"exactly zero at the end of {stage.name}"),
        ]
    faults = [
        f"it is {what} for {count} of {all_} points" for count, all_, what in seen if count > all_ * MANY
    ]
    if faults:
        return Indicator(where, True, "; ".join(faults))
    return Indicator(where, False, f"it is finite and not zero at {total - broken - zero} of {total} points")


def _saturation(lab: _Lab) -> Indicator:
    where, total = "the softmax", len(lab.x)
    blind = int(((_size(_gradient(lab, cross_entropy=True)) == 0) & (_size(_gradient(lab)) > 0)).sum())
    lead = -float(margin(lab.logits(lab.x), lab.y).median())
    if blind > total * MANY:
        why = f"it is saturated (the right logit leads by {lead:.4g}): the gradient of cross-entropy is exactly zero for"
        return Indicator(
            where,
            True,
            f"{why} {blind} of {total} points; the log-odds loss sees past that, other tools do not",
        )
    return Indicator(where, False, f"it is not saturated: the right logit leads by {lead:.4g} at the median")


def _ascent(lab: _Lab) -> Indicator:
    """A tenth of the radius along the gradient; what is stuck in a corner of the box does not count."""
    where, grad = "the loss", torch.nan_to_num(_gradient(lab), 0.0, 0.0, 0.0)
    moved = ball(lab.x, lab.eps, lab.norm).ascend(lab.x, grad, lab.eps / 10)
    went = (moved != lab.x).flatten(1).any(1)
    rose = log_odds(lab.logits(moved), lab.y) > log_odds(lab.logits(lab.x), lab.y)
    flat, total = int((went & ~rose).sum()), int(went.sum())
    if flat > max(total, 1) * 4 * MANY:
        why = f"it does not rise along its gradient, a tenth of the radius on, for {flat} of {total} points"
        return Indicator(where, True, why)
    return Indicator(where, False, f"it rises along its gradient for {total - flat} of {total} points")


def _grey(lab: _Lab) -> Indicator:
    """With pixels free to move by 0.5 all points can become the same grey image, of which there is one answer."""
    where, total = "the large radius", len(lab.x)
    size = lab.x[0].numel()
    wide_eps = max(lab.eps, 0.5 * (size ** (1 / lab.norm) if lab.norm < math.inf else 1))
    stand = total - lab.breaks(apgd_search(lab.norm, STEPS), wide_eps)
    seen = f"at ε = {wide_eps:.4g}, where all points can become one grey image, {stand} of {total} stand"
    return Indicator(where, stand > total * MANY, f"{seen}; expected none" if stand > total * MANY else seen)


def _others(lab: _Lab, stages: tuple[StageResult, ...], random: bool) -> Iterable[Indicator]:
    """What attacks of another kind do to points that stood; what AutoAttack ran itself is not run again."""
    ran = {stage.name: stage for stage in stages}
    if "Square" in ran:
        yield _stronger(
            "Square, which uses no gradients,", ran["Square"].misclassified, ran["Square"].attacked
        )
    elif not random:
        broken = lab.breaks(Square(lab.norm, QUERIES), lab.eps)
        yield _stronger(f"Square, which uses no gradients, with {QUERIES} queries", broken, len(lab.x))
    if not random and not any(name.startswith("APGD") for name in ran):
        broken = lab.breaks(apgd_search(lab.norm, STEPS), lab.eps)
        yield _stronger(f"APGD with {STEPS} steps", broken, len(lab.x))


def _stronger(what: str, broken: int, tried: int) -> Indicator:
    bad = broken > max(tried * MANY, 1)
    text = f"{what} breaks {broken} of {tried} points that stood before it"
    return Indicator("the attack", bad, f"{text}: it is too weak here, or blind" if bad else text)


def _transfer(
    model: nn.Module,
    surrogate: nn.Module,
    x: Tensor,
    y: Tensor,
    norm: float,
    eps: float,
    mode: Mode,
    seed: int,
) -> Indicator:
    points = pgd(norm, eps, STEPS, mode="eval", seed=seed)(surrogate, x, y)
    with model_state_preserved(model, mode), torch.no_grad():
        broken = int((wide(model(points)).argmax(1) != y).sum())
    bad = broken > max(len(x) * MANY, 1)
    text = f"points that were made for the surrogate break {broken} of {len(x)} points that stood"
    return Indicator(
        "the attack", bad, f"{text}: it is blind where the surrogate's gradients see" if bad else text
    )
