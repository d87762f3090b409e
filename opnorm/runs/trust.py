"""Whose code a run folder runs: the calls of own modules in it are carried out only if this user gave them on this machine.

Without this, `opnorm analyze FOLDER` would run whatever the run.json of a folder from elsewhere names.
"""

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

from opnorm import spec
from opnorm.data.cache import cache_folder
from opnorm.errors import RunError

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
            f"{folder} would run code: {', '.join(unknown)}; it was not begun by you on this machine. Read its run.json and "
            "that code, and add --trust to run it"
        )


def _record(call: str) -> Path:
    return cache_folder() / "trusted" / hashlib.sha256(call.encode("utf-8", "surrogateescape")).hexdigest()


def _own_calls(run: dict[str, Any]) -> list[str]:
    values = [v for value in run.values() for v in (value if isinstance(value, list | tuple) else (value,))]
    calls = [part for text in values if isinstance(text, str) and "." in text for part in _parts(text)]
    return sorted({str(call) for call in calls if "." in call.name})


def _parts(text: str) -> list[spec.Call]:
    return list(spec.calls_in(spec.parse(text)))
