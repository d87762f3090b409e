"""Projected gradient ascent on the inputs: FGSM and PGD."""

import math
import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm._core.random import normal, point_keys
from opnorm._core.surrogate import evaluation_surrogate
from opnorm.attacks._checks import check_inputs, check_logits, is_amount
from opnorm.attacks.losses import AGAINST_CLEAN, AGAINST_LABELS, LOSSES, Loss, rank_targets, towards, wide
from opnorm.attacks.projections import Ball, ball
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["Ascent", "Attack", "Start", "StepRule", "Watch", "check_inputs", "check_logits", "fgsm", "pgd"]

Start = Literal["point", "uniform", "gaussian"]
"""Where an ascent begins: at the point, uniformly in the ball, or at the point with Gaussian noise of deviation 0.001."""
StepRule = Literal["constant", "linear", "cosine"]
"""How the length of step k = 0, 1, ... of K goes on: as it is, times 1 - k / K, or times (1 + cos(π k / K)) / 2."""


@runtime_checkable
class Attack(Protocol):
    """Find, near each input, one that the model gets wrong.

    Calling it with (model, x, y), pixels (B, C, H, W) in [0, 1] and labels (B,), gives points of the same shape that lie
    exactly in the ball and in [0, 1]. The model comes back as it was, and no global random state has moved. ``seed``
    replaces the attack's own seed for this call.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point of the batch."""


@factory("attack")
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
        norm: of the ball: 1, 2 or inf.
        random_start: begin at a random point of the ball.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the random start.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Goodfellow, Shlens & Szegedy 2015; ℓ1 and ℓ2 steps as Roth et al. 2020, Eq. 17.
    """
    start: Start = "uniform" if random_start else "point"
    return Ascent(norm, eps, 1, eps, start=start, mode=mode, seed=seed)


@factory("attack")
def pgd(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float | None = None,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
    stop_at_success: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
    bf16: bool = True,
    targets: int = 0,
    step_rule: StepRule = "constant",
) -> Attack:
    """Projected gradient descent on the margin of safety, that is, ascent on the loss.

    x_k = Π(x_{k-1} + step · direction(∇ℓ(f(x_{k-1}), y))), Π the projection on the ball of radius ε cut with [0, 1].

    Losses against the label: "ce" (cross-entropy), "cw" (largest wrong logit minus right logit), "dlr" (that over the gap
    between the first and the third logit). Against f(x), label or not: "kl" (KL(f(x) ‖ f(x_k))), and "l1", "l2", "linf"
    (‖f(x_k) - f(x)‖_q, the ascent of Roth's Theorem 1). Towards a target class t: "ce" is the log-odds of t, "cw" z_t - z_y,
    "dlr" that over z_1 - (z_3 + z_4) / 2, logits sorted.

    Args:
        norm: of the ball: 1, 2 or inf.
        eps: radius, in pixel values of [0, 1]; ``8/255``.
        steps: gradient steps.
        step: their length; 2.5 ε / steps when None (Madry et al.).
        restarts: how many times from the beginning; a point keeps the worst that was found.
        random_start: begin uniformly in the ball, not at the point itself, where losses against f(x) have no gradient.
        loss: one of those above.
        stop_at_success: a point leaves the batch as soon as it is misclassified: for evaluation, where only that counts.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the random starts; each point has its own, whatever batch it is in.
        bf16: take gradients of losses against the label from a bfloat16 copy, if there are 10 steps or more, the hardware
            has bfloat16, all is in float32, and the copy agrees with the model. Who is fooled, the model itself says.
        targets: 0, or towards how many wrong classes to go, one after another, those with the largest clean logits first;
            a loss against the label is needed. Any wrong class counts as fooled.
        step_rule: "constant"; "linear" or "cosine" let the step fall from ``step`` towards 0. For steps that follow the loss
            see :func:`opnorm.attacks.apgd`.

    Returns:
        An attack; it warns, once a call, of points where the gradient is zero, NaN or infinite.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Madry et al. 2018; Roth et al. 2020, Eq. 17.
    """
    start: Start = "uniform" if random_start else "point"
    return Ascent(
        norm, eps, steps, step, restarts, start, loss, stop_at_success, mode, seed, bf16, targets, step_rule
    )


@dataclass(frozen=True, eq=False)  # two attacks with equal settings are two objects, each with its own text
class Ascent:
    """The attack that :func:`pgd` describes; ``start`` says where it begins.

    Raises:
        AttackError: a setting that makes no sense.
    """

    norm: float
    eps: float
    steps: int
    step: float | None = None
    restarts: int = 1
    start: Start = "uniform"
    loss: str = "ce"
    stop_at_success: bool = False
    mode: Mode = "eval"
    seed: int = 0
    bf16: bool = True
    targets: int = 0
    step_rule: StepRule = "constant"

    def __post_init__(self) -> None:
        _check_settings(self)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point, check what comes in, and warn of gradients that say nothing."""
        check_inputs(x, y)
        if self.eps == 0 or len(x) == 0:
            return x.detach().clone()
        seed, watch = self.seed if seed is None else seed, Watch.over(x)
        with model_state_preserved(model, self.mode), torch.no_grad():
            guide = self._guide(model, x, y)
            if self.restarts == 1 and not self.stop_at_success and not self.targets:  # no further pass
                found = self.last(guide, x, y, seed, watch)
            else:
                found = self._worst(model, guide, x.detach(), y, seed, watch)
        watch.warn()
        return found

    def last(self, model: nn.Module, x: Tensor, y: Tensor, seed: int, watch: "Watch | None" = None) -> Tensor:
        """The last iterate of a single ascent, as in training.

        Without a ``watch`` it is for inputs and a model known to be good: nothing is checked, no gradient is looked at,
        and a GPU is hardly ever waited for.
        """
        if self.eps == 0:
            return x.detach()
        with model_state_preserved(model, self.mode), torch.no_grad():
            x = x.detach()
            region, goal = ball(x, self.eps, self.norm), self._goal(model, x, y, watch)
            z = self._begin(region, seed)
            for k in range(self.steps):
                grad = _look(model, z, y, goal, watch).grad
                z = region.ascend(z, grad, self._length(k))
            return z

    def _guide(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """Whom to ask for gradients; a stand-in costs as much as some steps, and rounds small distances away."""
        if not (self.bf16 and self.mode == "eval" and self.steps >= 10 and self.loss in AGAINST_LABELS):
            return model
        check_logits(model(x[:16]), y[:16])
        return evaluation_surrogate(model, x[:16], y[:16]) or model

    def _length(self, k: int) -> float:
        """Of step k."""
        first, share = 2.5 * self.eps / self.steps if self.step is None else self.step, k / self.steps
        match self.step_rule:
            case "linear":
                return first * (1 - share)
            case "cosine":
                return first * (1 + math.cos(math.pi * share)) / 2
        return first

    def _begin(self, region: Ball, seed: int, restart: int = 0) -> Tensor:
        if self.start == "point":
            return region.x
        keys = point_keys(region.x, seed, restart)
        if self.start == "uniform":
            return region.start(keys)
        noise = 0.001 * normal(keys, region.x[0].numel()).view_as(region.x)
        return region.project(region.x + noise.to(region.x.dtype))

    def _goal(self, model: nn.Module, x: Tensor, y: Tensor, watch: "Watch | None") -> "_Goal":
        """The loss, with what each point is held against."""
        if self.loss not in AGAINST_CLEAN:
            return _Goal(LOSSES[self.loss], y)
        return _Goal(LOSSES[self.loss], _clean(model, x, y, check=watch is not None))

    def _worst(
        self, model: nn.Module, guide: nn.Module, x: Tensor, y: Tensor, seed: int, watch: "Watch"
    ) -> Tensor:
        """The worst of all restarts, by loss; misclassified points need no further ones."""
        goals = [self._goal(model, x, y, watch)]
        worst, worst_loss = x.clone(), torch.full((len(x),), -math.inf, device=x.device)
        left = torch.arange(len(x), device=x.device)
        if self.stop_at_success:  # what is wrong without any attack is fooled by none
            left = left[~_look(model, x, y, goals[0], watch, need_grad=False).wrong]
        if self.targets:
            ranked = rank_targets(_clean(model, x, y), y, self.targets)
            goals = [_Goal(towards(self.loss), torch.stack([y, target], 1)) for target in ranked.unbind(1)]
        # a restart has random numbers of its own, and so has every target
        for job, goal in enumerate(goals * self.restarts if len(left) else ()):
            region = ball(x[left], self.eps, self.norm)
            begin = self._begin(region, seed, job)
            found, value, fooled = self._chase(
                model, guide, begin, y[left], region, goal.select(left), watch.select(left)
            )
            better = fooled | (value > worst_loss[left])
            worst[left[better]], worst_loss[left[better]] = found[better], value[better]
            left = left[~fooled]
            if not len(left):
                break
        return worst

    def _chase(
        self,
        model: nn.Module,
        guide: nn.Module,
        z: Tensor,
        y: Tensor,
        region: Ball,
        goal: "_Goal",
        watch: "Watch",
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Climb, and say for each point where it ended, at which loss, and whether it is misclassified there.

        With ``stop_at_success``, a point that is misclassified takes no further steps and leaves the batch.
        """
        end, value = z.clone(), torch.full((len(z),), -math.inf, device=z.device)
        fooled = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        left = torch.arange(len(z), device=z.device)
        for k in range(self.steps + 1):
            last = k == self.steps
            grad, loss, wrong = _look(model if last else guide, z, y[left], goal, watch, need_grad=not last)
            if self.stop_at_success and not last and guide is not model and wrong.any():
                at = wrong.nonzero().squeeze(1)  # of these the guide may be mistaken
                seen = _look(model, z[at], y[left[at]], goal.select(at), None, need_grad=False)
                wrong[at], loss[at] = seen.wrong, seen.loss
            stop = wrong if self.stop_at_success else torch.zeros_like(wrong)
            leaving = torch.ones_like(wrong) if last else stop
            out = left[leaving]
            end[out], value[out], fooled[out] = z[leaving], loss[leaving], wrong[leaving]
            if leaving.any():
                staying = ~leaving
                left, z, grad, region = left[staying], z[staying], grad[staying], region.select(staying)
                goal, watch = goal.select(staying), watch.select(staying)
            if not len(left):
                break
            z = region.ascend(z, grad, self._length(k))
        return end, value, fooled


class _Goal(NamedTuple):
    """A loss, and what it holds each point against: labels (B,), clean logits (B, K), or labels and targets (B, 2)."""

    loss: Loss
    against: Tensor

    def select(self, kept: Tensor) -> "_Goal":
        return _Goal(self.loss, self.against[kept])


@dataclass(frozen=True)
class Watch:
    """Whoever looks on: has logits checked, and marks where gradients say nothing.

    Attributes:
        points: those of the batch that are being attacked, as indices.
        zero: (B,), the last gradient is exactly zero.
        broken: (B,), a gradient was NaN or infinite.
    """

    points: Tensor
    zero: Tensor
    broken: Tensor

    @staticmethod
    def over(x: Tensor) -> "Watch":
        """One that has seen nothing yet."""
        zero = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return Watch(torch.arange(len(x), device=x.device), zero, zero.clone())

    def select(self, kept: Tensor) -> "Watch":
        """On some of the points, with the same marks."""
        return Watch(self.points[kept], self.zero, self.broken)

    def see(self, grad: Tensor, wrong: Tensor) -> None:
        """A point whose last gradient is zero has stopped there; that is no harm where it is misclassified."""
        size = grad.flatten(1).abs().amax(1)
        self.zero[self.points] = (size == 0) & ~wrong
        self.broken[self.points] |= ~(size < math.inf)

    def warn(self) -> None:
        """Say, if there is anything to say, for how many points the attack was blind."""
        for points, what in ((self.zero, "exactly zero"), (self.broken, "NaN or infinite")):
            if blind := int(points.sum()):
                warnings.warn(
                    f"the gradient is {what} for {blind} of {len(points)} points: the attack has no direction there, "
                    "and a robust accuracy from it is too high",
                    stacklevel=3,
                )


class _Seen(NamedTuple):
    grad: Tensor
    loss: Tensor
    wrong: Tensor


def _look(
    model: nn.Module, z: Tensor, y: Tensor, goal: _Goal, watch: Watch | None, need_grad: bool = True
) -> _Seen:
    """Gradient of each point's own loss, the loss, and whether the point is misclassified."""
    with torch.set_grad_enabled(need_grad):
        z = z.detach().requires_grad_(need_grad)
        logits = model(z)
        if watch:
            check_logits(logits, y)
        logits = wide(logits)
        loss = goal.loss(logits, goal.against)
        if need_grad and not loss.requires_grad:
            raise AttackError(
                "no gradient reaches the inputs; is there a detach() or no_grad() in the model?"
            )
        grad = torch.autograd.grad(loss.sum(), z)[0] if need_grad else torch.zeros_like(z)
    wrong = logits.detach().argmax(1) != y
    if watch and need_grad:
        watch.see(grad, wrong)
    return _Seen(torch.nan_to_num(grad, 0.0, 0.0, 0.0), loss.detach().float(), wrong)


def _clean(model: nn.Module, x: Tensor, y: Tensor, check: bool = True) -> Tensor:
    logits = model(x)
    if check:
        check_logits(logits, y)
    return wide(logits)


def _check_settings(a: Ascent) -> None:
    counts = {"steps": a.steps, "restarts": a.restarts, "targets": a.targets, "seed": a.seed}
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or abs(count) >= 2**63:
            raise AttackError(f"{name}={count!r}: expected a whole number")
    if isinstance(a.norm, bool) or a.norm not in (1, 2, math.inf):
        raise AttackError(f"norm={a.norm!r} is not known here; expected 1, 2 or inf")
    if not is_amount(a.eps):
        raise AttackError(
            f"eps={a.eps!r}: expected a radius of at least 0 in pixel values of [0, 1], such as 8/255"
        )
    if a.norm == math.inf and a.eps > 1:
        raise AttackError(
            f"eps={a.eps!r} is larger than the whole range [0, 1] of a pixel; did you mean {a.eps:g}/255?"
        )
    if a.steps < 0 or a.restarts < 1 or a.targets < 0:
        raise AttackError(
            f"steps={a.steps!r}, restarts={a.restarts!r}, targets={a.targets!r}: expected at least 0, 1 and 0"
        )
    if a.step is not None and not is_amount(a.step):
        raise AttackError(f"step={a.step!r}: expected a length of at least 0 in pixel values")
    for name, word, known in (
        ("loss", a.loss, tuple(LOSSES)),
        ("mode", a.mode, get_args(Mode)),
        ("start", a.start, get_args(Start)),
        ("step_rule", a.step_rule, get_args(StepRule)),
    ):
        if word not in known:
            raise AttackError(f"{name}={word!r} is not known; expected one of {', '.join(known)}")
    if a.loss in AGAINST_CLEAN and a.targets:
        raise AttackError(
            f"loss={a.loss!r} knows no target classes; expected one of {', '.join(AGAINST_LABELS)}"
        )
    if a.loss in AGAINST_CLEAN and a.start == "point":
        raise AttackError(
            f"loss={a.loss!r} compares with the logits of the point itself, where its gradient is zero: "
            "expected a random start"
        )
