"""FAB: the closest point on the other side of the decision boundary, by repeated linearization."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm._core.random import point_keys
from opnorm.attacks._batching import hunt
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._pgd import Ascent, Watch
from opnorm.attacks.hyperplanes import step_to_plane
from opnorm.attacks.losses import rank_targets, wide
from opnorm.attacks.minimum_norm import Closest, tighten
from opnorm.attacks.projections import ball
from opnorm.attacks.search import Answer, Lanes, Search, State, falls_short, unmarked
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["FAB", "Boundary", "fab"]

BIAS, OVERSHOOT, BACK = 0.1, 1.05, 0.9  # α_max, η and β of the paper


@factory("attack")
def fab(
    norm: float = math.inf,
    eps: float = 8 / 255,
    steps: int = 100,
    restarts: int = 1,
    targets: int = 9,
    mode: Mode = "eval",
    seed: int = 0,
) -> "Boundary":
    """The fast adaptive boundary attack: the smallest change of each point that changes its class.

    Each step linearizes the gap between the right class and another one at z, and projects both z and x on the plane where
    it vanishes, within the box: d and d_x are these two steps. With α = min(‖d‖ / (‖d‖ + ‖d_x‖), 0.1),

        z ← clip((1 - α) (z + 1.05 d) + α (x + 1.05 d_x)),

    and a point on the other side is noted down if none was closer, and then drawn back, z ← x + 0.9 (z - x).

    Args:
        norm: of the distance: 1, 2 or inf.
        eps: radius, in pixel values of [0, 1], in which a point counts as fooled; ``8/255``.
        steps: linearizations of each point (and target).
        restarts: how often each point (and target) is tried, first from the point itself and then from uniformly random
            points within ε / 2.
        targets: towards how many wrong classes to go, one after another, those with the largest clean logits first, with
            one backward pass a step (FAB-T); 0 for the one whose plane is closest, with a backward pass for every class.
        mode: of the model meanwhile: "eval", "train" or "as is".
        seed: of the random starts.

    Returns:
        A :class:`Boundary`: an attack, whose ``closest`` measures distances.

    Raises:
        AttackError: a setting or an input that makes no sense.

    Source: Croce & Hein 2020 (FAB), Algorithm 1; targets: Croce & Hein 2020 (AutoAttack).
    """
    return Boundary(norm, eps, steps, restarts, targets, mode, seed)


@dataclass(frozen=True, eq=False)
class Boundary:
    """The attack that :func:`fab` describes.

    Raises:
        AttackError: a setting that makes no sense.
    """

    norm: float
    eps: float
    steps: int
    restarts: int
    targets: int
    mode: Mode
    seed: int

    def __post_init__(self) -> None:
        Ascent(self.norm, self.eps, self.steps, restarts=self.restarts, mode=self.mode, seed=self.seed)
        if isinstance(self.targets, bool) or not isinstance(self.targets, int) or self.targets < 0:
            raise AttackError(
                f"targets={self.targets!r}: expected a whole number of wrong classes, 0 for whichever is closest"
            )

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Tensor:
        """Fool every point within ε and stop there; one that is wrong by nature stays as it is."""
        check_inputs(x, y)
        found = x.detach().clone()
        if self.eps == 0 or len(x) == 0:
            return found
        with model_state_preserved(model, self.mode), torch.no_grad():
            logits = model(found)
            check_logits(logits, y)
            left = logits.argmax(1) == y
            catch = hunt(
                model, found[left], y[left], self._search, eps=self.eps, norm=self.norm, restarts=self.restarts,
                targets=rank_targets(logits, y, self.targets)[left] if self.targets else None,
                seed=self.seed if seed is None else seed, lanes=len(x),
            )  # fmt: skip
        found[left] = catch.points
        catch.watch.warn()
        return found

    def closest(self, model: nn.Module, x: Tensor, y: Tensor, *, seed: int | None = None) -> Closest:
        """The closest misclassified point of each, however far away; ``eps`` only scales the random starts.

        At the end each is drawn towards the clean point, by bisection, as far as the model stays wrong.

        Raises:
            AttackError: an input makes no sense.
        """
        check_inputs(x, y)
        x, watch = x.detach(), Watch.over(x)
        points, distance = x.clone(), torch.zeros(len(x), dtype=torch.float64, device=x.device)
        if not len(x):
            return Closest(points, distance)
        with model_state_preserved(model, self.mode), torch.no_grad():
            logits = model(x)
            check_logits(logits, y)
            right = logits.argmax(1) == y
            if right.any():
                targets = (
                    rank_targets(logits, y, self.targets) if self.targets else torch.full_like(y, -1)[:, None]
                )
                points[right], distance[right] = self._closest(
                    model, x[right], y[right], targets[right], watch.select(right),
                    self.seed if seed is None else seed,
                )  # fmt: skip
        watch.warn()
        return Closest(points, distance)

    def _closest(
        self, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor, watch: Watch, seed: int
    ) -> Closest:
        search, region = self._search, ball(x, self.eps, self.norm)
        best, distance = x, torch.full_like(y, math.inf, dtype=torch.promote_types(x.dtype, torch.float32))
        nobody = torch.full_like(distance, -math.inf)
        for restart in range(self.restarts):
            keys = point_keys(x, seed, restart)
            for target in targets.unbind(1):
                lanes = Lanes(x, y, target, torch.full_like(y, restart), keys, nobody, region)
                state = search.start(lanes) | {"best": best, "distance": distance}
                for _ in range(search.steps):
                    answer = search.ask(model, lanes, state)
                    assert answer.grad is not None  # it asks forward and backward
                    watch.see(answer.grad, answer.logits.argmax(1) != y)
                    answer = answer._replace(grad=torch.nan_to_num(answer.grad, 0.0, 0.0, 0.0))
                    state = search.advance(lanes, state, answer)
                best, distance = state["best"], state["distance"]
        return tighten(model, x, y, best, distance < math.inf, self.norm)

    @property
    def _search(self) -> "FAB":
        return FAB(self.norm, self.targets > 0, self.steps)


@dataclass(eq=False)
class FAB(Search):
    """FAB as :func:`fab` describes it: each step asks forward at z, and forward and backward where it linearizes.

    These are the same unless z has crossed the boundary, but it mostly has (on a CNN for MNIST in 50 to 98 % of steps for
    ℓ∞ and ℓ2), so that one more pass forward is cheaper than a pass backward in vain. Both are counted.
    """

    norm: float
    targeted: bool = True
    steps: int = 100
    patience: float = math.inf

    passes = 2
    coarse = False  # near the boundary, which it is after, 16 bits cannot tell the sides apart

    def __post_init__(self) -> None:
        self.name = "FAB-T" if self.targeted else "FAB"
        self.steps += 1  # the end of the last step is looked at, too

    def start(self, lanes: Lanes) -> State:
        """The point itself, and for further restarts uniform within ε / 2."""
        z, again = lanes.x, lanes.restart > 0
        if again.any():
            near = ball(lanes.x, lanes.region.eps / 2, self.norm).start(lanes.keys)
            z = torch.where(_like(again, z), near, z)
        never = torch.full_like(lanes.y, math.inf, dtype=torch.promote_types(z.dtype, torch.float32))
        return {
            "z": z,
            "best": z,
            "distance": never,
            "marks": unmarked(never),
            "k": torch.zeros_like(lanes.y),
        }

    def loss(self, lanes: Lanes, state: State, logits: Tensor) -> Tensor:
        """The gap to the target, z_t - z_y."""
        return (logits.gather(1, lanes.target[:, None]) - logits.gather(1, lanes.y[:, None])).squeeze(1)

    def ask(self, model: nn.Module, lanes: Lanes, state: State) -> Answer:
        """The class at z; the gap and its gradient there, or if that class is wrong, at a point between x and z."""
        with torch.no_grad():
            logits = wide(model(state["z"]))
        return self._linearize(model, lanes, {"z": _drawn_back(lanes, state, logits)})._replace(logits=logits)

    def inside(self, lanes: Lanes, state: State) -> Tensor:
        """Whether z is within ε, up to rounding."""
        return self._length(_flat(state["z"]) - _flat(lanes.x)) <= lanes.region.eps * (1 + 1e-5)

    def advance(self, lanes: Lanes, state: State, answer: Answer) -> State:
        """Note the point if it is closer than all before, and step to the plane."""
        assert answer.grad is not None  # it asks forward and backward
        s, x, z = dict(state), _flat(lanes.x), _flat(state["z"])
        length = self._length(z - x)
        closer = _crossed(lanes, answer.logits) & (length < s["distance"])
        s["distance"] = torch.where(closer, length, s["distance"])
        s["best"] = torch.where(_like(closer, lanes.x), state["z"], s["best"])
        z, w, gap = (
            _flat(_drawn_back(lanes, state, answer.logits)),
            _flat(answer.grad),
            torch.nan_to_num(answer.loss),
        )
        gap_x = gap - (w * (z - x)).sum(1)
        d, d_x = step_to_plane(torch.stack([z, x]), w, torch.stack([gap, gap_x]), self.norm)
        near, far = self._length(d), self._length(d_x)
        bias = (near / (near + far).clamp(min=1e-30)).clamp(max=BIAS)[:, None].to(z)
        z = torch.lerp(z + OVERSHOOT * d, x + OVERSHOOT * d_x, bias).clamp_(0, 1)
        s["z"], s["k"] = z.view_as(lanes.x).to(lanes.x.dtype), s["k"] + 1
        return s

    def hopeless(self, lanes: Lanes, state: State) -> Tensor:
        """By how log(ε / distance) grows."""
        closeness = -(state["distance"] / lanes.region.eps.to(state["distance"].dtype)).log()
        short, state["marks"] = falls_short(self.steps, state["k"], closeness, state["marks"], self.patience)
        return short

    def last(self, lanes: Lanes, state: State) -> Tensor:
        """The closest point of another class, or where the search is, if there was none."""
        none = state["distance"] == math.inf
        return torch.where(_like(none, lanes.x), state["z"], state["best"])

    def _length(self, d: Tensor) -> Tensor:
        return torch.linalg.vector_norm(d, self.norm, dim=1)

    def _linearize(self, model: nn.Module, lanes: Lanes, state: State) -> Answer:
        """The gap to a class and its gradient: to the target, or to the class whose plane is closest."""
        if self.targeted:
            return super().ask(model, lanes, state)
        dual = {1: math.inf, 2: 2, math.inf: 1}[self.norm]
        with torch.enable_grad():
            z = state["z"].detach().requires_grad_()
            logits = wide(model(z))
            if not logits.requires_grad:
                raise AttackError(
                    "no gradient reaches the inputs; is there a detach() or no_grad() in the model?"
                )
            gaps = logits - logits.gather(1, lanes.y[:, None])
            loss, grad, least = gaps[:, 0], torch.zeros_like(z), torch.full_like(gaps[:, 0], math.inf)
            for k, gap in enumerate(gaps.unbind(1)):
                (slope,) = torch.autograd.grad(gap.sum(), z, retain_graph=k < gaps.shape[1] - 1)
                away = gap.abs() / torch.linalg.vector_norm(_flat(slope), dual, dim=1).clamp(min=1e-30)
                closer = ~(away >= least) & (
                    lanes.y != k
                )  # NaN counts as close: the search's watch must see it
                loss, least = torch.where(closer, gap, loss), torch.where(closer, away, least)
                grad = torch.where(_like(closer, z), slope, grad)
        return Answer(logits.detach(), loss.detach(), grad)


def _drawn_back(lanes: Lanes, state: State, logits: Tensor) -> Tensor:
    """Where the next step begins: at z, or between x and z if another class is there."""
    z = state["z"]
    return torch.where(_like(_crossed(lanes, logits), z), torch.lerp(lanes.x, z, BACK), z)


def _crossed(lanes: Lanes, logits: Tensor) -> Tensor:
    """Where another class is, and not just NaN."""
    return (logits.argmax(1) != lanes.y) & logits.isfinite().all(1)


def _flat(z: Tensor) -> Tensor:
    return wide(z.flatten(1))


def _like(lanes: Tensor, z: Tensor) -> Tensor:
    return lanes.view(-1, *[1] * (z.ndim - 1))
