"""What a study would take: one training step of each kind is measured, the rest is scaled from it."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

import opnorm
from opnorm._core.cores import available_cores
from opnorm.data import Dataset
from opnorm.errors import ModelError, TrainError
from opnorm.objectives import Objective, Outcome
from opnorm.runs.build import make_data, make_model, training_settings
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import threads_of_torch
from opnorm.runs.trust import trust
from opnorm.training import train

__all__ = ["Estimate", "check_networks", "estimate", "of_other_versions"]

BUDGET = 15.0  # seconds for all measurements
FEW = 8  # points of the first measurement; all of a batch where that then takes less than LONG
LONG = 1.0
STEPS = 3  # the last one is timed

Kind = tuple[Any, ...]


@dataclass
class Estimate:
    """What the runs that are missing would take.

    Attributes:
        training: seconds of all trainings, one after another; of the kinds that are known.
        analyses: seconds of the analyses whose kind has been made before.
        jobs: processes side by side.
        memory: bytes of one process, the largest seen while measuring; None where steps had fewer points.
        disk: bytes of the weights of all these runs.
        notes: what was measured, what is scaled, what is not counted.
    """

    training: float = 0.0
    analyses: float = 0.0
    jobs: int = 1
    memory: float | None = None
    disk: float = 0.0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """With the processes side by side, all busy to the end, on a machine as busy as while measuring."""
        return (self.training + self.analyses) / self.jobs


@dataclass(frozen=True)
class _Step:
    seconds: float
    scale: float  # from the points that were in it to a batch
    weights: int  # bytes
    steps: int  # of one epoch


def check_networks(runs: Sequence[Run]) -> None:
    """Build each distinct network on its data, before anything is trained.

    Raises:
        ModelError: the data's images or classes do not fit a network; the message names both.
    """
    found: dict[Kind, Dataset] = {}
    for run in {(r.model, r.data, r.limit, r.augment): r for r in runs}.values():
        _model(run, _data(run, found))


def _data(run: Run, found: dict[Kind, Dataset]) -> Dataset:
    """The data of a run, read once."""
    trust(run.as_dict())
    if (run.data, run.limit) not in found:
        found[run.data, run.limit] = make_data(run)
    return found[run.data, run.limit]


def _model(run: Run, data: Dataset) -> nn.Module:
    try:
        return make_model(run, data)
    except ModelError as e:
        shape = "x".join(map(str, data.image_shape))
        raise ModelError(f"{e} ({run.data} has points of {shape} and {data.num_classes} classes)") from e


def estimate(runs: Sequence[Run], store: Store, jobs: int, device: str = "cpu") -> Estimate:
    """What it takes to make the runs that are not finished.

    Of each kind (network, data, objective, regularizers, batch) one training step is measured, for 15 s in all; kinds
    beyond that take the longest step of the same network and objective. Analyses take what they took in finished runs of
    the same network and data.

    Args:
        runs: of a study, finished ones included.
        store: where they would be found.
        jobs: processes side by side.
        device: where to train.
    """
    missing = [run for run in runs if not store.finished(run.key)]
    found = Estimate(jobs=max(1, min(jobs, len(missing))))
    threads = max(1, available_cores() // jobs) if jobs > 1 else torch.get_num_threads()
    with threads_of_torch(threads):
        steps, notes = _measured(missing, device)
    found.notes += notes
    unknown = 0
    for run in missing:
        step = steps.get(_kind(run)) or _longest(run, steps)
        if step is None:
            unknown += run.epochs > 0
            continue
        found.training += step.seconds * step.scale * step.steps * run.epochs
        found.disk += step.weights
    if unknown:
        found.notes.append(f"{unknown} runs are not counted: no step of their kind was measured")
    if steps and all(step.scale == 1 for step in steps.values()):
        found.memory = _peak_memory(device)
    _add_analyses(found, runs, missing, store)
    return found


def of_other_versions(store: Store) -> int:
    """How many runs in a folder were made by another version of opnorm, or in another format; none of them is used."""
    return sum("run" not in about or about["where"]["opnorm"] != opnorm.__version__ for about in store.ls())


def _kind(run: Run) -> Kind:
    return (
        run.model,
        run.data,
        run.limit,
        run.objective,
        run.batch,
        run.precision,
        run.augment,
        run.regularizers,
    )


def _longest(run: Run, steps: dict[Kind, _Step]) -> _Step | None:
    """The longest step of the same network, data and objective with other regularizers."""
    same = [step for kind, step in steps.items() if kind[:-1] == _kind(run)[:-1]]
    return max(same, key=lambda step: step.seconds, default=None)


def _measured(runs: Sequence[Run], device: str) -> tuple[dict[Kind, _Step], list[str]]:
    """One step of each kind, those that differ in more than their regularizers first; and what there is to say."""
    kinds = {_kind(run): run for run in runs if run.epochs > 0}
    first = {kind[:-1]: kind for kind in reversed(kinds)}
    order = sorted(kinds, key=lambda kind: first[kind[:-1]] != kind)
    found: dict[Kind, _Step] = {}
    data: dict[Kind, Dataset] = {}
    problems: list[str] = []
    started = time.perf_counter()
    for kind in order:
        if time.perf_counter() - started > BUDGET:
            break
        run = kinds[kind]
        try:
            found[kind] = _step(run, _data(run, data), device)
        except TrainError as e:
            problems.append(f"{run.model}, {run.label}: {e}")
    few = sum(step.scale > 1 for step in found.values())
    notes = (
        [f"measured: one training step of {len(found)} of {len(kinds)} kinds of training"] if kinds else []
    )
    if few:
        notes.append(
            f"of {few} of them a step of {FEW} points, scaled to the batch: an upper bound for most penalties"
        )
    if len(found) < len(kinds):
        notes.append("the other kinds take the longest measured step of the same network and objective")
    return found, [*notes, *problems]


def _step(run: Run, data: Dataset, device: str) -> _Step:
    """The time of one training step, of few points first and of a batch where that is short."""
    points = len(data.train.labels)
    batch = min(run.batch, points)
    model = _model(run, data)
    seconds = _seconds(run, model, data, min(batch, FEW), device)
    timed = min(batch, FEW)
    if seconds * batch / timed < LONG:
        seconds, timed = _seconds(run, model, data, batch, device), batch
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    return _Step(seconds, batch / timed, weights, max(1, points // run.batch))


def _seconds(run: Run, model: nn.Module, data: Dataset, batch: int, device: str) -> float:
    """The time between the beginnings of the last two of three steps; of the whole step where there is one."""
    began: list[float] = []
    settings = training_settings(replace(run, epochs=1, batch=batch))

    def timed(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        if x.is_cuda:
            torch.cuda.synchronize()
        began.append(time.perf_counter())
        return objective(model, x, y)

    objective: Objective = settings.objective
    some = data.limit(min(STEPS * batch, len(data.train.labels)))
    train(model, some, replace(settings, objective=timed), device=device)
    ended = time.perf_counter()
    return began[-1] - began[-2] if len(began) > 1 else ended - began[0]


def _peak_memory(device: str) -> float | None:
    """Bytes: of this process on a CPU, of what torch has allocated on a GPU; None where the system does not say."""
    if torch.device(device).type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak) * (1 if sys.platform == "darwin" else 1024)


def _add_analyses(found: Estimate, runs: Sequence[Run], missing: Sequence[Run], store: Store) -> None:
    """The time of analyses, from that in finished runs of the same network and data."""
    known: dict[Kind, list[float]] = {}
    for run in runs:
        for call, saved in store.results(run.key).items():
            known.setdefault((run.model, run.data, run.limit, call), []).append(saved["seconds"])
    left_out = 0
    for run in missing:
        for call in run.analyses:
            if seconds := known.get((run.model, run.data, run.limit, call)):
                found.analyses += math.fsum(seconds) / len(seconds)
            else:
                left_out += 1
    if left_out:
        found.notes.append(
            f"{left_out} analyses not counted: none of their kind has been made in this folder"
        )
