"""Auto-PGD: projected gradient ascent that sets its own step size."""

import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from opnorm._core.attack_settings import LABEL_LOSSES, check_settings
from opnorm._core.modes import Mode
from opnorm._core.settings import check_choice
from opnorm.attacks._pgd import Attack
from opnorm.attacks._rows import column, where
from opnorm.attacks._search import Batch, Response, Search, State
from opnorm.attacks._search_attack import SearchAttack
from opnorm.attacks.losses import AGAINST_LABELS, towards
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["APGD", "SparseAPGD", "apgd", "apgd_search"]

MOMENTUM, RHO = 0.75, 0.75
STOP_STEPS = 3  # in a row at which success must be out of reach
FIRST_STEPS = 4  # before which no targeted job stops, and no other one before twice as many


@factory("attack")
def apgd(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 100,
    *,
    loss: str = "ce",
    restarts: int = 1,
    targets: int = 0,
    stop_at_success: bool = False,
    mode: Mode = "eval",
    seed: int = 0,
) -> Attack:
    """Auto-PGD: gradient ascent with momentum that halves its step, and goes back to its best point, when it stalls.

    u = Π(x_k + η d(∇ℓ(x_k))), x_{k+1} = Π(x_k + 0.75 (u - x_k) + 0.25 (x_k - x_{k-1})), η = 2 ε at first. At 22 % of the
    steps, and then at intervals that shrink by 3 % of the steps to 6 %, η is halved and x set to the best point so far
    if the loss rose in fewer than 75 % of the interval's steps, or if neither η nor the best loss has changed in it.
    For ℓ1 see :class:`SparseAPGD`.

    ``loss`` is "ce" (cross-entropy), "dlr" (difference of logits ratio) or "cw" (largest wrong logit minus right logit). DLR
    needs 3 classes, and 4 with targets; with fewer, it is the difference of logits alone. Without ``stop_at_success`` the
    result is the end with the largest margin max_{i≠y} z_i - z_y. Other settings are those of :mod:`opnorm.attacks`.

    Returns:
        An attack; it warns of points where the gradient is zero, NaN or infinite.

    Raises:
        AttackError: an invalid setting or input.

    Source: Croce & Hein 2020, Algorithm 1; ℓ1: Croce & Hein 2021.
    """
    check_choice("loss", loss, LABEL_LOSSES, AttackError)
    check_settings(
        norm=norm, eps=eps, steps=steps, loss=loss, restarts=restarts, targets=targets,
        mode=mode, seed=seed,
    )  # fmt: skip
    search = apgd_search(norm, steps, loss, targeted=targets > 0)
    return SearchAttack(search, norm, eps, restarts, targets, stop_at_success, mode, seed)


def apgd_search(
    norm: float, steps: int = 100, loss: str = "ce", *, targeted: bool = False, patience: float = math.inf
) -> "APGD":
    """The search for a norm; its name, such as APGD-DLR or APGD-T, contains loss and target."""
    return SparseAPGD(steps, loss, targeted) if norm == 1 else APGD(steps, loss, targeted, patience)


@dataclass
class APGDState(State):
    """Of each row (R, ...).

    Attributes:
        previous: x_{k-1}.
        best, best_grad, best_loss: the point with the largest loss, its gradient and loss.
        loss: of the evaluation before, also where the search has gone back to its best point since.
        step: η.
        rises: steps since the last checkpoint that raised the loss.
        halved: η was halved at the last checkpoint.
        best_at_checkpoint: ``best_loss`` at the last checkpoint.
        hopeless: steps in a row at which success was out of reach.
    """

    previous: Tensor
    best: Tensor
    best_grad: Tensor
    best_loss: Tensor
    loss: Tensor
    step: Tensor
    rises: Tensor
    halved: Tensor
    best_at_checkpoint: Tensor
    hopeless: Tensor


@dataclass(eq=False)
class APGD(Search[APGDState]):
    """Auto-PGD in an ℓ∞ or ℓ2 ball, as :func:`apgd` describes it.

    A job stops early when, at three steps in a row, its margin stays below zero even with ``patience`` (1 + (4 / k)²) times
    the Frank-Wolfe gap, which is what the loss would gain in the ball if it were linear; the first of the k steps so far say
    little. The margin is the loss, but for cross-entropy the difference of logits: where that is below zero, log-odds need
    not be, and a job at its maximum would go on. Below zero, the right class has the largest logit, or a larger one than the
    target.
    """

    steps: int = 100
    criterion: str = "ce"
    targeted: bool = False
    patience: float = math.inf

    def __post_init__(self) -> None:
        self.name = f"APGD-{self.criterion.upper()}"
        if self.targeted:
            self.name = "APGD-T" if self.criterion == "dlr" else f"{self.name}-T"
        self.windows = self._windows(self.steps)
        self.steps += 1  # the result of the last step is evaluated, too

    @staticmethod
    def _windows(steps: int) -> Tensor:
        """At each checkpoint the number of steps since the one before; 0 at all other steps."""
        share, width, last = 0.22, 0.22, 0
        windows = torch.zeros(steps + 1, dtype=torch.float32)
        while share < 1:
            at = math.ceil(share * steps - 1e-9)  # 0.22 + 0.19 + ... as decimals
            if at > last:
                windows[at], last = at - last, at
            width = max(width - 0.03, 0.06)
            share += width
        return windows

    def start(self, batch: Batch) -> APGDState:
        """Uniform in the ball."""
        self.windows = self.windows.to(batch.x.device)
        z = batch.ball.start(batch.keys)
        never = torch.full_like(batch.y, -math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        k, no = torch.zeros_like(batch.y), torch.zeros_like(batch.y, dtype=torch.bool)
        return APGDState(
            z=z, k=k, stopped=no, previous=z, best=z, best_grad=torch.zeros_like(z), best_loss=never, loss=-never,
            step=2 * batch.ball.eps.to(never.dtype), rises=torch.zeros_like(never), halved=no,
            best_at_checkpoint=never, hopeless=k,
        )  # fmt: skip

    def loss(self, batch: Batch, state: APGDState, logits: Tensor) -> Tensor:
        """The criterion, towards the target if there is one."""
        return self._value(self.criterion, batch, logits)

    def _value(self, criterion: str, batch: Batch, logits: Tensor) -> Tensor:
        if self.targeted:
            return towards(criterion)(logits, torch.stack([batch.y, batch.target], 1))
        return AGAINST_LABELS[criterion](logits, batch.y)

    def _out_of_reach(self, batch: Batch, state: APGDState, response: Response) -> Tensor:
        """Whether the margin stays below zero even with the gap, by linearization at the evaluated point (R,)."""
        assert response.grad is not None, "it evaluates forward and backward"
        value = self._value("cw", batch, response.logits) if self.criterion == "ce" else response.loss
        patience = self.patience * (1 + (FIRST_STEPS / state.k) ** 2)
        return value + patience * batch.ball.gain(state.z, response.grad) < 0

    def advance(self, batch: Batch, state: APGDState, response: Response) -> APGDState:
        """Update the best point, halve η at a checkpoint where the search stalls, and take the step."""
        assert response.grad is not None, "it evaluates forward and backward"
        s, project = keep_best(state, response), batch.ball.near
        z, grad, k = s.z, response.grad, s.k.clamp(max=self.steps - 1)
        s.k = s.k + 1
        if self.patience < math.inf:
            s.hopeless = (s.hopeless + 1) * self._out_of_reach(batch, s, response)
            first_stop = FIRST_STEPS if self.targeted else 2 * FIRST_STEPS
            s.stopped = s.stopped | ((s.hopeless >= STOP_STEPS) & (s.k >= first_stop))
        s.rises = s.rises + (response.loss > s.loss)
        s.loss, window, first = response.loss, self.windows[k], k == 0
        checkpoint = window > 0
        if (checkpoint | first).any():
            stalled = s.rises < RHO * window
            unchanged = ~s.halved & (s.best_loss <= s.best_at_checkpoint)
            halve = checkpoint & (stalled | unchanged)
            s.step = torch.where(halve, s.step / 2, s.step)
            s.halved = torch.where(checkpoint, halve, s.halved)
            s.best_at_checkpoint = torch.where(checkpoint | first, s.best_loss, s.best_at_checkpoint)
            s.rises = s.rises.masked_fill(checkpoint, 0)
            z, grad = where(halve, s.best, z), where(halve, s.best_grad, grad)
        u = project(z.addcmul(batch.ball.direction(grad), column(s.step, z)))
        weight = column(torch.where(first, 1.0, MOMENTUM), z)  # the first step has no momentum
        s.z, s.previous = project(torch.lerp(2 * z - s.previous, u, weight)), z
        return s

    def final_iterate(self, batch: Batch, state: APGDState) -> Tensor:
        """The point with the largest loss."""
        return state.best


S = TypeVar("S", bound=APGDState)


def keep_best(state: S, response: Response) -> S:
    """A copy of the state whose best point is the evaluated one where its loss is larger."""
    assert response.grad is not None, "it evaluates forward and backward"
    better = response.loss > state.best_loss
    return replace(
        state,
        best_loss=torch.where(better, response.loss, state.best_loss),
        best=where(better, state.z, state.best),
        best_grad=where(better, response.grad, state.best_grad),
    )


# ---------------------------------------------------------------- ℓ1


@dataclass
class SparseState(APGDState):
    """Of each row (R, ...).

    Attributes:
        changed: coordinates that the best point changes, at the last checkpoint.
        count: coordinates that a step changes.
    """

    changed: Tensor
    count: Tensor


@dataclass(eq=False)
class SparseAPGD(APGD):
    """Auto-PGD in the ℓ1 ball: steps along the largest coordinates of the gradient, as many as seem to be needed.

    A step of length η is divided evenly among the coordinates with the largest gradient. Every 4 % of the steps their
    number becomes 2/3 of the coordinates that the best point changes; if these have become fewer by 5 %, η goes back
    to ε and x to the best point, and otherwise η shrinks by 1.5, down to ε / 10. All this in balls of 3 ε, 2 ε and ε one
    after another, with 30, 30 and 40 % of the steps, each beginning at the best point of the one before.

    Source: Croce & Hein 2021.
    """

    def __post_init__(self) -> None:
        steps = self.steps
        super().__post_init__()
        early = int(0.3 * steps)
        parts = [(f, n) for f, n in ((3, early), (2, early), (1, steps - 2 * early)) if n or f == 1]
        self.steps += len(parts) - 1  # each ball's first point is evaluated
        self.factor = torch.cat([torch.full((n + 1,), f) for f, n in parts])
        self.windows = torch.cat([torch.arange(n + 1) % max(int(0.04 * n), 1) == 0 for _, n in parts])
        self.first = torch.cat([torch.arange(n + 1) == 0 for _, n in parts])

    def start(self, batch: Batch) -> SparseState:
        """Uniform in the largest ball."""
        for name in ("factor", "windows", "first"):
            setattr(self, name, getattr(self, name).to(batch.x.device))
        largest = ball(batch.x, self.factor[0] * batch.ball.eps, 1)
        s = super().start(replace(batch, ball=largest))
        s.step = 2 * batch.ball.eps.to(s.step.dtype)
        return SparseState(**vars(s), changed=s.best_loss, count=torch.zeros_like(batch.y))

    def feasible(self, batch: Batch, state: APGDState) -> Tensor:
        """In the last of the balls."""
        return self.factor[state.k.clamp(max=self.steps - 1)] == 1

    def advance(self, batch: Batch, state: APGDState, response: Response) -> SparseState:
        """Update the best point, adapt step and sparsity at checkpoints, and take the step."""
        assert isinstance(state, SparseState), "as it starts"
        k, eps, dtype = state.k.clamp(max=self.steps - 1), batch.ball.eps, state.step.dtype
        first, checkpoint = self.first[k], self.windows[k]  # the first step in each ball is a checkpoint
        state = replace(state, best_loss=state.best_loss.masked_fill(first, -math.inf))
        s, full = keep_best(state, response), (self.factor[k] * eps).to(dtype)
        assert response.grad is not None, "it evaluates forward and backward"
        changed = (s.best != batch.x).flatten(1).sum(1).to(dtype)
        fewer = checkpoint & ~first & (changed < 0.95 * s.changed)
        shorter = torch.where(fewer | first, full, torch.maximum(s.step / 1.5, full / 10))
        s.step = torch.where(checkpoint, shorter, s.step)
        s.changed = torch.where(checkpoint, changed, s.changed)
        s.count = torch.where(checkpoint, (changed / 1.5).long().clamp(min=1), s.count)
        z, grad = where(fewer, s.best, s.z), where(fewer, s.best_grad, response.grad)
        z = z + column(s.step, z) * sparse_direction(grad, s.count)
        after = (k + 1).clamp(max=self.steps - 1)
        z = where(self.first[after], s.best, z)
        s.z, s.k = ball(batch.x, self.factor[after] * eps, 1).project(z), s.k + 1
        return s


def sparse_direction(grad: Tensor, count: Tensor) -> Tensor:
    """The signs of the ``count`` (R,) largest coordinates, with equal weights of sum 1."""
    size = grad.flatten(1).abs()
    least = size.topk(int(count.max()), dim=1).values.gather(1, count[:, None] - 1)
    signs = grad.flatten(1).sign() * (size >= least)
    return (signs / signs.abs().sum(1, keepdim=True).clamp(min=1)).view_as(grad)
