"""The experiments of :mod:`opnorm.attacks.gradient_masking`: one function each, on at most 64 points."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._checks import are_probabilities
from opnorm.attacks._masking_points import QUERIES, SEARCHED, STEPS, TARGETS, TOLERATED, Points, differ
from opnorm.attacks.losses import log_odds, margin

__all__ = ["CORRECT", "ROBUST", "Outcome", "other_attack"]

DIRECTIONS = 3  # random ones, along which derivatives are measured
MOVES = 4  # random ones and their opposites, of the length of the radius
UNEXPLAINED = 0.25  # share of the squared change of the loss that the gradient need not predict
STEEPER = 20  # the change of the loss between images over what the gradients at them account for


def _size(grad: Tensor) -> Tensor:
    return grad.flatten(1).abs().amax(1)


# ---------------------------------------------------------------- experiments on correct points

Outcome = tuple[bool, str, str]
"""Whether it is suspicious, the observation if it is, and if it is not."""


def _probabilities(points: Points) -> Outcome:
    bad = "its rows are probabilities, not logits, whose gradients vanish where the model is sure: remove the softmax"
    return are_probabilities(points.logits), bad, "its rows are logits, not probabilities"


def _second_pass(points: Points) -> Outcome:
    total = len(points.x)
    differ = f"two passes over the same points differ for {points.changed} of {total}"
    bad = f'{differ}: the attack meets another model at each step; use version="rand"'
    fine = differ if points.changed else f"two passes over the same {total} points agree"
    return points.changed > 0 and not points.random, bad, fine


def _other_batch(points: Points) -> Outcome | None:
    if points.changed:
        return None
    total = len(points.x)
    parts = torch.cat([points.compute(part) for part in points.x.split(max(total // 4, 1))])
    depend = differ(points.logits, parts)
    bad = f"the logits of {depend} of {total} points depend on the batch: batch norm in train mode?"
    return depend > 0, bad, "the logits of a point do not depend on its batch"


def _small_change(points: Points) -> Outcome:
    """Logits of float32 change with pixels by 1e-5; those of half precision need not."""
    total = len(points.x)
    if not points.precise:
        return False, "", "not examined: the model is in half precision"
    moved = points.x + torch.where(points.x < 0.5, 1e-5, -1e-5).to(points.x.dtype)
    same = int((points.logits == points.compute(moved)).all(1).sum())
    bad = (
        f"the logits of {same} of {total} points stay the same when every pixel changes by 0.00001: rounding there, or "
        "saturation after it, leaves no gradient or an artificial one"
    )
    fine = f"a change of 0.00001 changes the logits of {total - same} of {total} points"
    return same > total * TOLERATED, bad, fine


def _finite_gradient(points: Points) -> Outcome:
    size, total = _size(points.gradient), len(points.x)
    nonfinite, zero = int((~(size < math.inf)).sum()), int((size == 0).sum())
    faults = [(nonfinite, total, "NaN or infinite"), (zero, total, "exactly zero")]
    for s in points.stages:
        faults.append((s.nonfinite_gradients, s.attacked, f"NaN or infinite in {s.name}"))
        faults.append((s.zero_gradients, s.attacked, f"exactly zero at the end of {s.name}"))
    texts = [f"it is {fault} for {n} of {of} points" for n, of, fault in faults if n > of * TOLERATED]
    fine = f"it is finite and not zero for {total - nonfinite - zero} of {total} points"
    return bool(texts), "; ".join(texts), fine


def _saturation(points: Points) -> Outcome:
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


def _ascent(points: Points) -> Outcome | None:
    """A tenth of the radius along the gradient; points that cannot move, in a corner of the box, do not count."""
    if points.random:
        return None
    grad = torch.nan_to_num(points.gradient, 0.0, 0.0, 0.0)
    z = points.ball.ascend_in_box(points.x, grad, points.eps / 10)
    moved = (z != points.x).flatten(1).any(1)
    rose = points.loss(z) > log_odds(points.logits, points.y)
    flat, total = int((moved & ~rose).sum()), int(moved.sum())
    bad = f"it does not rise along its gradient, over a tenth of the radius, for {flat} of {total} points"
    fine = f"it rises along its gradient for {total - flat} of {total} points"
    return flat > max(total, 1) * 4 * TOLERATED, bad, fine


def _derivative(points: Points) -> Outcome | None:
    """Whether autograd's gradient is the derivative of the loss, along random directions.

    With signs d and a small h, a = (ℓ(x + h d) - ℓ(x - h d)) / 2 is h ⟨∇ℓ, d⟩ up to O(h³). The point x is random within 2 h,
    since a ReLU at exactly 0 has two derivatives. Changes near the rounding of the logits are not judged.
    """
    if points.changed or not points.precise:
        return None
    size, total = points.x[0].numel(), len(points.x)
    h = min(max(points.eps / 100 / size ** (1 / points.norm), 1e-4), 1e-2)
    draws = [2 * points.uniform(k) - 1 for k in range(1 + DIRECTIONS)]
    x, directions = points.x.clamp(2 * h, 1 - 2 * h) + h * draws[0], [draw.sign() for draw in draws[1:]]
    grad = points.gradient_of(log_odds, x)
    change = torch.stack([(points.loss(x + h * d) - points.loss(x - h * d)) / 2 for d in directions])
    expected = torch.stack([h * (grad * d).flatten(1).sum(1) for d in directions])
    larger = torch.maximum(change.square().sum(0), expected.square().sum(0))
    rounding = 100 * torch.finfo(points.logits.dtype).eps * points.logits.abs().amax(1)
    wrong = (larger > rounding.square()) & ((change - expected).square().sum(0) > UNEXPLAINED * larger)
    bad = (
        f"it is not the derivative of the loss for {int(wrong.sum())} of {total} points: over {h:.2g} along random "
        "directions the loss changes otherwise than it says; a straight-through, detached or discontinuous part?"
    )
    fine = f"it is the derivative of the loss for {total - int(wrong.sum())} of {total} points"
    return int(wrong.sum()) > total * 2 * TOLERATED, bad, fine


def _random_moves(points: Points) -> Outcome | None:
    """A step of the length of the radius along the gradient, beside random ones of that length.

    Where the loss is close to linear, the step along the gradient raises it the most of all steps of its length. In ℓ1 a
    step moves single pixels through their whole range, over which it need not be: not examined.
    """
    if points.changed or points.random or points.norm == 1:
        return None
    grad, total, best = torch.nan_to_num(points.gradient, 0.0, 0.0, 0.0), len(points.x), list[Tensor]()
    along = points.loss(points.ball.ascend_in_box(points.x, grad, points.eps))
    for k in range(MOVES):
        draw = points.uniform(1 + DIRECTIONS + k) - 0.5
        best += [points.loss(points.ball.ascend_in_box(points.x, v, points.eps)) for v in (draw, -draw)]
    better = int((torch.stack(best).amax(0) > along).sum())
    bad = (
        f"the best of {2 * MOVES} random steps of length ε raises it more than the step along its gradient for {better} of "
        f"{total} points: the gradient does not say where the loss rises at this distance"
    )
    fine = f"a step along its gradient raises it more than {2 * MOVES} random ones for {total - better} of {total} points"
    return better > total * 2 * TOLERATED, bad, fine


def _between_images(points: Points) -> Outcome | None:
    """The change of the loss from a point to one of another class, over the most that the gradient accounts for.

    The change is the mean of ⟨∇ℓ(z), d⟩ along the way d, at most that of Σ_i |∂_i ℓ(z)| |d_i|. Where this sum is far smaller
    at the point itself, the gradient there is not that of the loss at a larger distance.
    """
    count = len(points.x)
    turn = torch.arange(count, device=points.y.device)
    others = (turn[:, None] + turn[None, 1:]) % count
    differs = points.y[others] != points.y[:, None]
    if points.changed or not differs.any():
        return None
    rows = differs.any(1).nonzero().squeeze(1)
    partner = others[rows, differs[rows].int().argmax(1)]
    y = points.y[rows]
    change = log_odds(points.logits[partner], y) - log_odds(points.logits[rows], y)
    way = (points.x[partner] - points.x[rows]).abs()
    allowed = (torch.nan_to_num(points.gradient[rows], 0.0, 0.0, 0.0).abs() * way).flatten(1).sum(1)
    ratio = float(torch.where(allowed > 0, change / allowed, math.inf).median())
    text = f"from an image to one of another class it changes {ratio:.3g} times as much as the gradient there accounts for"
    bad = f"{text}, at most {STEEPER} expected: the gradient is that of a small part of the network, or it is flat at images"
    return ratio > STEEPER, bad, text


def _large_radius(points: Points) -> Outcome | None:
    """When pixels may change by 0.5, all points can become the same gray image, which has one class."""
    if points.norm not in SEARCHED:
        return None
    total, size = len(points.x), points.x[0].numel()
    eps = max(points.eps, 0.5 * (size ** (1 / points.norm) if points.norm < math.inf else 1))
    robust = total - int(points.broken_by(apgd_search(points.norm, STEPS), eps).sum())
    fine = f"at ε = {eps:.4g}, where all points can become one gray image, {robust} of {total} are robust"
    return robust > total * TOLERATED, f"{fine}; expected none", fine


# ---------------------------------------------------------------- experiments on robust points


def _square(points: Points) -> Outcome | None:
    """Whether an attack without gradients finds what attacks with gradients do not; AutoAttack may have run both."""
    for stage in points.stages:
        if stage.name == "Square":
            fall = stage.misclassified / points.correct
            return _no_gradients(
                "Square", stage.misclassified, stage.attacked, fall, "the attacks before it do not"
            )
    if points.without_search:
        return None
    tried, broken = points.targeted
    but = f"APGD does not for {points.square_alone}, and with {TARGETS} targets not for {tried - broken} of {tried} tried"
    name, found = f"Square with {QUERIES} queries", int(points.found_by_square.sum())
    return _no_gradients(name, found, len(points.x), points.fall(points.square_only), but)


def _no_gradients(name: str, found: int, attacked: int, fall: float, but: str) -> Outcome:
    fine = f"{name}, which uses no gradients, finds adversarial points for {found} of {attacked} robust ones"
    bad = (
        f"{fine}; {but}: {fall:.1%} of the correct points, at most {TOLERATED:.0%} expected; an attack by gradients finds "
        "less than one without them"
    )
    return fall > TOLERATED and found > 1, bad, fine


def _stronger(points: Points) -> Outcome | None:
    """Other attacks with gradients: APGD where AutoAttack did not run it, and with targets where Square found points."""
    if points.without_search or any(stage.name.startswith("APGD") for stage in points.stages):
        return None
    found, (tried, broken) = int(points.found_by_apgd.sum()), points.targeted
    fall = points.fall(found + points.square_alone - points.square_only if broken else found)
    also = f", and with {TARGETS} targets for {broken} of {tried} that only Square finds" if broken else ""
    return other_attack(f"APGD with {STEPS} steps", found, len(points.x), fall, also)


def other_attack(name: str, found: int, attacked: int, fall: float, also: str = "") -> Outcome:
    """Whether the robust accuracy falls by more than TOLERATED of the correct points."""
    fine = f"{name} finds adversarial points for {found} of {attacked} points that were robust before{also}"
    bad = f"{fine}: {fall:.1%} of the correct ones, at most {TOLERATED:.0%} expected; the attack is too weak here"
    return fall > TOLERATED and (found > 1 or bool(also)), bad, fine


CORRECT = {
    "the output": (_probabilities,),
    "the random layers": (_second_pass,),
    "the mode": (_other_batch,),
    "the input layer": (_small_change,),
    "the gradient": (_finite_gradient, _derivative),
    "the softmax": (_saturation,),
    "the loss": (_ascent, _random_moves, _between_images),
    "the large radius": (_large_radius,),
}
ROBUST = {"the gradient attack": (_square,), "the attack": (_stronger,)}
