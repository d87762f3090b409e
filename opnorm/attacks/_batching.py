"""The hunt: searches on lanes, each at an iteration of its own.

A point costs what it needs and no more. The moment it is fooled its lane goes to the next job, so the batch stays full
while the points that resist take their hundred steps; the jobs of many targets and restarts share one batch. The search
may ask a cheaper stand-in of the model (16-bit weights, folded batch norm), and may be a rounding error outside of the
ball: what counts as fooled is put exactly inside and confirmed on the model as given.
"""

import math
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.random import point_keys
from opnorm.attacks._pgd import Watch
from opnorm.attacks.losses import margin, wide
from opnorm.attacks.projections import ball
from opnorm.attacks.search import EARLY, Answer, Lanes, Search, State, ask_once

__all__ = ["Catch", "Tally", "Task", "hunt", "hunt_together"]

REFILL = 16  # lanes are refilled when one in so many is free: each refill copies the state


class Task(NamedTuple):
    """A search for a hunt.

    Attributes:
        search: what each job does.
        targets: (B, T), the wrong classes to try for each point, most promising first; no targets when None.
        restarts: how many jobs for each point and target.
        abreast: how many jobs of a point may be under way at a time: if one of the first may well do it, others had better
            wait where lanes cost time, but each wait is one more search's length at the end.
    """

    search: Search
    targets: Tensor | None = None
    restarts: int = 1
    abreast: float = math.inf


@dataclass
class Tally:
    """What one of the searches did.

    Attributes:
        begun: (B,), how many jobs of each point.
        watch: at which points gradients said nothing.
        counts: how often each thing happened, in points: ``forward`` and ``backward`` passes of the search, ``confirm``
            passes of the model as given, ``denied`` confirmations of what the search took for fooled, ``bad_logits``
            (NaN, infinite), and ``given_up`` jobs that ended early without prospects.
    """

    begun: Tensor
    watch: Watch
    counts: dict[str, int]


@dataclass
class Catch:
    """What was found.

    Attributes:
        points: (B, C, H, W), exactly in the ball and in [0, 1]: of those that the model as given looked at, the one
            with the largest margin; with ``stop``, the first one that fooled it.
        fooled: (B,), whether the model as given gets the point wrong.
        margin: (B,), max_{i≠y} z_i - z_y of the model as given at the point.
        by: (B,), which of the searches fooled it first; -1 for none.
        tallies: of each search, by its name.
    """

    points: Tensor
    fooled: Tensor
    margin: Tensor
    by: Tensor
    tallies: dict[str, Tally]

    @property
    def watch(self) -> Watch:
        """Of the only search."""
        (tally,) = self.tallies.values()
        return tally.watch

    @property
    def counts(self) -> dict[str, int]:
        """Of the only search."""
        (tally,) = self.tallies.values()
        return tally.counts


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
    surrogate: nn.Module | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Catch:
    """Run one search on points that the model gets right; see :func:`hunt_together`."""
    tasks = [Task(search, targets, restarts)]
    return hunt_together(
        model,
        x,
        y,
        tasks,
        eps=eps,
        norm=norm,
        seed=seed,
        lanes=lanes,
        stop=stop,
        surrogate=surrogate,
        tell=tell,
    )


def hunt_together(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    tasks: Collection[Task],
    *,
    eps: float | Tensor,
    norm: float,
    seed: int = 0,
    lanes: int = 128,
    stop: bool = True,
    surrogate: nn.Module | None = None,
    reached: Tensor | None = None,
    after: Tensor | None = None,
    tell: Callable[[int, int], None] | None = None,
) -> Catch:
    """Run searches on points that the model gets right, one after another, in one batch.

    A point goes to the next search when all of its jobs in the one before are under way for some steps, so that the batch
    does not run empty while the last few points take their hundred steps.

    Args:
        model: lent by :func:`opnorm._core.modes.model_state_preserved`; it alone says who is fooled.
        x: (B, C, H, W) in [0, 1].
        y: (B,).
        tasks: what each job does; several of them all ask forward and backward once a step.
        eps: radius, in pixel values of [0, 1]; or one for each point (B,).
        norm: of the ball.
        seed: of the random numbers; each job's belong to (seed, search, point, target, restart).
        lanes: points in one batch.
        stop: a point is done as soon as it is fooled; otherwise all of its jobs are carried through.
        surrogate: a cheaper stand-in to search on; what it finds is looked at by the model.
        reached: (B,), the largest margins that attacks before reached, from which a search may see that it falls short.
        after: (B,), the point that each one waits for: it is tried if that one is fooled, and not at all if it stands; -1
            for none. So may a point be tried at several radii, of which the larger ones come first.
        tell: told (points settled, points in all) after every refill.

    Returns:
        A :class:`Catch`. Whether a point is fooled depends on the point, not on its batch or on ``lanes``, but for the
        rounding of the model's kernels; where several of its jobs would fool it, which one comes first may.
    """
    blank = torch.zeros_like(y, dtype=torch.bool)
    catch = Catch(
        x.clone(), blank, torch.full(y.shape, -math.inf, device=x.device), torch.full_like(y, -1), {}
    )
    reached = torch.full_like(catch.margin, -math.inf) if reached is None else reached
    radii = torch.as_tensor(eps, dtype=torch.float64, device=x.device).expand(len(x))
    ground = _Ground(model, x, y, radii, norm, seed, stop, reached, after, catch)
    crews = [_Crew(ground, task, rank) for rank, task in enumerate(tasks)]
    while True:
        free = lanes - sum(len(crew.point) for crew in crews)
        for crew, before in zip(crews, [None, *crews], strict=False):
            free -= crew.hire(free, before)
        busy = [crew for crew in crews if len(crew.point)]
        if not busy:
            return catch
        if tell:
            waiting = torch.cat([jobs for crew in crews for jobs in (crew.point, crew.queue[0])])
            tell(len(x) - waiting.unique().numel(), len(x))
        _work(surrogate or model, busy, until=max(1, (lanes - free) // REFILL))


COUNTS = ("forward", "backward", "confirm", "denied", "bad_logits", "given_up")


def _work(network: nn.Module, crews: Collection["_Crew"], until: int) -> None:
    """Step all lanes until so many have nothing left to do, or others may be let in, and let those go."""
    for _ in range(EARLY):
        if sum(int(crew.ended().sum()) for crew in crews) >= until:
            break
        jobs = [(crew.task.search, crew.lanes, crew.state) for crew in crews]
        (search, lanes, state), *others = jobs
        answers = ask_once(network, jobs) if others else iter([search.ask(network, lanes, state)])
        for crew, answer in zip(crews, answers, strict=True):
            crew.step(answer)
    for crew in crews:
        crew.dismiss()


def _keys(x: Tensor, seed: int, name: str, target: Tensor, restart: Tensor) -> Tensor:
    return point_keys(x, seed ^ zlib.crc32(name.encode()), (restart << 32) + target + 1)


class _Ground(NamedTuple):
    """What all searches of a hunt share."""

    model: nn.Module
    x: Tensor
    y: Tensor
    eps: Tensor
    norm: float
    seed: int
    stop: bool
    reached: Tensor
    after: Tensor | None
    catch: Catch


class _Crew:
    """The lanes of one search, and its jobs that wait for one."""

    lanes: Lanes  # and the rest of what there is one of for each lane, all set with the first jobs
    state: State

    def __init__(self, ground: _Ground, task: Task, rank: int) -> None:
        self.ground, self.task, self.rank = ground, task, rank
        x, empty = ground.x, torch.empty(0, dtype=torch.long, device=ground.x.device)
        self.tally = Tally(torch.zeros_like(ground.y), Watch.over(x), dict.fromkeys(COUNTS, 0))
        ground.catch.tallies[task.search.name] = self.tally
        self.columns = 1 if task.targets is None else task.targets.shape[1]
        # (2, jobs): which point, and which of its jobs; every point has its first one before any has its second
        jobs = torch.arange(task.restarts * self.columns * len(x), device=x.device)
        self.queue = torch.stack([jobs % max(len(x), 1), jobs // max(len(x), 1)])
        self.point, self.left = empty, empty  # which point a lane is at, and how many steps its job still has

    def done(self, point: Tensor) -> Tensor:
        """Which of some points need no more work."""
        fooled = self.ground.catch.fooled[point]
        return fooled if self.ground.stop else torch.zeros_like(fooled)

    def ended(self) -> Tensor:
        """Which lanes have nothing left to do."""
        return (self.left <= 0) | self.done(self.point)

    def holds(self) -> Tensor:
        """The points whose jobs wait or have just begun, (B,)."""
        held = torch.zeros_like(self.ground.catch.fooled)
        held[self.queue[0]] = True
        held[self.point[self.left > self.task.search.steps - EARLY]] = True
        return held

    def hire(self, free: int, before: "_Crew | None") -> int:
        """Put jobs on free lanes, of points that the search before does not hold; says of how many."""
        self.queue = self.queue[:, ~self.done(self.queue[0])]
        if free <= 0 or not self.queue.shape[1]:
            return 0
        task, g, begun, count = self.task, self.ground, self.tally.begun, len(self.ground.x)
        point, turn = self.queue
        able = (self.point.bincount(minlength=count) - begun)[point] + turn < task.abreast
        if before is not None:
            able &= ~before.holds()[point]
        if g.after is not None:
            first = g.after[point]
            able &= (first < 0) | g.catch.fooled[first]
        taken = able & (able.cumsum(0) <= free)
        point, turn, self.queue = point[taken], turn[taken], self.queue[:, ~taken]
        if not len(point):
            return 0
        begun += point.bincount(minlength=count)
        target = (
            torch.full_like(point, -1) if task.targets is None else task.targets[point, turn % self.columns]
        )
        restart, x = turn // self.columns, g.x[point]
        keys = _keys(x, g.seed, task.search.name, target, restart)
        lanes = Lanes(x, g.y[point], target, restart, keys, g.reached[point], ball(x, g.eps[point], g.norm))
        state = task.search.start(lanes)
        if len(self.point):
            state = {k: torch.cat([self.state[k], v]) for k, v in state.items()}
            lanes = self.lanes.join(lanes)
        self.state, self.lanes = state, lanes
        self.point = torch.cat([self.point, point])
        self.left = torch.cat([self.left, torch.full_like(point, task.search.steps)])
        return len(point)

    def step(self, answer: Answer) -> None:
        """One step of all lanes, with what the model said."""
        search, fooled, z = self.task.search, self.ground.catch.fooled, self.state["z"]
        wrong = answer.logits.argmax(1) != self.lanes.y
        answer = self._note(answer, wrong)
        if wrong.any():
            new = wrong & search.inside(self.lanes, self.state) & (self.left > 0) & ~fooled[self.point]
            self.tally.counts["denied"] += int(new.sum()) - self._confirm(new, z)
        self.state = search.advance(self.lanes, self.state, answer)
        self.left -= answer.steps
        if search.patience < math.inf:
            vain = search.hopeless(self.lanes, self.state) & (self.left > 0) & ~self.done(self.point)
            self.tally.counts["given_up"] += int(vain.sum())
            self.left.masked_fill_(vain, 0)
        over = (self.left == 0) & ~self.done(self.point)
        if over.any():
            self._confirm(over, search.last(self.lanes, self.state))

    def dismiss(self) -> None:
        """Free the lanes that have nothing left to do."""
        kept = ~self.ended()
        if kept.all():
            return
        self.state = {k: v[kept] for k, v in self.state.items()}
        self.lanes, self.point, self.left = self.lanes.select(kept), self.point[kept], self.left[kept]

    def _note(self, answer: Answer, wrong: Tensor) -> Answer:
        """Count the passes, and look at the gradient; what is no number in it becomes zero."""
        counts = self.tally.counts
        counts["forward"] += len(wrong) * self.task.search.passes if answer.asked is None else answer.asked
        if answer.grad is None:
            return answer
        counts["backward"] += len(wrong)
        watch = replace(self.tally.watch, points=self.point)
        watch.see(answer.grad, wrong)
        if not watch.broken[self.point].any():
            return answer
        return answer._replace(grad=torch.nan_to_num(answer.grad, 0.0, 0.0, 0.0))

    def _confirm(self, which: Tensor, z: Tensor) -> int:
        """Put some lanes' points exactly inside, look at them with the model as given; how many it gets wrong."""
        if not which.any():
            return 0
        point, y, catch, counts = self.point[which], self.lanes.y[which], self.ground.catch, self.tally.counts
        candidates = self.lanes.region.select(which).project(z[which])
        with torch.no_grad():
            logits = wide(self.ground.model(candidates))
        counts["confirm"] += len(point)
        sane = logits.isfinite().all(1)
        counts["bad_logits"] += int((~sane).sum())
        wrong, gap = sane & (logits.argmax(1) != y), torch.where(sane, margin(logits, y), -math.inf).float()
        better = (gap > catch.margin[point]) | (wrong & ~catch.fooled[point])
        best = _one_each(point, gap)
        best = best[better[best]]
        catch.points[point[best]], catch.margin[point[best]] = candidates[best], gap[best]
        caught = point[best][wrong[best] & ~catch.fooled[point[best]]]
        catch.fooled[caught], catch.by[caught] = True, self.rank
        return int(wrong.sum())


def _one_each(point: Tensor, value: Tensor) -> Tensor:
    """Where each point that occurs has its largest value."""
    order = value.argsort(stable=True)
    order = order[point[order].argsort(stable=True)]
    ends = point[order].diff(append=point.new_full((1,), -1)) != 0
    return order[ends]
