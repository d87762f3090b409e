"""The process that talks to a Ray cluster: it checks the nodes, hands out the runs, and tells its parent what it hears."""

import os
import sys
import threading
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from opnorm._core import files
from opnorm._core.cores import available_cores
from opnorm._core.processes import start_with_parent
from opnorm.errors import OpnormError, RunError
from opnorm.runs.engines.engine import PAUSE
from opnorm.runs.engines.ray_nodes import check_nodes
from opnorm.runs.engines.ray_task import Outcome, Storage, run_task
from opnorm.runs.engines.share import Share

__all__ = ["Cluster", "drive"]

RETRIES = 10  # times that a run is begun again after its process or its node has died
STORE = 100_000_000  # bytes of a local cluster's object store: nothing large is put there
ANSWER = 60.0  # seconds until the head has answered


class Cluster(NamedTuple):
    """A cluster, and what each run gets of it.

    Attributes:
        address: as Ray has it; empty for that of the job, or one on this machine.
        jobs: runs at a time; None for as many as there is room for.
        cpus: cores of a run.
        gpus: GPUs of a run.
        share: its device, processes and threads.
    """

    address: str
    jobs: int | None
    cpus: float
    gpus: float
    share: Share


class _HeadGoneError(Exception):
    """The head of the cluster answers no longer."""


def drive(
    to: Connection, parent: Connection, cluster: Cluster, storage: Storage, runs: dict[int, dict[str, Any]]
) -> None:
    """Carry out runs on a cluster; the messages go to the parent, all that Ray prints into ``.logs/ray.log``."""
    parent.close()
    start_with_parent(to)
    lock = threading.Lock()

    def say(*message: Any) -> None:
        with lock:
            to.send(message)

    try:
        log = Path(storage.root) / ".logs" / "ray.log"
        files.make_folder(log.parent)
        with log.open("a") as f:
            for stream in (1, 2):
                os.dup2(f.fileno(), stream)
        _drive(say, cluster, storage, runs)
    except _HeadGoneError:
        say("gone")
    except OpnormError as e:
        say("error", str(e))
    except Exception as e:  # noqa: BLE001 - whatever Ray raises
        say("error", f"Ray: {' '.join(str(e).split())[:500] or type(e).__name__}")
    sys.stdout.flush()


def _drive(say: Any, cluster: Cluster, storage: Storage, runs: dict[int, dict[str, Any]]) -> None:
    import ray

    say("connecting")
    say("reached", _connect(ray, cluster.address))
    try:
        for note in check_nodes(ray, cluster.cpus, cluster.gpus, storage):
            say("note", note)
        _hand_out(ray, say, cluster, storage, runs)
        say("end")
    finally:
        ray.shutdown()


def _connect(ray: Any, address: str) -> str:
    """Connect to a cluster, or start one; gives what answers as long as its head lives."""
    address = address or os.environ.get("RAY_ADDRESS", "local")
    options: dict[str, Any] = {"namespace": "opnorm"}
    if not address.startswith("ray://"):
        options |= {"log_to_driver": False, "configure_logging": False}
    if address == "local":
        options |= {
            "num_cpus": available_cores(),
            "object_store_memory": STORE,
            "include_dashboard": False,
        }
    try:
        ray.init(address=address, **options)
    except Exception as e:  # Ray raises ConnectionError, ValueError, RuntimeError, and its own
        raise RunError(
            f"the cluster {address} cannot be reached: {' '.join(str(e).split())[:300]}; is its head running, with the same "
            "versions of Ray and Python?"
        ) from e
    if address.startswith("ray://"):
        return address.removeprefix("ray://")
    return str(ray.get_runtime_context().gcs_address)


def _hand_out(
    ray: Any, say: Any, cluster: Cluster, storage: Storage, runs: dict[int, dict[str, Any]]
) -> None:
    """Every run once, and again where another process is at it; ends when all have ended."""
    board = _board(ray)
    task = ray.remote(run_task).options(
        num_cpus=cluster.cpus, num_gpus=cluster.gpus, max_retries=RETRIES, retry_exceptions=False
    )
    waiting, later = deque(runs), deque[tuple[float, int]]()
    at_work: dict[Any, int] = {}
    while waiting or later or at_work:
        while later and later[0][0] < time.monotonic():
            waiting.append(later.popleft()[1])
        while waiting and len(at_work) < (cluster.jobs or sys.maxsize):
            i = waiting.popleft()
            at_work[task.remote(i, runs[i], storage, cluster.share, board)] = i
        ended, _ = ray.wait(list(at_work), num_returns=len(at_work), timeout=0.3) if at_work else ([], [])
        for ref in ended:
            i = at_work.pop(ref)
            outcome = _outcome(ray, ref)
            if outcome.state == "busy":
                later.append((time.monotonic() + PAUSE, i))
            else:
                say("run", i, outcome)
        if not ended:
            time.sleep(0 if at_work else 0.1)
        try:
            news = ray.get(board.take.remote(), timeout=ANSWER)
        except ray.exceptions.RayError as e:  # the board is on the head
            raise _HeadGoneError from e
        for i, event in news.items():
            say("run", i, event)


def _outcome(ray: Any, ref: Any) -> Outcome:
    try:
        return Outcome(*ray.get(ref))
    except ray.exceptions.RayTaskError as e:  # not of the run, whose errors are outcomes
        return Outcome("error", " ".join(str(e.cause or e).split())[-500:])
    except (ray.exceptions.RayError, ray.exceptions.RaySystemError) as e:
        why = " ".join(str(e).split())[:200]
        return Outcome(
            "failed",
            f"its process or its node has died {RETRIES + 1} times: out of memory, or killed? Ray says: {why}",
        )


def _board(ray: Any) -> Any:
    """An actor on the head that keeps the last that was heard of every run; it ends with this process."""

    class Board:
        def __init__(self) -> None:
            self.news: dict[int, tuple[float, str]] = {}

        def note(self, index: int, share: float, text: str) -> None:
            self.news[index] = (share, text)

        def take(self) -> dict[int, tuple[float, str]]:
            news, self.news = self.news, {}
            return news

    return ray.remote(Board).options(num_cpus=0, resources={"node:__internal_head__": 0.001}).remote()
