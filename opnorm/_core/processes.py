"""Processes beside this one: they end with it, leave Ctrl-C to it, and give their results in order.

Nothing here imports torch, so that such a process starts fast and takes little memory.
"""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import TypeVar

__all__ = ["in_order", "process_pool", "start_with_parent", "workers_without_sigint"]

T = TypeVar("T")
R = TypeVar("R")


def in_order(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` that takes only ``ahead`` items in advance, gives the results in order and stops at the first error."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            with workers_without_sigint():  # the first call starts the processes
                waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


@contextmanager
def process_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end with the block, or when this process is killed."""
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has threads
    worker_end, parent_end = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(workers, context, start_with_parent, (worker_end,))
    try:
        yield pool
    except BaseException:
        parent_end.close()  # workers exit at once
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        parent_end.close()
        worker_end.close()


def start_with_parent(worker_end: Connection) -> None:
    """In a new process: leave Ctrl-C to the parent, and exit once the other end of the pipe is closed, as by its death."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, args=(worker_end,), daemon=True).start()


def _exit_with_parent(worker_end: Connection) -> None:
    """End this process once the other end is closed; nothing is lost by it that a kill would not lose."""
    with suppress(OSError):
        worker_end.poll(None)
    os._exit(1)


@contextmanager
def workers_without_sigint() -> Iterator[None]:
    """Ctrl-C reaches every process of the terminal; processes started in this block ignore it until this one decides."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
