"""A study: a list of runs, and the report made of their results.

Runs are independent, so they are carried out side by side in a few processes of this machine, each with its share of the
cores. A run that fails is a row that says so; it does not hide the others.
"""

import hashlib
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
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from opnorm.errors import RunError, TrainError
from opnorm.report import Report, write_figures, write_json, write_page
from opnorm.runs.run import Result, Run, execute, is_done, load
from opnorm.runs.store import Store
from opnorm.training.loop import Moment

__all__ = ["News", "Study", "carry_out"]


@dataclass(frozen=True)
class Study:
    """A question asked of many runs.

    Attributes:
        name: such as ``tour``.
        call: the call that made it; with the runs' keys it names the folder of the page.
        runs: what to carry out.
        report: makes the page of the results, in the order of the runs.
    """

    name: str
    runs: Sequence[Run]
    report: Callable[[Sequence[Result]], Report]


@dataclass(frozen=True)
class News:
    """How far a run is.

    Attributes:
        index: of the run in the study.
        share: of its training, 0 to 1.
        text: what it is at, in a few words.
        result: set when it has ended.
    """

    index: int
    share: float
    text: str
    result: Result | None = None


def carry_out(
    study: Study,
    store: Store,
    *,
    jobs: int | None = None,
    device: str = "cpu",
    tell: Callable[[News], None] | None = None,
) -> list[Result]:
    """Run what has not been run yet, and return all results in the order of the study.

    Args:
        study: what to do.
        store: where runs are kept, and found again.
        jobs: processes side by side; one a core, at most 8, when None; 1 on a GPU.
        device: where to train.
        tell: given news after every few steps, in this process.

    Returns:
        One result a run; one whose training diverged has ``failure`` set.

    Raises:
        OpnormError: a run that cannot start (wrong data, wrong model, a folder in use); those under way are stopped first.
        KeyboardInterrupt: after Ctrl-C; every run keeps its finished epochs.
    """
    if jobs is not None and jobs < 1:
        raise RunError(f"jobs={jobs!r}: expected at least 1 process")
    tell = tell or (lambda news: None)
    results: dict[int, Result] = {}
    todo = []
    for i, run in enumerate(study.runs):
        if is_done(run, store):
            results[i] = load(run, store)
            tell(News(i, 1.0, "found", results[i]))
        else:
            todo.append(i)
    jobs = min(jobs or default_jobs(device), max(len(todo), 1))
    if jobs == 1:
        for i in todo:
            results[i] = _attempt(study.runs[i], store, device, partial(_say, tell, i))
            tell(News(i, 1.0, "done", results[i]))
    else:
        results |= _side_by_side(study, store, todo, jobs, device, tell)
    return [results[i] for i in range(len(study.runs))]


def default_jobs(device: str) -> int:
    """Small networks use one core each best; a GPU is one."""
    return 1 if device != "cpu" else min(_cores(), 8)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _say(tell: Callable[[News], None], index: int, share: float, text: str) -> None:
    tell(News(index, share, text))


def _attempt(run: Run, store: Store, device: str, say: Callable[[float, str], None]) -> Result:
    """Carry out one run; a diverged training is a result, anything else that is wrong is raised."""

    def watch(what: str, moment: Moment | None) -> None:
        if moment is None:
            say(1.0, what.partition("(")[0])
        else:
            share = (moment.epoch - 1 + moment.step / moment.steps) / max(moment.epochs, 1)
            say(share, f"epoch {moment.epoch}/{moment.epochs}, loss {moment.loss:.3f}, {moment.accuracy:.1%}")

    try:
        return execute(run, store, device=device, watch=watch)
    except TrainError as e:
        return Result(run, [], {}, 0.0, str(e), store.folder(run.key))


# ---------------------------------------------------------------- several processes


def _side_by_side(
    study: Study, store: Store, todo: list[int], jobs: int, device: str, tell: Callable[[News], None]
) -> dict[int, Result]:
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has threads
    news = context.Queue()
    watched, held = context.Pipe(duplex=False)  # workers leave when `held` is closed, by us or by our death
    threads = max(1, _cores() // jobs)
    pool = ProcessPoolExecutor(jobs, context, _prepare, (watched, news, threads))
    results: dict[int, Result] = {}
    try:
        with _workers_without_sigint():
            futures = {
                pool.submit(_work, i, study.runs[i].as_dict(), str(store.root), device): i for i in todo
            }
        waiting = set(futures)
        while waiting:
            waiting -= _collect(futures, waiting, results, tell)
            with suppress(queue.Empty):
                tell(news.get(timeout=0.2))
    except BaseException:
        held.close()  # workers leave at once; the epochs they have finished are on the disk
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        held.close()
        watched.close()
    return results


@contextmanager
def _workers_without_sigint() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; those started here never see it, and this one decides for them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _collect(
    futures: dict[Future, int], waiting: set[Future], results: dict[int, Result], tell: Callable[[News], None]
) -> set[Future]:
    ended = {f for f in waiting if f.done()}
    for future in ended:
        i = futures[future]
        try:
            results[i] = future.result()
        except BrokenExecutor as e:
            raise RunError(
                "a process that trained has ended unexpectedly: out of memory, or killed? "
                "Finished epochs are kept, and the same command goes on; --jobs 1 needs the least memory"
            ) from e
        tell(News(i, 1.0, "done", results[i]))
    return ended


_worker: dict[str, Any] = {}


def _prepare(watched: Connection, news: Any, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(watched,), daemon=True).start()
    torch.set_num_threads(threads)
    _worker.update(news=news, last=0.0)


def _leave_with_parent(watched: Connection) -> None:
    """End this process once the other end is closed; nothing is lost by it that a kill would not lose."""
    with suppress(OSError):
        watched.poll(None)
    os._exit(1)


def _work(index: int, run: dict[str, Any], root: str, device: str) -> Result:
    def say(share: float, text: str) -> None:
        now = time.monotonic()
        if now - _worker["last"] > 0.2:
            _worker["last"] = now
            _worker["news"].put(News(index, share, text))

    return _attempt(Run.from_dict(run), Store(Path(root)), device, say)


def write(study: Study, results: Sequence[Result], store: Store, figures: str | None = None) -> Path:
    """Write the page and its numbers in a folder of the store named after the study and its runs.

    Args:
        study: what was carried out.
        results: of its runs, in order.
        store: where the folder goes: ``<root>/<name>-<hash>/report.html`` with ``report.json`` beside it.
        figures: also write each figure as "svg", "pdf" or "png".

    Returns:
        The path of the page.

    Raises:
        OpnormError: it cannot be written.
    """
    keys = hashlib.sha256(" ".join(run.key for run in study.runs).encode()).hexdigest()[:8]
    folder = store.root / f"{study.name}-{keys}"
    report = study.report(results)
    page = write_page(report, folder / "report.html")
    write_json(report, folder / "report.json")
    if figures:
        write_figures(report, folder / "figures", figures)
    return page
