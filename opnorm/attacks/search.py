"""Attacks as searches that advance many points side by side, each at an iteration of its own.

A point costs what it needs and no more. The moment it is fooled its lane goes to the next job, so the batch stays full
while the points that resist take their hundred steps; the jobs of many targets and restarts share one batch. The search
may ask a cheaper stand-in of the model (16-bit weights, folded batch norm), and may be a rounding error outside of the
ball: what counts as fooled is put exactly inside and confirmed on the model as given.
"""

import math
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm.attacks.losses import margin, wide
from opnorm.attacks.pgd import Watch
from opnorm.attacks.projections import Ball, ball
from opnorm.attacks.random import point_keys
from opnorm.errors import AttackError

__all__ = ["Answer", "Catch", "Lanes", "Search", "State", "falls_short", "hunt"]

State = dict[str, Tensor]
"""What a search remembers of each lane, lanes first; ``state["z"]`` is where it asks the model next."""

REFILL = 16  # lanes are refilled when one in so many is free: each refill copies the state


class Lanes(NamedTuple):
    """The jobs under way, one a lane.

    Attributes:
        x: clean inputs (L, C, H, W) in [0, 1].
        y: labels (L,).
        target: the wrong class to reach (L,), -1 for none in particular.
        restart: how often this point and target were tried before (L,).
        keys: of each lane's own random numbers (L,); see :mod:`opnorm.attacks.random`.
        region: the balls around ``x``.
    """

    x: Tensor
    y: Tensor
    target: Tensor
    restart: Tensor
    keys: Tensor
    region: Ball

    def select(self, kept: Tensor) -> "Lanes":
        """Some of the lanes."""
        x, y, target, restart, keys = (value[kept] for value in self[:5])
        return Lanes(x, y, target, restart, keys, self.region.select(kept))

    def join(self, other: "Lanes") -> "Lanes":
        """These lanes, then those."""
        x, y, target, restart, keys = (torch.cat(pair) for pair in zip(self[:5], other[:5], strict=True))
        return Lanes(x, y, target, restart, keys, _join(self.region, other.region))


def _join(a: Any, b: Any) -> Any:
    """Two balls of one kind, each a dataclass of tensors and of settings that both share."""
    pairs = {f.name: (getattr(a, f.name), getattr(b, f.name)) for f in fields(a)}
    return replace(a, **{k: torch.cat(pair) for k, pair in pairs.items() if isinstance(pair[0], Tensor)})


class Answer(NamedTuple):
    """What the model said at ``state["z"]``: logits (L, K), the search's loss (L,) and its gradient there, or None."""

    logits: Tensor
    loss: Tensor
    grad: Tensor | None


class Search(ABC):
    """An attack, written for lanes that are each at an iteration of their own.

    Attributes:
        name: as reports call it; part of the keys of its random numbers.
        steps: how often a job asks the model.
        passes: forward passes that a step takes.
        coarse: whether 16-bit logits are good enough to search on.
        patience: a job ends early when it would fall short even if it made this times the progress that is foreseen.
    """

    name: str
    steps: int
    passes: int = 1
    coarse: bool = True
    patience: float = math.inf

    @abstractmethod
    def start(self, lanes: Lanes) -> State:
        """The state of new jobs."""

    @abstractmethod
    def loss(self, lanes: Lanes, state: State, logits: Tensor) -> Tensor:
        """What a step climbs, (L,), from logits (L, K) in float32 at least."""

    @abstractmethod
    def advance(self, lanes: Lanes, state: State, answer: Answer) -> State:
        """The state after one more step; tensors may be changed in place, except ``state["z"]``."""

    def ask(self, model: nn.Module, lanes: Lanes, state: State) -> Answer:
        """Ask the model once, forward and backward."""
        with torch.enable_grad():
            z = state["z"].detach().requires_grad_()
            logits = wide(model(z))
            loss = self.loss(lanes, state, logits)
            if not loss.requires_grad:
                raise AttackError(
                    "no gradient reaches the inputs; is there a detach() or no_grad() in the model?"
                )
            (grad,) = torch.autograd.grad(loss.sum(), z)
        return Answer(logits.detach(), loss.detach(), grad)

    def inside(self, lanes: Lanes, state: State) -> Tensor:
        """Whether ``state["z"]`` lies in the ball up to rounding, (L,); a search that never leaves it need not look."""
        return torch.ones_like(lanes.y, dtype=torch.bool)

    def hopeless(self, lanes: Lanes, state: State) -> Tensor:
        """Which jobs fall short (L,), asked after each step where ``patience`` is finite."""
        return torch.zeros_like(lanes.y, dtype=torch.bool)

    def last(self, lanes: Lanes, state: State) -> Tensor:
        """The point that an ended job thinks most of (L, C, H, W); the model as given looks at it once."""
        return state["z"]


@dataclass
class Catch:
    """What a search found.

    Attributes:
        points: (B, C, H, W), exactly in the ball and in [0, 1]: of those that the model as given looked at, the one
            with the largest margin; with ``stop``, the first one that fooled it.
        fooled: (B,), whether the model as given gets the point wrong.
        margin: (B,), max_{i≠y} z_i - z_y of the model as given at the point.
        watch: at which points gradients said nothing.
        counts: how often each thing happened, in points: ``forward`` and ``backward`` passes of the search, ``confirm``
            passes of the model as given, ``denied`` confirmations of what the search took for fooled, ``bad_logits``
            (NaN, infinite), and ``given_up`` jobs that ended early without prospects.
    """

    points: Tensor
    fooled: Tensor
    margin: Tensor
    watch: Watch
    counts: dict[str, int]


def hunt(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    search: Search,
    *,
    eps: float,
    norm: float,
    targets: Tensor | None = None,
    restarts: int = 1,
    seed: int = 0,
    lanes: int = 128,
    stop: bool = True,
    scout: nn.Module | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Catch:
    """Run one search on points that the model gets right.

    Args:
        model: lent by :func:`opnorm.modes.undisturbed`; it alone says who is fooled.
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        search: what each job does.
        eps: radius, in pixel values of [0, 1].
        norm: of the ball.
        targets: (B, T), the wrong classes to try for each point, most promising first; no targets when None.
        restarts: how many jobs for each point and target.
        seed: of the random numbers; each job's belong to (seed, search, point, target, restart).
        lanes: points in one batch.
        stop: a point is done as soon as it is fooled; otherwise all of its jobs are carried through.
        scout: a cheaper stand-in to search on; what it finds is looked at by the model.
        tell: told (points settled, points in all) after every refill.

    Returns:
        A :class:`Catch`. Whether a point is fooled depends on the point, not on its batch or on ``lanes``, but for the
        rounding of the model's kernels; where several of its jobs would fool it, which one comes first may.
    """
    crew = _Crew(model, scout, search, stop, Catch(
        x.clone(), torch.zeros_like(y, dtype=torch.bool), torch.full(y.shape, -math.inf, device=x.device),
        Watch.over(x), dict.fromkeys(COUNTS, 0),
    ))  # fmt: skip
    points, columns = len(x), 1 if targets is None else targets.shape[1]
    # every point has its first job before any has its second
    queue = torch.arange(restarts * columns * points, device=x.device)
    while True:
        queue = queue[~crew.done(queue % max(points, 1))]
        free = lanes - len(crew.point)
        point, turn = queue[:free] % max(points, 1), queue[:free] // max(points, 1)
        queue = queue[free:]
        if len(point):
            target = torch.full_like(point, -1) if targets is None else targets[point, turn % columns]
            restart = turn // columns
            keys = _keys(x[point], seed, search.name, target, restart)
            crew.hire(point, Lanes(x[point], y[point], target, restart, keys, ball(x[point], eps, norm)))
        if not len(crew.point):
            return crew.catch
        if tell:
            tell(points - torch.cat([crew.point, queue % points]).unique().numel(), points)
        crew.work(until=max(1, len(crew.point) // REFILL))


COUNTS = ("forward", "backward", "confirm", "denied", "bad_logits", "given_up")


def _keys(x: Tensor, seed: int, name: str, target: Tensor, restart: Tensor) -> Tensor:
    salt, stream = seed ^ zlib.crc32(name.encode()), (restart << 32) + target + 1
    keys = torch.empty_like(target)
    for value in stream.unique().tolist():
        here = stream == value
        keys[here] = point_keys(x[here], salt, value)
    return keys


class _Crew:
    """The lanes of a hunt and what they have caught."""

    def __init__(
        self, model: nn.Module, scout: nn.Module | None, search: Search, stop: bool, catch: Catch
    ) -> None:
        self.model, self.scout, self.search, self.stop, self.catch = model, scout, search, stop, catch
        empty = torch.empty(0, dtype=torch.long, device=catch.points.device)
        self.point, self.left = empty, empty  # which point a lane is at, and how many steps its job still has
        self.state: State = {}
        self.lanes: Lanes | None = None

    def done(self, point: Tensor) -> Tensor:
        """Which of some points need no more work."""
        fooled = self.catch.fooled[point]
        return fooled if self.stop else torch.zeros_like(fooled)

    def hire(self, point: Tensor, lanes: Lanes) -> None:
        """Put new jobs on free lanes."""
        state = self.search.start(lanes)
        if self.lanes is not None:
            state = {k: torch.cat([self.state[k], v]) for k, v in state.items()}
            lanes = self.lanes.join(lanes)
        self.state, self.lanes = state, lanes
        self.point = torch.cat([self.point, point])
        self.left = torch.cat([self.left, torch.full_like(point, self.search.steps)])

    def work(self, until: int) -> None:
        """Step all lanes until so many have nothing left to do, and let those go."""
        lanes = self.lanes
        assert lanes is not None  # there is work only where somebody was hired
        ended = self.left <= 0
        while int(ended.sum()) < until:
            z, answer = self.state["z"], self._ask(lanes)
            wrong = (answer.logits.argmax(1) != lanes.y) & self.search.inside(lanes, self.state)
            new = wrong & ~ended & ~self.catch.fooled[self.point]
            self.catch.counts["denied"] += int(new.sum()) - self._confirm(lanes, new, z)
            self.state = self.search.advance(lanes, self.state, answer)
            self.left -= 1
            if self.search.patience < math.inf:
                vain = self.search.hopeless(lanes, self.state) & (self.left > 0) & ~self.done(self.point)
                self.catch.counts["given_up"] += int(vain.sum())
                self.left.masked_fill_(vain, 0)
            over = (self.left == 0) & ~self.done(self.point)
            self._confirm(lanes, over, self.search.last(lanes, self.state) if over.any() else z)
            ended = (self.left <= 0) | self.done(self.point)
        kept = ~ended
        self.state = {k: v[kept] for k, v in self.state.items()}
        self.point, self.left, self.lanes = self.point[kept], self.left[kept], lanes.select(kept)

    def _ask(self, lanes: Lanes) -> Answer:
        answer = self.search.ask(self.scout or self.model, lanes, self.state)
        self.catch.counts["forward"] += len(lanes.y) * self.search.passes
        if answer.grad is None:
            return answer
        self.catch.counts["backward"] += len(lanes.y)
        watch = replace(self.catch.watch, points=self.point)
        watch.see(answer.grad, answer.logits.argmax(1) != lanes.y)
        if not watch.broken[self.point].any():
            return answer
        return answer._replace(grad=torch.nan_to_num(answer.grad, 0.0, 0.0, 0.0))

    def _confirm(self, lanes: Lanes, which: Tensor, z: Tensor) -> int:
        """Put some lanes' points exactly inside, look at them with the model as given; how many it gets wrong."""
        if not which.any():
            return 0
        point, y, catch = self.point[which], lanes.y[which], self.catch
        candidates = lanes.region.select(which).project(z[which])
        with torch.no_grad():
            logits = wide(self.model(candidates))
        catch.counts["confirm"] += len(point)
        sane = logits.isfinite().all(1)
        catch.counts["bad_logits"] += int((~sane).sum())
        wrong, gap = sane & (logits.argmax(1) != y), torch.where(sane, margin(logits, y), -math.inf).float()
        better = (gap > catch.margin[point]) | (wrong & ~catch.fooled[point])
        best = _one_each(point, gap)
        best = best[better[best]]
        catch.points[point[best]], catch.margin[point[best]] = candidates[best], gap[best]
        catch.fooled[point[best]] |= wrong[best]
        return int(wrong.sum())


LOOKS = 5  # a search that makes S steps is looked at after S / 2, S / 4, ... of them: so often
EARLY = 10  # within so many steps nothing is foreseen


def falls_short(steps: int, k: Tensor, value: Tensor, mark: Tensor, patience: float) -> tuple[Tensor, Tensor]:
    """Whether a search after ``k`` of its steps (L,) will stay below zero with its ``value`` (L,), and the next ``mark``.

    Each doubling of the steps brings such a search less than the one before. So it falls short when even ``patience``
    times the progress since k / 2, where ``mark`` was taken, for each doubling that is left would not bring it to zero.
    """
    looks = torch.tensor([steps >> j for j in range(1, LOOKS + 1)], device=k.device)
    now = (k[:, None] == looks).any(1)
    doublings = (steps / k.clamp(min=1)).log2().to(value.dtype)
    # NaN, where nothing was found yet, falls short of nothing
    short = now & (k > EARLY) & (value + patience * (value - mark) * doublings < 0)
    return short, torch.where(now, value, mark)


def _one_each(point: Tensor, value: Tensor) -> Tensor:
    """Where each point that occurs has its largest value."""
    order = value.argsort(stable=True)
    order = order[point[order].argsort(stable=True)]
    ends = point[order].diff(append=point.new_full((1,), -1)) != 0
    return order[ends]
