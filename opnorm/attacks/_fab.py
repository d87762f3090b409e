"""FAB: the closest point on the other side of the decision boundary, by repeated linearization."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import check_settings
from opnorm._core.lp import conjugate, lp_norm
from opnorm._core.memory import small_frees_kept
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.random import point_keys
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._extrapolation import Extrapolation
from opnorm.attacks._gradients import GradientMonitor, finite_gradient, input_gradient
from opnorm.attacks._rows import where
from opnorm.attacks._search import Batch, Response, Search, State, evaluate
from opnorm.attacks._search_attack import SearchAttack
from opnorm.attacks.hyperplanes import step_to_plane
from opnorm.attacks.losses import rank_targets, wide
from opnorm.attacks.minimum_norm import MinimumNormPoints, bisect_to_boundary
from opnorm.attacks.projections import ball
from opnorm.spec import factory

__all__ = ["FAB", "BoundaryAttack", "fab"]

BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9  # α_max, η and β of the paper


@factory("attack")
def fab(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 100,
    *,
    restarts: int = 1,
    targets: int = 9,
    mode: Mode = "eval",
    seed: int = 0,
) -> "BoundaryAttack":
    """The fast adaptive boundary attack: the smallest change of each point that changes its class.

    Each step linearizes the gap between the right class and another one at z, and projects both z and x on the hyperplane
    where it vanishes, within the box: d and d_x are these two steps. With α = min(‖d‖ / (‖d‖ + ‖d_x‖), 0.1),

        z ← clip((1 - α) (z + 1.05 d) + α (x + 1.05 d_x)),

    and a point on the other side is kept if none was closer, and then moved back, z ← x + 0.9 (z - x).

    A point within ``eps`` counts as misclassified. The first search begins at the point itself, ``restarts`` at uniformly
    random points within ε / 2. With ``targets`` a step takes one backward pass (FAB-T); with 0 it goes to the class whose
    hyperplane is closest, with a backward pass a class. Other settings are those of :mod:`opnorm.attacks`.

    Returns:
        A :class:`BoundaryAttack`: an attack, whose ``closest`` measures distances.

    Raises:
        AttackError: an invalid setting or input.

    Source: Croce & Hein 2020 (FAB), Algorithm 1; targets: Croce & Hein 2020 (AutoAttack).
    """
    check_settings(norm=norm, eps=eps, steps=steps, restarts=restarts, targets=targets, mode=mode, seed=seed)
    search = FAB(norm, targets > 0, steps)
    return BoundaryAttack(search, norm, eps, restarts, targets, mode=mode, seed=seed)


@dataclass(frozen=True, eq=False)
class BoundaryAttack(SearchAttack):
    """The attack that :func:`fab` describes."""

    @in_default_modes
    def closest(
        self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None
    ) -> MinimumNormPoints:
        """The closest misclassified point of each, at any distance; ``eps`` only scales the random starts.

        At the end each is moved towards the clean point, by bisection, as far as the model still misclassifies it.

        Raises:
            AttackError: an invalid input.
        """
        check_inputs(x, y)
        x, seed, monitor = x.detach(), self.seed if seed is None else seed, GradientMonitor.of(y)
        points, distance = x.clone(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if not len(x):
            return MinimumNormPoints(points, distance)
        small_frees_kept()
        with model_state_preserved(model, self.mode), torch.no_grad():
            logits = output_of(model, x)
            check_logits(logits, y)
            rows = (logits.argmax(1) == y).nonzero().squeeze(1)
            targets = torch.full_like(y, -1)[:, None]
            if self.targets:
                targets = rank_targets(logits, y, self.targets)
            x, y, targets, best = x[rows], y[rows], targets[rows], None
            never = torch.full_like(y, -math.inf, dtype=torch.float32)
            for restart in range(self.restarts if len(rows) else 0):
                keys, restarts = point_keys(x, seed, restart), torch.full_like(y, restart)
                for target in targets.unbind(1):
                    batch = Batch(x, y, target, restarts, keys, never, ball(x, self.eps, self.norm))
                    best = self._run(model, batch, best, monitor, rows)
            if best is not None:
                found = best.distance < math.inf
                points[rows], distance[rows] = bisect_to_boundary(model, x, y, best.best, found, self.norm)
        monitor.warn()
        return MinimumNormPoints(points, distance)

    def _run(
        self, model: nn.Module, batch: Batch, best: "FABState | None", monitor: GradientMonitor, rows: Tensor
    ) -> "FABState":
        state: FABState = self.search.start(batch)
        if best is not None:
            state.best, state.distance = best.best, best.distance
        for _ in range(self.search.steps):
            response = self.search.query(model, batch, state)
            assert response.grad is not None, "it evaluates backward"
            monitor.record(rows, response.grad, response.logits.argmax(1) != batch.y)
            grad = finite_gradient(response.grad)
            state = self.search.advance(batch, state, response._replace(grad=grad))
        return state


@dataclass
class FABState(State):
    """Of each row (R, ...).

    Attributes:
        best: the closest point of another class.
        distance: its distance from x; inf where there is none.
        history: of log(ε / distance); see :class:`opnorm.attacks._extrapolation.Extrapolation`.
    """

    best: Tensor
    distance: Tensor
    history: Tensor


@dataclass(eq=False)
class FAB(Search[FABState]):
    """FAB as :func:`fab` describes it: each step evaluates forward at z, and forward and backward where it linearizes.

    These are the same unless z has crossed the boundary, but it mostly has (on a CNN for MNIST in 50 to 98 % of steps for
    ℓ∞ and ℓ2), so that another forward pass is cheaper than a backward pass that is not needed.

    With a finite ``patience`` a job stops early by how log(ε / distance) grows.
    """

    norm: float
    targeted: bool = True
    steps: int = 100
    patience: float = math.inf

    low_precision = (
        False  # near the boundary, where it searches, 16 bits do not resolve on which side a point is
    )

    def __post_init__(self) -> None:
        self.name = "FAB-T" if self.targeted else "FAB"
        self.steps += 1  # the result of the last step is evaluated, too
        self.extrapolation = Extrapolation(self.steps, self.patience)

    def start(self, batch: Batch) -> FABState:
        """The point itself, and for further restarts uniform within ε / 2."""
        z, again = batch.x, batch.restart > 0
        if again.any():
            z = where(again, ball(batch.x, batch.ball.eps / 2, self.norm).start(batch.keys), z)
        never = torch.full_like(batch.y, math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        k, no = torch.zeros_like(batch.y), torch.zeros_like(batch.y, dtype=torch.bool)
        return FABState(z, k, no, best=z, distance=never, history=self.extrapolation.start(never))

    def loss(self, batch: Batch, state: FABState, logits: Tensor) -> Tensor:
        """The gap to the target, z_t - z_y."""
        return (logits.gather(1, batch.target[:, None]) - logits.gather(1, batch.y[:, None])).squeeze(1)

    def query(self, model: nn.Module, batch: Batch, state: FABState) -> Response:
        """The logits at z; the gap and its gradient where the step begins."""
        with torch.no_grad():
            logits = wide(output_of(model, state.z))
        begin = replace(state, z=self._begin(batch, state, logits))
        if self.targeted:
            response = evaluate(model, [(self, batch, begin)])[0]
        else:
            response = self._closest_hyperplane(model, batch, begin.z)
        return response._replace(logits=logits, forward=2 * len(logits))

    def advance(self, batch: Batch, state: FABState, response: Response) -> FABState:
        """Keep the point if it is closer than all before, and step to the hyperplane."""
        assert response.grad is not None, "it evaluates backward"
        s, x = replace(state), _flat(batch.x)
        length = self._length(_flat(state.z) - x)
        closer = _crossed(batch, response.logits) & (length < s.distance)
        s.distance = torch.where(closer, length, s.distance)
        s.best = where(closer, state.z, s.best)
        z, w = _flat(self._begin(batch, state, response.logits)), _flat(response.grad)
        gap = torch.nan_to_num(response.loss)
        gap_x = gap - (w * (z - x)).sum(1)
        d, d_x = step_to_plane(torch.stack([z, x]), w, torch.stack([gap, gap_x]), self.norm)
        near, far = self._length(d), self._length(d_x)
        bias = (near / (near + far).clamp(min=1e-30)).clamp(max=BIAS)[:, None].to(z)
        z = torch.lerp(z + OVERSHOOT * d, x + OVERSHOOT * d_x, bias).clamp_(0, 1)
        s.z, s.k = z.view_as(batch.x).to(batch.x.dtype), s.k + 1
        closeness = -(s.distance / batch.ball.eps.to(s.distance.dtype)).log()
        short, s.history = self.extrapolation.falls_short(s.k, closeness, s.history)
        s.stopped = s.stopped | short
        return s

    def feasible(self, batch: Batch, state: FABState) -> Tensor:
        """Whether z is within ε, up to rounding."""
        return self._length(_flat(state.z) - _flat(batch.x)) <= batch.ball.eps * (1 + 1e-5)

    def final_iterate(self, batch: Batch, state: FABState) -> Tensor:
        """The closest point of another class, or the last one, if there was none."""
        return where(state.distance == math.inf, state.z, state.best)

    def _begin(self, batch: Batch, state: FABState, logits: Tensor) -> Tensor:
        """Where the next step begins: at z, or between x and z if another class is there."""
        return where(_crossed(batch, logits), torch.lerp(batch.x, state.z, BACK), state.z)

    def _length(self, d: Tensor) -> Tensor:
        return lp_norm(d, self.norm)

    def _closest_hyperplane(self, model: nn.Module, batch: Batch, z: Tensor) -> Response:
        """The gap to the class whose hyperplane is closest, and its gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            logits = wide(output_of(model, z))
            gaps = logits - logits.gather(1, batch.y[:, None])
            loss, grad, least = gaps[:, 0], torch.zeros_like(z), torch.full_like(gaps[:, 0], math.inf)
            for k, gap in enumerate(gaps.unbind(1)):
                slope = input_gradient(gap, z, keep_graph=k < gaps.shape[1] - 1)
                length = lp_norm(_flat(slope), conjugate(self.norm))
                away = (gap.abs() / length).masked_fill(length == 0, math.inf)
                # NaN counts as close, so that the gradient monitor records it
                closer = ~(away >= least) & (batch.y != k)
                loss, least = torch.where(closer, gap, loss), torch.where(closer, away, least)
                grad = where(closer, slope, grad)
        return Response(logits.detach(), loss.detach(), grad, len(z), len(z))


def _crossed(batch: Batch, logits: Tensor) -> Tensor:
    """Where another class is, and not only NaN."""
    return (logits.argmax(1) != batch.y) & logits.isfinite().all(1)


def _flat(z: Tensor) -> Tensor:
    return wide(z.flatten(1))
