"""A Ray cluster: a run is one task, tried again elsewhere when its node dies.

Ray itself is in a process of its own. It may end a process whose cluster is gone; this one then says what happened.
"""

import multiprocessing
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from opnorm._core.processes import workers_without_sigint
from opnorm.errors import RunError
from opnorm.runs.engines.driver_lock import only_driver
from opnorm.runs.engines.engine import Progress, StudyProgress, announce
from opnorm.runs.engines.ray_address import answers, check_head
from opnorm.runs.engines.ray_driver import Cluster, drive
from opnorm.runs.engines.ray_task import Outcome, Storage
from opnorm.runs.engines.share import Share, check_jobs, check_share
from opnorm.runs.identity import hash_of
from opnorm.runs.remote_folder import RemoteFolder
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import find_result

__all__ = ["RayEngine"]

LOADED = 600.0  # seconds until torch and Ray are loaded, on a machine that is busy
REACHED = 60.0  # seconds until a cluster has answered
STARTED = 180.0  # until one has started on this machine
LOOK = 2.0  # between two looks at the head
GONE = 4  # looks in vain, after which the head is gone


class RayEngine:
    """Runs on the nodes of a Ray cluster.

    Args:
        address: ``ray://HOST:PORT``, ``HOST:PORT``, ``auto`` (one that runs on this machine); when None, the cluster of the
            job that this process is in, or one that is started on this machine.
        jobs: runs at a time; as many as the cluster has room for when None.
        device: where to train.
        cpus: cores of a run, whose whole part is the number of its threads; one for each process when None.
        gpus: of a run, or the part of one; above 1, one process for each.
        processes: that train a run together.
        storage: a URL such as ``s3://bucket/study`` that all nodes see; the folder of the results when empty.

    Raises:
        RunError: Ray is not installed, or amounts make no sense.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        jobs: int | None = None,
        device: str = "cpu",
        cpus: float | None = None,
        gpus: float | None = None,
        processes: int = 1,
        storage: str = "",
    ) -> None:
        if find_spec("ray") is None:
            raise RunError("the engine ray: Ray is not installed; pip install 'opnorm[ray]'")
        check_jobs(jobs)
        check_share(cpus, gpus, processes)
        if storage:
            RemoteFolder(storage)
        processes = max(processes, int(gpus or 1))
        device = "cuda" if gpus and device == "cpu" else device
        cores = cpus or float(processes)
        share = Share(device, processes, max(1, int(cores / processes)))
        self.cluster, self.url = Cluster(address or "", jobs, cores, gpus or 0.0, share), storage

    def run(
        self, missing: dict[int, Run], of: Sequence[Run], store: Store, report: Progress
    ) -> dict[int, Result]:
        """Carry out the runs; see :meth:`opnorm.runs.engines.engine.Engine.run`."""
        check_head(self.cluster.address)
        with only_driver(hash_of(sorted(run.key for run in of)), store, self.url):
            if store.again:
                self._remove(missing, store)
            return self._run(missing, store, report)

    def _remove(self, missing: dict[int, Run], store: Store) -> None:
        """Once, so that a run that is tried again resumes."""
        for run in missing.values():
            with store.lock(run.key):
                store.remove(run.key)
            if self.url:
                RemoteFolder(self.url).remove(run.key)

    def _run(self, missing: dict[int, Run], store: Store, report: Progress) -> dict[int, Result]:
        context = multiprocessing.get_context("spawn")
        own, other = context.Pipe()
        runs = {i: run.as_dict() for i, run in missing.items()}
        storage = Storage(str(store.root), self.url, os.getcwd(), store.track)
        log = store.root / ".logs" / "ray.log"
        driver = context.Process(target=drive, args=(other, own, self.cluster, storage, runs), daemon=False)
        with workers_without_sigint():
            driver.start()
        other.close()
        results: dict[int, Result] = {}
        try:
            announce(missing, report)
            for i, heard in _messages(own, self.cluster.address, log):
                run = missing[i]
                if isinstance(heard, Outcome):
                    results[i] = self._result(run, store, heard)
                    report(StudyProgress(i, run, 1.0, "done", results[i]))
                elif i not in results:
                    report(StudyProgress(i, run, *heard))
        finally:
            own.close()  # ends the driver
            driver.join(10)
            driver.kill()
            driver.join()
        return results

    def _result(self, run: Run, store: Store, outcome: Outcome) -> Result:
        if outcome.state == "error":
            raise RunError(
                f"{outcome.text}" + (f" (run {run.key}; its output: {outcome.log})" if outcome.log else "")
            )
        if self.url:
            with store.lock(run.key):
                RemoteFolder(self.url).download(run.key, store.root)
        if outcome.state == "failed":
            folder = store.folder(run.key)
            return Result(run, [], {}, 0.0, outcome.text, folder, found=outcome.found, log=outcome.log)
        found = find_result(run, Store(store.root))
        if found is None:
            raise RunError(
                f"run {run.key} has ended, and its results are not in {self.url or store.root}: removed?"
            )
        return replace(found, found=outcome.found)


def _messages(own: Connection, address: str, log: Path) -> Any:
    """What the driver says until it ends well: (index, outcome) or (index, (share, text))."""
    limit = time.monotonic() + LOADED
    head, looked, missed = "", 0.0, 0
    while True:
        if not own.poll(0.2):
            now = time.monotonic()
            if not head and now > limit:
                raise RunError(
                    f"the cluster {address or 'of this machine'} has not answered in time; see {log}"
                )
            if head and now - looked > LOOK:
                looked, missed = now, 0 if answers(head) else missed + 1
            if missed >= GONE:
                raise RunError(_gone(head, log))
            continue
        try:
            kind, *heard = own.recv()
        except (EOFError, OSError) as e:
            raise RunError(_gone(head or address, log)) from e
        if kind == "connecting":
            limit = time.monotonic() + (REACHED if address else STARTED)
        elif kind == "reached":
            head = heard[0]
        elif kind == "error":
            raise RunError(heard[0])
        elif kind == "gone":
            raise RunError(_gone(head, log))
        elif kind == "note":
            warnings.warn(heard[0], stacklevel=2)
        elif kind == "end":
            return
        else:
            yield heard


def _gone(head: str, log: Path) -> str:
    return (
        f"the head of the cluster {head or 'of this machine'} has gone: stopped, or out of memory? Finished epochs are kept "
        f"and the same command goes on once a cluster runs; Ray's own words are in {log}"
    )
