"""All commands, in the order of ``opnorm --help``."""

import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import tyro

from opnorm.cli.analyze import analyze, compare
from opnorm.cli.attack import attack
from opnorm.cli.doctor import doctor
from opnorm.cli.exports import export, push
from opnorm.cli.help import readable
from opnorm.cli.listing import ls, rm
from opnorm.cli.measure import norms, separation
from opnorm.cli.runs import train
from opnorm.cli.show import show
from opnorm.cli.study import study

__all__ = ["app"]


def _with_torch(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command, with torch loaded before it begins."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        # torch warns in C++ that it looks for unused weights in each step; said before it is loaded
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        with _left_at_once():
            import torch  # noqa: F401
        return command(*args, **kwargs)

    return run


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


def _leave(signum: int, frame: Any) -> None:
    print("stopped", file=sys.stderr, flush=True)
    os._exit(130)


COMMANDS: tuple[Callable[..., Any], ...] = (
    norms, train, attack, analyze, compare, study, separation, ls, show, export, push, rm, doctor,
)  # fmt: skip
WITHOUT_TORCH = (ls, rm, show)

app = tyro.extras.SubcommandApp()
for command in COMMANDS:
    readable(command)
    app.command(name=command.__name__)(command if command in WITHOUT_TORCH else _with_torch(command))
