"""Several processes of this machine, each with its part of the cores."""

import multiprocessing
import queue
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

from opnorm._core.cores import available_cores
from opnorm._core.processes import start_with_parent, workers_without_sigint
from opnorm.errors import RunError
from opnorm.runs.engines.engine import PAUSE, Progress, StudyProgress, announce, run_one
from opnorm.runs.engines.share import Share, check_jobs, check_share
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store

__all__ = ["LocalEngine", "default_jobs"]


def default_jobs(device: str) -> int:
    """Small networks use one core each best; a GPU is one."""
    return min(available_cores(), 8) if device == "cpu" else 1


class LocalEngine:
    """Runs side by side on this machine, each with the same threads whether the study is begun or goes on.

    Args:
        jobs: runs at a time; as many as there are cores or GPUs for, when None: one a core, at most 8, and 1 on a GPU.
        device: where to train.
        cpus: cores of a run, whose whole part is the number of its threads; its part of the cores when None.
        gpus: of a run, or the part of one; above 1, one process for each.
        processes: that train a run together.

    Raises:
        RunError: amounts that make no sense.
    """

    def __init__(
        self,
        jobs: int | None = None,
        device: str = "cpu",
        *,
        cpus: float | None = None,
        gpus: float | None = None,
        processes: int = 1,
    ) -> None:
        check_jobs(jobs)
        check_share(cpus, gpus, processes)
        self.processes = max(processes, int(gpus or 1))
        self.device, self.cpus = "cuda" if gpus and device == "cpu" else device, cpus
        if jobs is None and self.device == "cpu" and (cpus or self.processes > 1):
            jobs = max(1, int(available_cores() / (cpus or self.processes)))
        elif jobs is None and gpus and gpus < 1:
            jobs = int(1 / gpus)
        self.jobs = jobs or default_jobs(self.device)

    def run(
        self, missing: dict[int, Run], of: Sequence[Run], store: Store, report: Progress
    ) -> dict[int, Result]:
        """Carry out the runs; see :meth:`opnorm.runs.engines.engine.Engine.run`."""
        # of all these runs, however many are there, so that what is left after a kill gets the same bits
        share = self.share(len(of))
        planned = min(self.jobs, max(len(of), 1))
        if min(planned, len(missing)) > 1:
            return _run_in_processes(missing, store, _Plan(min(planned, len(missing)), share), report)
        return _run_one_by_one(missing, store, share, report)

    def share(self, of: int) -> Share:
        """What each of so many runs gets."""
        side_by_side = min(self.jobs, max(of, 1)) * self.processes
        threads = torch.get_num_threads() if side_by_side == 1 else max(1, available_cores() // side_by_side)
        if self.cpus:
            threads = max(1, int(self.cpus / self.processes))
        return Share(self.device, self.processes, threads)


def _run_one_by_one(
    missing: dict[int, Run], store: Store, share: Share, report: Progress
) -> dict[int, Result]:
    """The missing runs; those that another process is at come last."""
    results: dict[int, Result] = {}
    announce(missing, report)
    while len(results) < len(missing):
        for i in [i for i in missing if i not in results]:
            if (result := run_one(i, missing[i], store, share, report)) is not None:
                results[i] = result
                report(StudyProgress(i, missing[i], 1.0, "done", result))
        if len(results) < len(missing):
            time.sleep(PAUSE)
    return results


class _Plan(NamedTuple):
    """How many runs at a time, and what each gets."""

    jobs: int
    share: Share


def _run_in_processes(
    missing: dict[int, Run], store: Store, plan: _Plan, report: Progress
) -> dict[int, Result]:
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has threads
    events = context.Queue()
    # workers exit when `parent_end` is closed, by this process or by its death
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(plan.jobs, context, _start_worker, (worker_end, events, plan.share.threads))
    results: dict[int, Result] = {}

    def submit(index: int) -> "Future[Result | None]":
        with workers_without_sigint():
            return pool.submit(_run_in_worker, index, missing[index].as_dict(), store, plan.share)

    try:
        futures = {i: submit(i) for i in missing}
        announce(missing, report)  # while the processes start
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


_worker: dict[str, Any] = {}


def _start_worker(worker_end: Connection, events: Any, threads: int) -> None:
    start_with_parent(worker_end)
    torch.set_num_threads(threads)
    _worker.update(events=events, last=0.0)


def _run_in_worker(index: int, run: dict[str, Any], store: Store, share: Share) -> Result | None:
    def report(event: StudyProgress) -> None:
        now = time.monotonic()
        if now - _worker["last"] > 0.2:
            _worker["last"] = now
            _worker["events"].put(event)

    result = run_one(index, Run.from_dict(run), store, share, report)
    if result is None:
        time.sleep(PAUSE)
    return result
