"""The one progress bar, on standard error, so that standard output holds results only."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["progress_bar", "stderr", "stdout"]


class _Console(Console):
    """One that does not hide that nobody reads it."""

    def on_broken_pipe(self) -> None:
        raise  # the error that rich handles when it calls this


def stdout() -> Console:
    """The console of results."""
    return _Console(highlight=False)


def stderr() -> Console:
    """The console of messages and bars."""
    return _Console(stderr=True, highlight=False, soft_wrap=True)


def progress_bar(console: Console | None = None) -> Progress:
    """A bar for a ``with`` block: description, share, time taken, time left, and the field ``note`` of each task.

    Nothing is drawn where the console is no terminal.
    """
    console = console or stderr()
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
