"""Whose code a run folder runs: the calls of own modules in it are carried out only if this user gave them on this machine.

Without this, `opnorm analyze FOLDER` would run whatever the run.json of a folder from elsewhere names, or a module of the
same name as the user's that lies beside it.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from opnorm import spec
from opnorm._core.caching import cache_folder
from opnorm.errors import RunError
from opnorm.runs.identity import users_file

__all__ = ["check_trusted", "trust"]


def trust(run: dict[str, Any]) -> None:
    """Remember the calls of own modules in the settings of a run, which the user has given."""
    for call in _own_calls(run):
        with suppress(OSError):  # then it is asked for another time
            _record(call).parent.mkdir(parents=True, exist_ok=True)
            _record(call).touch()


def check_trusted(run: dict[str, Any], folder: Path) -> None:
    """RunError where the settings in a folder call own modules in a way that this user never has."""
    unknown = [call for call in _own_calls(run) if not _record(call).exists()]
    if unknown:
        raise RunError(
            f"{folder} would run code: {', '.join(map(str, unknown))}; it was not begun by you on this machine, or that "
            "code is in another file than then. Read its run.json and that code, and add --trust to run it"
        )


def _record(call: spec.Call) -> Path:
    """Where a call is remembered, together with the file that it would run: another file of this name is other code."""
    code = users_file(call.name.rpartition(".")[0]) or "installed"
    text = f"{call}\0{code}".encode("utf-8", "surrogateescape")
    return cache_folder() / "trusted" / hashlib.sha256(text).hexdigest()


def _own_calls(run: dict[str, Any]) -> list[spec.Call]:
    values = [v for value in run.values() for v in (value if isinstance(value, list | tuple) else (value,))]
    calls = [part for text in values if isinstance(text, str) and "." in text for part in _parts(text)]
    return sorted({call for call in calls if "." in call.name}, key=str)


def _parts(text: str) -> list[spec.Call]:
    return list(spec.calls_in(spec.parse(text)))
