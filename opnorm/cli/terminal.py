"""What the command writes to: terminals and files that lack some characters, and readers that end before it does."""

import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import Any

from opnorm._core.plain_text import PLAIN, printable
from opnorm.errors import OpnormError

__all__ = [
    "ends_with_its_readers",
    "flush",
    "help_without_colors",
    "warnings_without_code",
    "write_what_the_terminal_shows",
]

COERCED = ("", "C.UTF-8", "C.utf8", "UTF-8")
"""What Python sets LC_CTYPE to in the C locale, and writes UTF-8 although the terminal may not show it."""


def write_what_the_terminal_shows() -> None:
    """Write ``l1``, ``<=``, ``eps`` for the characters that the encoding of the output lacks; ASCII in the C locale."""
    for stream, own in ((sys.stdout, sys.__stdout__), (sys.stderr, sys.__stderr__)):
        if isinstance(stream, TextIOWrapper):
            ascii_only = stream is own and _is_c_locale()
            stream.reconfigure(encoding="ascii" if ascii_only else None, errors=PLAIN)


def _is_c_locale() -> bool:
    env = os.environ
    if env.get("PYTHONIOENCODING") or env.get("PYTHONUTF8"):  # the user says what to write
        return False
    kind = env.get("LC_CTYPE", "")
    return (env.get("LC_ALL") or (env.get("LANG") if kind in COERCED else kind)) in ("C", "POSIX")


@contextmanager
def warnings_without_code() -> Iterator[None]:
    """A warning in the block is printed as its sentence, without the line of the program that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = _sentence
    try:
        yield
    finally:
        warnings.formatwarning = before


def _sentence(message: Warning | str, *place: Any, **more: Any) -> str:
    return "".join(
        f"{'' if i else 'warning: '}{printable(line)}\n" for i, line in enumerate(str(message).splitlines())
    )


@contextmanager
def help_without_colors() -> Iterator[None]:
    """Where ``NO_COLOR`` is set, tyro's help in the block is as on a terminal without colors; rich reads it itself."""
    before = os.environ.get("TERM")
    if os.environ.get("NO_COLOR"):
        os.environ["TERM"] = "dumb"
    try:
        yield
    finally:
        if before is not None:
            os.environ["TERM"] = before
        else:
            os.environ.pop("TERM", None)


@contextmanager
def flush() -> Iterator[None]:
    """Write all output before the block is left; OpnormError where that fails, as on a full disk."""
    try:
        yield
    finally:
        try:
            sys.stdout.flush()
        except OSError as e:
            if sys.__stdout__ is sys.stdout:  # Python would try again at its end, and say so
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise OpnormError(f"the output cannot be written: {e.strerror or e}") from e


@contextmanager
def ends_with_its_readers() -> Iterator[None]:
    """End this process with status 141 where it writes to a pipe that nobody reads, in whatever thread or library.

    Python ignores SIGPIPE, and some libraries hide the error that is raised instead. The signal's own default would also end
    processes whose connection to another machine, or to a worker, has ended.
    """
    ignored = hasattr(signal, "SIGPIPE") and signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGPIPE, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)


def _leave(signum: int, frame: Any) -> None:
    """Leave at once, as the signal would, if it is the output that nobody reads; files are safe, as after any kill."""
    poll = select.poll()
    for fd in (1, 2):
        poll.register(fd, 0)  # errors are reported without being asked for
    if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
        os._exit(141)
