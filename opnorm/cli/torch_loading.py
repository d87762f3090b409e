"""Loading torch, which the commands do once their arguments are checked: it takes longer than all that came before."""

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["load_torch"]


def load_torch() -> None:
    """Load torch, or end the process at Ctrl-C."""
    # torch warns in C++ that it looks for unused weights in each step; said before it is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    with _left_at_once(), _without_collections():
        import torch  # noqa: F401


@contextmanager
def _left_at_once() -> Iterator[None]:
    """Ctrl-C ends the process: while torch loads, it swallows KeyboardInterrupt and goes on, half loaded."""
    usual = (
        signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )  # not so under nohup, or in a user's program
    if "torch" in sys.modules or not usual or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _without_collections() -> Iterator[None]:
    """Import without the garbage collector, which then leaves out what is there: each look at all of torch takes 0.1 s."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _leave(signum: int, frame: Any) -> None:
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)
