"""What is wrong with the values of a command's arguments, said before torch is loaded."""

from collections.abc import Iterable
from pathlib import Path

from opnorm import spec
from opnorm._core.data_paths import FOLDER, PARQUET, existing_path
from opnorm._core.files import shown
from opnorm._core.settings import check_count
from opnorm._core.weight_paths import ADAPTER, check_there, in_folder
from opnorm.errors import DataError, RunError

__all__ = ["check_call", "check_calls", "check_folder", "check_limit", "check_weights"]

READERS = {"parquet": PARQUET, "folder": FOLDER}
"""Data sets that read a path, and what they expect there."""


def check_call(text: str | spec.Call, kind: str) -> None:
    """OpnormError where a call has a wrong name, parameter or type, or names a file that is not there.

    Args:
        text: the call.
        kind: its family, a key of ``spec.FAMILIES``.
    """
    for call in spec.calls_in(spec.check(text, kind)):
        path = dict(call.kwargs).get("path", next(iter(call.args), None))
        if not isinstance(path, str):
            continue
        if call.name in READERS:
            existing_path(path, READERS[call.name])
        elif call.name == "file":
            check_weights(Path(path))


def check_calls(texts: Iterable[str | spec.Call], kind: str) -> None:
    """:func:`check_call` of each."""
    for text in texts:
        check_call(text, kind)


def check_weights(path: Path) -> None:
    """ModelError where a path is neither a file nor a folder with weights or with an adapter."""
    if not path.is_dir():
        check_there(path)
    elif not (path / ADAPTER).exists():
        in_folder(path)


def check_folder(folder: Path) -> None:
    """RunError where a folder cannot be made because something else is in its place, or above it."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    if there.exists() and not there.is_dir():
        raise RunError(
            f"cannot write in {shown(folder)}: Not a directory; expected a folder that can be written"
        )


def check_limit(limit: int | None) -> None:
    """DataError for a number of points below 1."""
    check_count("limit", limit, unit="points", optional=True, error=DataError)
