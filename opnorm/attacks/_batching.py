"""The scheduler of searches: one full batch of rows, each at an iteration of its own.

A row whose point is misclassified, or whose job has ended, is given to the next job, so that the batch stays full while
the robust points take all of their steps. Jobs of several targets, restarts and searches share one batch. The search may
evaluate a cheaper surrogate of the model and leave the ball by a rounding error: a point counts as misclassified only
after it was projected into the ball and evaluated by the model as given.
"""

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.memory import small_frees_kept
from opnorm._core.outputs import output_of
from opnorm._core.random import point_keys
from opnorm.attacks._extrapolation import FIRST_STEPS
from opnorm.attacks._gradients import GradientMonitor, finite_gradient
from opnorm.attacks._rows import concatenate, select
from opnorm.attacks._search import Batch, Response, Search, State, evaluate
from opnorm.attacks.losses import margin, rank_targets, wide
from opnorm.attacks.projections import ball

__all__ = ["Options", "Problem", "Record", "SearchResult", "Searches", "run_searches"]

ALONE = 2  # steps of the first job of a point before its others start, which an easy point does not need
REFILL = 16  # free rows are filled when they are one in so many: filling copies the states
COUNTS = ("forward", "backward", "confirmations", "rejected", "invalid_logits", "stopped_early")


@dataclass(frozen=True)
class Problem:
    """Points, and the balls around them in which misclassified ones are sought.

    Attributes:
        model: decides whether a point is misclassified; its state is preserved by the caller.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        logits: of the model at the clean points (B, K); only targets need them.
        eps: radius in pixel values of [0, 1], of all points or of each (B,).
        norm: of the balls.
        after: (B,), the index of the point that must be misclassified before this one is attacked, -1 for none: so a
            point is attacked at several radii, the largest first.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    logits: Tensor
    eps: float | Tensor
    norm: float
    after: Tensor | None = None


class Searches(NamedTuple):
    """One search and its jobs: for each point every restart, and in it so many wrong classes, if not 0."""

    search: Search[Any]
    targets: int = 0
    restarts: int = 1


@dataclass(frozen=True)
class Options:
    """How searches run.

    Attributes:
        seed: of the random numbers; each job's depend on (seed, search, point, target, restart) alone.
        batch: rows.
        stop_at_success: no further work on a misclassified point; otherwise all of its jobs run to their ends.
        surrogate: a cheaper network to search on.
        progress: called with (points settled, points attacked) whenever rows were filled.
    """

    seed: int = 0
    batch: int = 128
    stop_at_success: bool = True
    surrogate: nn.Module | None = None
    progress: Callable[[int, int], None] | None = None


@dataclass
class Record:
    """The work of one search.

    Attributes:
        name: of the search.
        jobs: (B,), started for each point.
        jobs_per_point: restarts times targets.
        gradients: points without a direction.
        counts: of points: ``forward`` and ``backward`` passes of the search, ``confirmations`` by the model as given,
            of which ``rejected`` as not misclassified and ``invalid_logits`` NaN or infinite; jobs ``stopped_early``.
    """

    name: str
    jobs: Tensor
    jobs_per_point: int
    gradients: GradientMonitor
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTS, 0))


@dataclass
class SearchResult:
    """The result of all searches so far.

    Attributes:
        attacked: (B,), the points to attack.
        points: (B, ...), exactly in the ball and in [0, 1]: the first misclassified one, or the one with the largest
            margin of those that the model as given evaluated; the clean one where it evaluated none.
        misclassified: (B,), by the model as given at ``points``.
        margin: (B,), max_{i≠y} z_i - z_y of the model as given at ``points``; -inf where it evaluated none.
        search: (B,), the index of the search that made the point misclassified, -1 for none.
        records: of the searches, in their order.
    """

    attacked: Tensor
    points: Tensor
    misclassified: Tensor
    margin: Tensor
    search: Tensor
    records: list[Record] = field(default_factory=list)

    @staticmethod
    def start(x: Tensor, attacked: Tensor) -> "SearchResult":
        """Before any search."""
        margin = torch.full(attacked.shape, -math.inf, dtype=torch.float32, device=x.device)
        none = torch.full(attacked.shape, -1, device=x.device)
        return SearchResult(attacked, x.clone(), torch.zeros_like(attacked), margin, none)


def run_searches(
    problem: Problem, searches: Sequence[Searches], options: Options, result: SearchResult | None = None
) -> SearchResult:
    """Run searches one after another, in one batch, and update the result; without one, on all points.

    The jobs of the next search start at a point when its jobs of the search before have made half of their steps, in which
    nearly all successes are; where many points are robust, the batch is full all the same. If a success ends the work on
    a point, all but the first job of a search begin after the first steps of that one.

    The verdict on a point depends neither on the other points nor on the size of the batch, but for the rounding of the
    model's kernels; which of several successful jobs succeeds first may.
    """
    small_frees_kept()
    if result is None:
        result = SearchResult.start(problem.x, torch.ones_like(problem.y, dtype=torch.bool))
    groups, rows = [_Group(problem, options, result, part) for part in searches], options.batch
    network = options.surrogate or problem.model
    points = int((result.attacked & ~result.misclassified).sum())
    while True:
        free = rows - sum(len(group.point) for group in groups)
        for group, before in zip(groups, [None, *groups[:-1]], strict=True):
            free -= group.start_jobs(free, before)
        active = [group for group in groups if len(group.point)]
        if not active:
            return result
        if options.progress:
            unsettled = torch.cat([jobs for group in groups for jobs in (group.point, group.queue[0])])
            options.progress(points - unsettled.unique().numel(), points)
        refill = max(1, (rows - free) // REFILL)
        for _ in range(FIRST_STEPS):
            if sum(group.ended() for group in active) >= refill:
                break
            if active[0].search.shares_batch:
                jobs = [(group.search, group.batch, group.state) for group in active]
                responses = evaluate(network, jobs, [group.settle for group in active])
            else:
                (group,) = active
                responses = [group.search.query(network, group.batch, group.state)]
                group.settle(responses[0].logits)
            for group, response in zip(active, responses, strict=True):
                group.step(response)
        for group in active:
            group.keep_open()


class _Group:
    """The rows of one search, and its jobs that wait for a row."""

    batch: Batch
    state: State
    open: Tensor  # which rows have a further step to make (R,)
    wrong: Tensor  # which the network misclassifies

    def __init__(self, problem: Problem, options: Options, result: SearchResult, searches: Searches) -> None:
        self.problem, self.options, self.result = problem, options, result
        self.search, y = searches.search, problem.y
        self.targets = torch.full_like(y, -1)[:, None]
        if searches.targets:
            self.targets = rank_targets(problem.logits, y, searches.targets)
        per_point = searches.restarts * self.targets.shape[1]
        self.index = len(result.records)
        self.record = Record(self.search.name, torch.zeros_like(y), per_point, GradientMonitor.of(y))
        result.records.append(self.record)
        # (2, jobs), the point and which of its jobs it is; every point has its first job before any has its second
        points = result.attacked.nonzero().squeeze(1)
        jobs = torch.arange(per_point, device=y.device).repeat_interleave(len(points))
        self.queue = torch.stack([points.repeat(per_point), jobs])
        self.point = points[:0]  # of each row

    def settled(self, point: Tensor) -> Tensor:
        """Which of some points need no further work."""
        return self.result.misclassified[point] & self.options.stop_at_success

    def ended(self) -> int:
        """How many rows have no further step to make; the others are ``open`` from then on."""
        over = self.state.stopped | (self.state.k >= self.search.steps) | self.settled(self.point)
        self.open = ~over
        return int(over.sum())

    def unfinished(self) -> Tensor:
        """The points with jobs that wait or have made less than half of their steps (B,)."""
        found = torch.zeros_like(self.result.misclassified)
        found[self.queue[0]] = True
        if len(self.point):
            found[self.point[~self.state.stopped & (self.state.k < self.search.steps // 2)]] = True
        return found

    def begun(self) -> Tensor:
        """The points whose jobs so far have all made a few steps, or ended (B,)."""
        found = self.record.jobs > 0
        if len(self.point):
            found[self.point[~self.state.stopped & (self.state.k < ALONE)]] = False
        return found

    def start_jobs(self, free: int, before: "_Group | None") -> int:
        """Put jobs on free rows, of points on which the search before is not unfinished; returns their number."""
        problem, after, result = self.problem, self.problem.after, self.result
        self.queue = self.queue[:, ~self.settled(self.queue[0])]
        point, job = self.queue
        able = torch.ones_like(point, dtype=torch.bool) if before is None else ~before.unfinished()[point]
        if after is not None:
            able &= (after[point] < 0) | result.misclassified[after[point]]
        if self.options.stop_at_success:
            able &= (job == 0) | self.begun()[point]
        taken = able & (able.cumsum(0) <= free)
        point, job, self.queue = point[taken], job[taken], self.queue[:, ~taken]
        if not len(point):
            return 0
        self.record.jobs += point.bincount(minlength=len(self.record.jobs))
        restart = job // self.targets.shape[1]
        target = self.targets[point, job % self.targets.shape[1]]
        x = problem.x[point]
        keys = job_keys(x, self.options.seed, self.search.name, target, restart)
        eps = problem.eps[point] if isinstance(problem.eps, Tensor) else problem.eps
        balls = ball(x, eps, problem.norm)
        batch = Batch(x, problem.y[point], target, restart, keys, result.margin[point], balls)
        state = self.search.start(batch)
        if len(self.point):
            batch, state = concatenate(self.batch, batch), concatenate(self.state, state)
        self.batch, self.state, self.point = batch, state, torch.cat([self.point, point])
        return len(point)

    def settle(self, logits: Tensor) -> Tensor:
        """Let the model as given decide on the rows that the network misclassifies; which rows are still open."""
        self.wrong = logits.argmax(1) != self.batch.y
        found = self.wrong & self.open & ~self.result.misclassified[self.point]
        if found.any():
            found &= self.search.feasible(self.batch, self.state)
            self.record.counts["rejected"] += int(found.sum()) - self.confirm(found, self.state.z)
            self.open &= ~self.settled(self.point)
        return self.open

    def step(self, response: Response) -> None:
        """One step of all rows, after the model's response."""
        search, batch, counts = self.search, self.batch, self.record.counts
        counts["forward"] += response.forward
        counts["backward"] += response.backward
        if response.grad is not None:
            without = ~(self.open | self.wrong)  # it was not sought there
            self.record.gradients.record(self.point, response.grad, self.wrong, without)
            response = response._replace(grad=finite_gradient(response.grad))
        self.state = state = search.advance(batch, self.state, response)
        over = self.open & (state.stopped | (state.k >= search.steps))
        if over.any():
            over &= ~self.settled(self.point)
            counts["stopped_early"] += int((over & (state.k < search.steps)).sum())
            self.confirm(over, search.final_iterate(batch, state))

    def keep_open(self) -> None:
        """Remove the rows that have no further step to make."""
        if self.ended():
            self.batch, self.state = select(self.batch, self.open), select(self.state, self.open)
            self.point = self.point[self.open]

    def confirm(self, rows: Tensor, z: Tensor) -> int:
        """Project some rows' points exactly, and evaluate them by the model as given; how many it misclassifies."""
        if not rows.any():
            return 0
        point, y, result, counts = self.point[rows], self.batch.y[rows], self.result, self.record.counts
        candidates = select(self.batch.ball, rows).project(z[rows])
        with torch.no_grad():
            logits = wide(output_of(self.problem.model, candidates))
        valid = logits.isfinite().all(1)
        counts["confirmations"] += len(point)
        counts["invalid_logits"] += int((~valid).sum())
        wrong = valid & (logits.argmax(1) != y)
        value = torch.where(valid, margin(logits, y), -math.inf).float()
        better = (value > result.margin[point]) | (wrong & ~result.misclassified[point])
        best = _best_of_each(point, value)
        best = best[better[best]]
        result.points[point[best]], result.margin[point[best]] = candidates[best], value[best]
        first = point[best][wrong[best] & ~result.misclassified[point[best]]]
        result.misclassified[first], result.search[first] = True, self.index
        return int(wrong.sum())


def job_keys(x: Tensor, seed: int, name: str, target: Tensor, restart: Tensor) -> Tensor:
    """Of each job's random numbers (R,), the same in any batch."""
    return point_keys(x, seed ^ zlib.crc32(name.encode()), (restart << 32) + target + 1)


def _best_of_each(point: Tensor, value: Tensor) -> Tensor:
    """The row with the largest value of each point that occurs."""
    order = value.argsort(stable=True)
    order = order[point[order].argsort(stable=True)]
    return order[point[order].diff(append=point.new_full((1,), -1)) != 0]
