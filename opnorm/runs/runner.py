"""A study: a list of runs, and the report on their results.

Runs are independent, so several processes of this machine work on them at a time, each with its part of the cores. A run
that fails is a row that states why; the other rows are shown all the same.
"""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from opnorm._core.cores import available_cores
from opnorm.errors import BusyError, RunError, TrainError
from opnorm.report import Report
from opnorm.runs.plan import check_networks
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import RunProgress, find_result, run_training, threads_of_torch

__all__ = ["WAITING", "Study", "StudyProgress", "check_jobs", "run_study"]


@dataclass(frozen=True)
class Study:
    """A question that many runs answer.

    Attributes:
        name: such as ``tour``.
        runs: to train and analyze.
        report: makes the page of the results, in the order of the runs; those still to come have no rows and are
            :attr:`~opnorm.runs.run.Result.pending`.
        more: further runs that depend on results, asked for until there are none. They follow in the order; one that is
            there already is asked for further analyses, and takes its place. None where there are never any.
        rank: runs of one seed are begun in the order of their ranks, and in that of the study where these are equal. All
            runs of the first seed come before those of the second.
    """

    name: str
    runs: Sequence[Run]
    report: Callable[[Sequence[Result]], Report]
    more: Callable[[Sequence[Result]], Sequence[Run]] | None = None
    rank: Callable[[Run], int] = lambda run: 0


@dataclass(frozen=True)
class StudyProgress:
    """How far a run of a study is.

    Attributes:
        index: of the run in the study; further runs follow.
        run: its settings.
        share: of its training, 0 to 1.
        text: what it does, in a few words; ``WAITING`` once, for each run that is to be done, before any begins.
        result: set when it has ended.
    """

    index: int
    run: Run
    share: float
    text: str
    result: Result | None = None


Progress = Callable[[StudyProgress], None]

WAITING = "waits"
PAUSE = 0.5  # seconds between two looks at a run that another process is at


def check_jobs(jobs: int | None) -> None:
    """RunError for less than one process."""
    if jobs is not None and jobs < 1:
        raise RunError(f"jobs={jobs!r}: expected at least 1 process")


def run_study(
    study: Study,
    store: Store,
    *,
    jobs: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[Result]:
    """Run what has not been run yet, and return all results in the order of the study.

    A run that another process is at is left for the end, and waited for. Each process has its part of the cores, the same
    whether the study is begun or goes on.

    Args:
        study: the runs.
        store: where results are written and found.
        jobs: parallel processes; one a core, at most 8, when None; 1 on a GPU.
        device: where to train.
        progress: called every few steps, in this process.

    Returns:
        One result a run; one whose training diverged has ``failure`` set.

    Raises:
        OpnormError: a run that cannot start (wrong data, wrong model); the other processes are stopped.
        KeyboardInterrupt: after Ctrl-C; the finished epochs of every run are on the disk.
    """
    check_jobs(jobs)
    report = progress or (lambda event: None)
    runs, begun = list(study.runs), 0
    results: list[Result] = []
    while runs:
        places = {result.run.key: place for place, result in enumerate(results)}
        for result in _run_all(study, dict(enumerate(runs, begun)), store, jobs, device, report):
            if (place := places.get(result.run.key)) is None:
                results.append(result)
            else:
                results[place] = result
        begun += len(runs)
        runs = list(study.more(results)) if study.more else []
    return results


def _run_all(
    study: Study, numbered: dict[int, Run], store: Store, jobs: int | None, device: str, report: Progress
) -> list[Result]:
    """Runs that do not depend on each other, by their index in the study."""
    results: dict[int, Result] = {}
    for i, run in numbered.items():
        if found := find_result(run, store):
            results[i] = found
            report(StudyProgress(i, run, 1.0, "found", found))
    order = sorted(numbered, key=lambda i: (numbered[i].seed, study.rank(numbered[i])))
    missing = {i: numbered[i] for i in order if i not in results}
    check_networks([run for run in missing.values() if not store.finished(run.key)])
    # of all these runs, however many are there, so that what is left after a kill gets the same bits
    planned = min(jobs or default_jobs(device), max(len(numbered), 1))
    threads = max(1, available_cores() // planned) if planned > 1 else torch.get_num_threads()
    if min(planned, len(missing)) > 1:
        plan = _Plan(min(planned, len(missing)), threads, device)
        results |= _run_in_processes(missing, store, plan, report)
    else:
        with threads_of_torch(threads):
            results |= _run_one_by_one(missing, store, device, report)
    return [results[i] for i in numbered]


def _run_one_by_one(
    missing: dict[int, Run], store: Store, device: str, report: Progress
) -> dict[int, Result]:
    """The missing runs; those that another process is at come last."""
    results: dict[int, Result] = {}
    _announce(missing, report)
    while len(results) < len(missing):
        for i in [i for i in missing if i not in results]:
            if (result := _run_one(i, missing[i], store, device, report)) is not None:
                results[i] = result
                report(StudyProgress(i, missing[i], 1.0, "done", result))
        if len(results) < len(missing):
            time.sleep(PAUSE)
    return results


def _announce(missing: dict[int, Run], report: Progress) -> None:
    for i, run in missing.items():
        report(StudyProgress(i, run, 0.0, WAITING))


def default_jobs(device: str) -> int:
    """Small networks use one core each best; a GPU is one."""
    return min(available_cores(), 8) if device == "cpu" else 1


def _run_one(index: int, run: Run, store: Store, device: str, report: Progress) -> Result | None:
    """One run; None where another process is at it. A diverged training is a result, any other error is raised."""

    def progress(event: RunProgress) -> None:
        share, text = 1.0, event.activity.partition("(")[0]
        if at := event.training:
            share = (at.epoch - 1 + at.step / at.steps) / max(at.epochs, 1)
            text = f"epoch {at.epoch}/{at.epochs}, loss {at.loss:.3f}, {at.accuracy:.1%}"
        report(StudyProgress(index, run, share, text))

    remembered = bool(store.failure(run.key))
    try:
        return run_training(run, store, device=device, progress=progress)
    except BusyError:
        report(StudyProgress(index, run, 0.0, "waits for another process that is at it"))
        return None
    except TrainError as e:  # the reason alone, without the folder: reports are carried to other machines
        why = store.failure(run.key) or str(e)
        return Result(run, [], {}, 0.0, why, store.folder(run.key), found=remembered)


# ---------------------------------------------------------------- several processes


class _Plan(NamedTuple):
    """How many processes, the threads of each, and where they train."""

    jobs: int
    threads: int
    device: str


def _run_in_processes(
    missing: dict[int, Run], store: Store, plan: _Plan, report: Progress
) -> dict[int, Result]:
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has threads
    events = context.Queue()
    # workers exit when `parent_end` is closed, by this process or by its death
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(plan.jobs, context, _start_worker, (worker_end, events, plan.threads))
    results: dict[int, Result] = {}

    def submit(index: int) -> "Future[Result | None]":
        with _workers_without_sigint():
            return pool.submit(_run_in_worker, index, missing[index].as_dict(), store, plan.device)

    try:
        futures = {i: submit(i) for i in missing}
        _announce(missing, report)  # while the processes start
        while len(results) < len(missing):
            for i, future in futures.items():
                if i in results or not future.done():
                    continue
                if (result := _result_of(future)) is None:  # another process is at it: after the others
                    futures[i] = submit(i)
                    continue
                results[i] = result
                report(StudyProgress(i, missing[i], 1.0, "done", result))
            with suppress(queue.Empty):
                report(events.get(timeout=0.2))
    except BaseException:
        parent_end.close()  # workers exit at once; the epochs they have finished are on the disk
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        parent_end.close()
        worker_end.close()
    return results


def _result_of(future: "Future[Result | None]") -> Result | None:
    try:
        return future.result()
    except BrokenExecutor as e:
        raise RunError(
            "a process that trained has ended unexpectedly: out of memory, or killed? "
            "Finished epochs are kept, and the same command goes on; --jobs 1 needs the least memory"
        ) from e


@contextmanager
def _workers_without_sigint() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; processes started in this block ignore it until this one decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: dict[str, Any] = {}


def _start_worker(worker_end: Connection, events: Any, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(worker_end,), daemon=True).start()
    torch.set_num_threads(threads)
    _worker.update(events=events, last=0.0)


def _exit_with_parent(worker_end: Connection) -> None:
    """End this process once the other end is closed; nothing is lost by it that a kill would not lose."""
    with suppress(OSError):
        worker_end.poll(None)
    os._exit(1)


def _run_in_worker(index: int, run: dict[str, Any], store: Store, device: str) -> Result | None:
    def report(event: StudyProgress) -> None:
        now = time.monotonic()
        if now - _worker["last"] > 0.2:
            _worker["last"] = now
            _worker["events"].put(event)

    result = _run_one(index, Run.from_dict(run), store, device, report)
    if result is None:
        time.sleep(PAUSE)
    return result
