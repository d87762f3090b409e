"""Projected gradient ascent on the inputs: FGSM and PGD."""

import math
from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import Ascent, Start, StepRule, check_ascent, check_settings
from opnorm._core.memory import small_frees_kept
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.random import normal, point_keys
from opnorm._core.surrogate import evaluation_surrogate
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._gradients import GradientMonitor, finite_gradient, input_gradient
from opnorm.attacks._rows import select
from opnorm.attacks.losses import AGAINST_CLEAN, AGAINST_LABELS, Loss, rank_targets, towards, wide
from opnorm.attacks.projections import Ball, ball
from opnorm.spec import factory

__all__ = ["PGD", "Ascent", "Attack", "Start", "StepRule", "fgsm", "pgd"]

POINTS_A_THREAD = 64  # on a CPU; a CNN for MNIST takes 1.4 times as long a point with 500


@runtime_checkable
class Attack(Protocol):
    """Find, near each input, one that the model misclassifies.

    Calling it with (model, x, y), inputs (B, ...) in [0, 1] and labels (B,), gives points of the same shape that lie
    exactly in the ball and in [0, 1]. The model comes back as it was, and no global random state has changed. ``seed``
    replaces the attack's own seed for this call.
    """

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point of the batch."""


@factory("attack")
def fgsm(
    eps: float = 8 / 255,
    norm: float = math.inf,
    *,
    random_start: bool = False,
    ascent: Ascent = "box",
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """The fast gradient sign method: one step of length ε.

    x* = Π(x_0 + ε · direction(∇ CE(f(x_0), y))), with x_0 = x, or uniform in the ball with ``random_start``. For ``ascent``
    see :func:`pgd`; other settings are those of :mod:`opnorm.attacks`.

    Raises:
        AttackError: an invalid setting or input.

    Source: Goodfellow, Shlens & Szegedy 2015; other norms as Roth et al. 2020, Eq. 17.
    """
    check_settings(any_norm=True, norm=norm, eps=eps, seed=seed)
    start: Start = "uniform" if random_start else "point"
    return PGD(norm, eps, steps=1, step=eps, start=start, ascent=ascent, mode=mode, seed=seed)


@factory("attack")
def pgd(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 10,
    step: float | None = None,
    *,
    restarts: int = 1,
    random_start: bool = True,
    loss: str = "ce",
    stop_at_success: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
    bf16: bool = True,
    targets: int = 0,
    step_rule: StepRule = "constant",
    ascent: Ascent = "box",
) -> Attack:
    """Projected gradient ascent on a loss, in any norm p from 1 on.

    x_k = Π(x_{k-1} + step · v), v = sign(g) ⊙ |g|^{p*-1} / ‖g‖_{p*}^{p*-1}, g = ∇ℓ(f(x_{k-1}), y), Π the projection on
    the ball of radius ε cut with [0, 1], 1/p + 1/p* = 1. So for ℓ1 all weight is on the largest coordinate, which may be at
    the end of its range already: there ``ascent="box"`` takes the best step of that length that stays in [0, 1] instead,
    and ``ascent="roth"`` the published one.

    Losses against the label: "ce" (cross-entropy), "cw" (largest wrong logit minus right logit), "dlr" (that over the gap
    between the first and the third logit). Against f(x), label or not: "kl" (KL(f(x) ‖ f(x_k))), and "l1", "l2", "linf"
    (‖f(x_k) - f(x)‖_q, the ascent of Roth's Theorem 1). Towards a target class t: "ce" is the log-odds of t, "cw" z_t - z_y,
    "dlr" that over z_1 - (z_3 + z_4) / 2, logits sorted.

    Settings beside those of :mod:`opnorm.attacks`:

    - ``step``: the length of a step; 2.5 ε / steps when None (Madry et al.). By ``step_rule`` it is "constant", or falls
      towards 0: "linear", "cosine". For steps that depend on the loss see :func:`opnorm.attacks.apgd`.
    - ``random_start``: begin uniformly in the ball, not at the point itself, where losses against f(x) have no gradient.
    - ``restarts``: until a point is misclassified; otherwise its result has the largest loss. ``targets`` need a loss
      against the label.
    - ``bf16``: take gradients of losses against the label from a bfloat16 copy, if there are 10 steps or more, the hardware
      has bfloat16, all is in float32, and the copy agrees with the model. Otherwise, on a CPU, the copy is in float32, with
      folded batch norms and channels last. The model itself decides whether a point is misclassified.

    Returns:
        An attack; it warns of points where the gradient is zero, NaN or infinite.

    Raises:
        AttackError: an invalid setting or input.

    Source: Madry et al. 2018; Roth et al. 2020, Eq. 17.
    """
    check_ascent(
        norm=norm, eps=eps, steps=steps, step=step, restarts=restarts, random_start=random_start, loss=loss, seed=seed,
        targets=targets,
    )  # fmt: skip
    return PGD(
        norm, eps, steps=steps, step=step, restarts=restarts, start="uniform" if random_start else "point", loss=loss,
        stop_at_success=stop_at_success, mode=mode, seed=seed, bf16=bf16, targets=targets, step_rule=step_rule,
        ascent=ascent,
    )  # fmt: skip


Rows = Tensor | slice


class _Objective(NamedTuple):
    """A loss, and what it compares with: labels (B,), clean logits (B, K), or pairs of label and target (B, 2)."""

    loss: Loss
    reference: Tensor


class _Call(NamedTuple):
    """The inputs of a call; ``network`` gives the gradients, and ``model`` decides what is misclassified."""

    model: nn.Module
    network: nn.Module
    x: Tensor
    y: Tensor
    seed: int
    monitor: GradientMonitor | None

    def parts(self, size: int) -> Iterator["_Call"]:
        """The same for so many points at a time."""
        for first in range(0, len(self.x), size):
            rows = slice(first, first + size)
            monitor = self.monitor and GradientMonitor(self.monitor.zero[rows], self.monitor.nonfinite[rows])
            yield self._replace(x=self.x[rows], y=self.y[rows], monitor=monitor)

    def logits(self, network: nn.Module, z: Tensor, rows: Rows = slice(None)) -> Tensor:
        logits = output_of(network, z)
        if self.monitor is not None:
            check_logits(logits, self.y[rows])
        return wide(logits)

    def gradient(self, z: Tensor, objective: _Objective) -> Tensor:
        """Each point's gradient as :func:`finite_gradient`, where nothing else is asked for."""
        if self.monitor is not None:
            return self.evaluate(self.network, z, objective)[0]
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            loss = objective.loss(self.logits(self.network, z), objective.reference)
            return finite_gradient(input_gradient(loss, z))

    def evaluate(
        self, network: nn.Module, z: Tensor, objective: _Objective, rows: Rows = slice(None), *, backward: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """Each point's gradient as :func:`finite_gradient`, its loss, and whether it is misclassified."""
        with torch.set_grad_enabled(backward):
            z = z.detach().requires_grad_(backward)
            logits = self.logits(network, z, rows)
            loss = objective.loss(logits, objective.reference[rows])
            grad = input_gradient(loss, z) if backward else torch.zeros_like(z)
        misclassified = logits.detach().argmax(1) != self.y[rows]
        if self.monitor and backward:
            self.monitor.record(rows, grad, misclassified)
        return finite_gradient(grad), loss.detach().float(), misclassified


@dataclass(frozen=True, eq=False)  # two attacks with equal settings are two objects, each with its own call
class PGD:
    """The attack that :func:`pgd` describes, from any ``start``.

    Raises:
        AttackError: an invalid setting.
    """

    norm: float = math.inf
    eps: float = 8 / 255
    steps: int = 10
    step: float | None = None
    _: KW_ONLY
    restarts: int = 1
    start: Start = "uniform"
    loss: str = "ce"
    stop_at_success: bool = False
    mode: Mode = "eval"
    seed: int = 0
    bf16: bool = True
    targets: int = 0
    step_rule: StepRule = "constant"
    ascent: Ascent = "box"

    def __post_init__(self) -> None:
        check_ascent(**vars(self))

    @in_default_modes
    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Attack every point; warns where the gradient gives no direction."""
        check_inputs(x, y)
        x = x.detach()
        if self.eps == 0 or len(x) == 0:
            return x.clone()
        small_frees_kept()
        seed, monitor = self.seed if seed is None else seed, GradientMonitor.of(y)
        with model_state_preserved(model, self.mode), torch.no_grad():
            call = _Call(model, self._surrogate(model, x, y), x, y, seed, monitor)
            # the last iterate takes no pass for the end
            last = self.restarts == 1 and not self.stop_at_success and not self.targets
            attack = self._last_iterate if last else self._best_of_restarts
            points = torch.cat([attack(part) for part in call.parts(self._points_at_once(x))])
        monitor.warn()
        return points

    def _points_at_once(self, x: Tensor) -> int:
        """On a CPU so many that activations stay in its caches, unless batch norms use the statistics of the batch."""
        if x.device.type != "cpu" or self.mode != "eval":
            return len(x)
        return POINTS_A_THREAD * torch.get_num_threads()

    def ascend(
        self, model: nn.Module, x: Tensor, y: Tensor, seed: int, monitor: GradientMonitor | None = None
    ) -> Tensor:
        """The last iterate of a single ascent, as in training.

        Without a ``monitor`` neither inputs nor logits nor gradients are checked, which a GPU would have to wait for.
        """
        x = x.detach()
        if self.eps == 0:
            return x
        with model_state_preserved(model, self.mode), torch.no_grad():
            return self._last_iterate(_Call(model, model, x, y, seed, monitor))

    def _last_iterate(self, call: _Call) -> Tensor:
        region, objective = ball(call.x, self.eps, self.norm), self._objective(call)
        z = self._start(region, call.seed)
        for k in range(self.steps):
            z = self._ascend(region, z, call.gradient(z, objective), k)
        return z

    def _best_of_restarts(self, call: _Call) -> Tensor:
        """The first misclassified point, or the one with the largest loss, of all restarts and targets."""
        model, x, y = call.model, call.x, call.y
        objectives = [self._objective(call)]
        points, largest = x.clone(), torch.full((len(x),), -math.inf, dtype=torch.float32, device=x.device)
        rows = torch.arange(len(x), device=x.device)
        if self.stop_at_success:  # a misclassified clean point stays
            rows = rows[call.logits(model, x).argmax(1) == y]
        if self.targets:
            ranked = rank_targets(call.logits(model, x), y, self.targets)
            objectives = [_Objective(towards(self.loss), torch.stack([y, t], 1)) for t in ranked.unbind(1)]
        for job, objective in enumerate(objectives * self.restarts):
            if not len(rows):
                break
            end, loss, misclassified = self._run(call, rows, objective, job)
            better = misclassified | (loss > largest[rows])
            points[rows[better]], largest[rows[better]] = end[better], loss[better]
            rows = rows[~misclassified]
        return points

    def _run(
        self, call: _Call, rows: Tensor, objective: _Objective, job: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One ascent of some points: where it ends, the loss there, and whether the point is misclassified.

        With ``stop_at_success`` a point leaves the batch at its first misclassified iterate.
        """
        region = ball(call.x[rows], self.eps, self.norm)
        z = self._start(region, call.seed, job)  # each restart and target has random numbers of its own
        end, losses = z.clone(), torch.full((len(z),), -math.inf, dtype=torch.float32, device=z.device)
        misclassified = torch.zeros(len(z), dtype=torch.bool, device=z.device)
        active = torch.arange(len(z), device=z.device)
        for k in range(self.steps + 1):
            last, at = k == self.steps, rows[active]
            network = call.model if last else call.network
            grad, loss, wrong = call.evaluate(network, z, objective, at, backward=not last)
            if self.stop_at_success and network is not call.model and wrong.any():
                found = wrong.nonzero().squeeze(1)  # the model itself decides
                _, loss[found], wrong[found] = call.evaluate(
                    call.model, z[found], objective, at[found], backward=False
                )
            leaving = torch.ones_like(wrong) if last else wrong & self.stop_at_success
            out, kept = active[leaving], ~leaving
            end[out], losses[out], misclassified[out] = z[leaving], loss[leaving], wrong[leaving]
            if leaving.any():
                active, z, grad, region = active[kept], z[kept], grad[kept], select(region, kept)
            if not len(active):
                break
            z = self._ascend(region, z, grad, k)
        return end, losses, misclassified

    def _surrogate(self, model: nn.Module, x: Tensor, y: Tensor) -> nn.Module:
        """The network for gradients; a copy costs as much as some steps, and its rounding hides small distances."""
        if not (self.mode == "eval" and self.steps >= 10 and self.loss in AGAINST_LABELS):
            return model
        check_logits(output_of(model, x[:16]), y[:16])
        return evaluation_surrogate(model, x[:16], y[:16], bf16=self.bf16) or model

    def _ascend(self, region: Ball, z: Tensor, grad: Tensor, k: int) -> Tensor:
        """Step k."""
        first, share = 2.5 * self.eps / self.steps if self.step is None else self.step, k / self.steps
        factor = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}
        move = region.ascend if self.ascent == "roth" else region.ascend_in_box
        return move(z, grad, first * factor[self.step_rule])

    def _start(self, region: Ball, seed: int, job: int = 0) -> Tensor:
        if self.start == "point":
            return region.x
        keys = point_keys(region.x, seed, job)
        if self.start == "uniform":
            return region.start(keys)
        noise = 0.001 * normal(keys, region.x[0].numel()).view_as(region.x)
        return region.project(region.x + noise.to(region.x.dtype))

    def _objective(self, call: _Call) -> _Objective:
        if self.loss in AGAINST_LABELS:
            return _Objective(AGAINST_LABELS[self.loss], call.y)
        return _Objective(AGAINST_CLEAN[self.loss], call.logits(call.model, call.x))
