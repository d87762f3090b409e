"""Projected gradient ascent on the inputs: FGSM and PGD."""

import math
import warnings
from collections.abc import Callable
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm.attacks.projections import Ball, ball
from opnorm.attacks.random import point_keys
from opnorm.errors import AttackError
from opnorm.modes import Mode, undisturbed
from opnorm.spec import factory

__all__ = ["Attack", "fgsm", "pgd"]


@runtime_checkable
class Attack(Protocol):
    """Find, near each input, one that the model gets wrong.

    Calling it with (model, x, y), pixels (B, C, H, W) in [0, 1] and labels (B,), gives points of the same shape that lie
    exactly in the ball and in [0, 1]. The model comes back as it was, and no global random state has moved. ``seed``
    replaces the attack's own seed for this call.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point of the batch."""


def _cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds m = log Σ_{i≠y} exp(z_i) - z_y of being wrong, of which cross-entropy is log(1 + exp(m)).

    So both climb in the same direction, and rank points alike, but the gradient of m does not vanish in float
    arithmetic when the model is sure, as that of cross-entropy does from odds of about 1e7 on.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.logsumexp(1) - logits.gather(1, y[:, None]).squeeze(1)


def _margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i≠y} z_i - z_y (Carlini & Wagner)."""
    others = logits.scatter(1, y[:, None], -math.inf)
    return others.amax(1) - logits.gather(1, y[:, None]).squeeze(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"ce": _cross_entropy, "cw": _margin}


@factory
def fgsm(
    eps: float = 8 / 255,
    norm: float = math.inf,
    random_start: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """The fast gradient sign method: one step of length ε.

    x* = Π(x_0 + ε · direction(∇ CE(f(x_0), y))), with x_0 = x, or uniform in the ball with ``random_start``.

    Args:
        eps: radius, in pixel values of [0, 1]; ``8/255``.
        norm: of the ball: 2 or inf.
        random_start: begin at a random point of the ball.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the random start.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Goodfellow, Shlens & Szegedy 2015; ℓ2 step as Roth et al. 2020, Eq. 17.
    """
    return _ascent(norm, eps, 1, eps, 1, random_start, "ce", False, mode, seed)


@factory
def pgd(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
    stop_when_fooled: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """Projected gradient descent on the margin of safety, that is, ascent on the loss.

    x_k = Π(x_{k-1} + step · direction(∇ℓ(f(x_{k-1}), y))), Π the projection on the ball of radius ε cut with [0, 1].

    Args:
        norm: of the ball: 2 or inf.
        eps: radius, in pixel values of [0, 1]; ``8/255``.
        steps: gradient steps.
        step: their length; 2.5 ε / steps when None (Madry et al.).
        restarts: how many times from the beginning; a point keeps the worst that was found.
        random_start: begin uniformly in the ball, not at the point itself.
        loss: "ce" (cross-entropy) or "cw" (largest wrong logit minus right logit).
        stop_when_fooled: a point leaves the batch as soon as it is misclassified: for evaluation, where only that counts.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the random starts; each point has its own, whatever batch it is in.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Madry et al. 2018; Roth et al. 2020, Eq. 17.
    """
    step = 2.5 * eps / max(steps, 1) if step is None else step
    return _ascent(norm, eps, steps, step, restarts, random_start, loss, stop_when_fooled, mode, seed)


def _ascent(
    norm: float, eps: float, steps: int, step: float, restarts: int, random_start: bool,
    loss: str, stop_when_fooled: bool, mode: Mode, own_seed: int,
) -> Attack:  # fmt: skip
    _check_settings(norm, eps, steps, step, restarts, loss, mode, own_seed)
    climb = LOSSES[loss]

    def attack(model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        check_inputs(x, y)
        if eps == 0 or len(x) == 0:
            return x.detach().clone()
        with undisturbed(model, mode), torch.no_grad():
            x = x.detach()
            worst, worst_loss = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
            left = torch.arange(len(x), device=x.device)
            if stop_when_fooled:  # what is wrong without any attack is fooled by none
                left = left[~_gradient(model, x, y, climb, need_grad=False)[2]]
            for restart in range(restarts if len(left) else 0):
                region = ball(x[left], eps, norm)
                begin = region.x
                if random_start:
                    begin = region.start(point_keys(region.x, own_seed if seed is None else seed, restart))
                if (
                    restarts == 1 and not stop_when_fooled
                ):  # as in training: the last iterate, no further pass
                    return _climb(model, begin, y, region, climb, steps, step)
                found, value, fooled = _chase(
                    model, begin, y[left], region, climb, steps, step, stop_when_fooled
                )
                better = fooled | (value > worst_loss[left])
                worst[left[better]], worst_loss[left[better]] = found[better], value[better]
                left = left[~fooled]
                if not len(left):
                    break
            return worst

    return attack


def _climb(
    model: nn.Module, z: Tensor, y: Tensor, region: Ball, climb: Callable, steps: int, step: float
) -> Tensor:
    for _ in range(steps):
        grad, _, _ = _gradient(model, z, y, climb)
        z = region.project(z + step * region.direction(grad))
    return z


def _chase(
    model: nn.Module, z: Tensor, y: Tensor, region: Ball, climb: Callable, steps: int, step: float, stop: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Climb, and say for each point where it ended, at which loss, and whether it is misclassified there.

    With ``stop``, a point that is misclassified takes no further steps and leaves the batch.
    """
    end, value = z.clone(), torch.full((len(z),), -math.inf, device=z.device)
    fooled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
    left = torch.arange(len(z), device=z.device)
    for k in range(steps + 1):
        last = k == steps
        grad, loss, wrong = _gradient(model, z, y[left], climb, need_grad=not last)
        leaving = torch.ones_like(wrong) if last else wrong if stop else torch.zeros_like(wrong)
        out = left[leaving]
        end[out], value[out], fooled[out] = z[leaving], loss[leaving], wrong[leaving]
        if leaving.any():
            staying = ~leaving
            left, z, grad, region = left[staying], z[staying], grad[staying], region.select(staying)
        if not len(left):
            break
        z = region.project(z + step * region.direction(grad))
    return end, value, fooled


def _gradient(
    model: nn.Module, z: Tensor, y: Tensor, climb: Callable, need_grad: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of each point's own loss, the loss, and whether the point is misclassified."""
    with torch.set_grad_enabled(need_grad):
        z = z.detach().requires_grad_(need_grad)
        logits = model(z)
        check_logits(logits, y)
        loss = climb(logits, y)
        if need_grad and not loss.requires_grad:
            raise AttackError(
                "no gradient reaches the inputs; is there a detach() or no_grad() in the model?"
            )
        grad = torch.autograd.grad(loss.sum(), z)[0] if need_grad else torch.zeros_like(z)
    if not torch.isfinite(grad).all():
        blind = int((~torch.isfinite(grad)).flatten(1).any(1).sum())
        warnings.warn(
            f"the gradient is NaN or infinite for {blind} of {len(z)} points: the attack is blind there, "
            "and a robust accuracy from it is too high",
            stacklevel=4,
        )
        grad = torch.nan_to_num(grad, 0.0, 0.0, 0.0)
    return grad, loss.detach().float(), logits.detach().argmax(1) != y


# ---------------------------------------------------------------- what makes sense


def _check_settings(
    norm: float, eps: float, steps: int, step: float, restarts: int, loss: str, mode: Mode, seed: int
) -> None:
    for name, value in (("steps", steps), ("restarts", restarts), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**63:
            raise AttackError(f"{name}={value!r}: expected a whole number")
    if norm not in (2, math.inf):
        raise AttackError(f"norm={norm!r} is not known here; expected 2 or inf")
    if not 0 <= eps < math.inf:
        raise AttackError(
            f"eps={eps!r}: expected a radius of at least 0 in pixel values of [0, 1], such as 8/255"
        )
    if norm == math.inf and eps > 1:
        raise AttackError(
            f"eps={eps!r} is larger than the whole range [0, 1] of a pixel; did you mean {eps:g}/255?"
        )
    if steps < 0 or restarts < 1:
        raise AttackError(f"steps={steps!r}, restarts={restarts!r}: expected at least 0 and at least 1")
    if not 0 <= step < math.inf:
        raise AttackError(f"step={step!r}: expected a length of at least 0 in pixel values")
    for name, word, known in (("loss", loss, LOSSES), ("mode", mode, get_args(Mode))):
        if word not in known:
            raise AttackError(f"{name}={word!r} is not known; expected one of {', '.join(known)}")


def check_inputs(x: Tensor, y: Tensor) -> None:
    """Pixels in [0, 1], one label each.

    Raises:
        AttackError: with the value found and the likely cause.
    """
    if not x.is_floating_point():
        raise AttackError(
            f"inputs are {x.dtype}; expected floating point in [0, 1]: divide uint8 pixels by 255"
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise AttackError(
            f"inputs of shape {tuple(x.shape)} and {y.dtype} labels of shape {tuple(y.shape)}; "
            "expected one int64 label for each input"
        )
    if not len(x):
        return
    low, high = float(x.min()), float(x.max())
    if math.isnan(low) or math.isnan(high):
        raise AttackError(
            f"{int(x.isnan().flatten(1).any(1).sum())} of {len(x)} inputs contain NaN; expected [0, 1]"
        )
    if low < 0 or high > 1:
        raise AttackError(
            f"inputs range from {low:.4g} to {high:.4g}; expected [0, 1]: put the normalization into the model"
        )


def check_logits(logits: object, y: Tensor) -> None:
    """One row of class scores for each label.

    Raises:
        AttackError: the model returns something else, or a label names no class.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        got = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise AttackError(f"the model returns {got}; expected logits of shape ({len(y)}, classes)")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < logits.shape[1]):
        raise AttackError(
            f"labels range from {int(y.min())} to {int(y.max())}, but the model has {logits.shape[1]} classes"
        )
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise AttackError(
            f"the model returns NaN or infinity for {bad} of {len(logits)} points; diverged training?"
        )
