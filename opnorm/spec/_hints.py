"""What may be meant by a name that is not known."""

import os
from collections.abc import Sequence

from opnorm.errors import SpecError, did_you_mean
from opnorm.spec._syntax import Call

__all__ = ["check_no_file", "hint"]


def hint(call: Call, kind: str | None, known: Sequence[str]) -> str:
    """The end of a message: a file or folder of this name, a text without its quotes, or a name that is close to it.

    Args:
        call: of the unknown name.
        kind: its family; None inside another call.
        known: the names that are known there.
    """
    alone = not call.args and not call.kwargs
    if alone and kind in ("model", "data set") and os.path.exists(call.name):
        what = "folder" if os.path.isdir(call.name) else "file"
        readers = ("folder", "parquet") if kind == "data set" else ("file",)
        calls = " or ".join(f'{reader}("{call.name}")' for reader in readers)
        return f"; there is a {what} of this name, which is read by {calls}"
    listed = f"known: {', '.join(known)}; " if kind else ""  # of all families, too many to read
    quotes = f'; text, such as a path, is in quotes: "{call.name}"' * (alone and not kind)
    return f"{did_you_mean(call.name, known)}; {listed}your own code: package.module.{call.name}(...){quotes}"


def check_no_file(name: str) -> None:
    """SpecError where a dotted name is that of a file in the working folder, such as ``mine.py`` or ``weights.pt``."""
    if not os.path.isfile(name):
        return
    stem, suffix = os.path.splitext(name)
    if suffix == ".py":
        raise SpecError(f"{name} is a file; expected a call of a function in it, such as {stem}.build()")
    reader = "parquet" if suffix == ".parquet" else "file"
    raise SpecError(
        f'{name} is a file; expected a call that reads it, such as {reader}("{name}"), with the name in quotes'
    )
