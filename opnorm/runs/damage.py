"""Whether the folder of a run is whole: one message for every command, with the command that mends it."""

import os
import shlex
from pathlib import Path
from typing import Any

from opnorm._core.files import shown
from opnorm.errors import RunError
from opnorm.runs.store import Store

__all__ = ["check_whole", "train_command"]


def check_whole(folder: Path) -> dict[str, Any]:
    """The run.json of a run, once all of its files were read and compared with their checksums.

    Args:
        folder: of the run; of one that has not ended, what it has.

    Raises:
        RunError: a file is damaged or missing; or the folder is of another format.
    """
    store = Store(folder.parent)
    about = store.read(folder)
    run = about.get("run", {})
    if not isinstance(run, dict):
        raise RunError(
            f"{shown(folder)} is damaged: its run.json has no settings of a run; opnorm rm {folder.name} --out "
            f"{shown(folder.parent)} removes the folder"
        )
    if not run:  # an attack, or analyses
        return about
    again = train_command(run, folder.parent)
    damage = store.unreadable_weights(folder) if _trained(folder) else ""
    if not damage:
        damage = _reason(lambda: store.metrics(folder))
        again += " --again" * bool(damage)
    if damage:
        raise RunError(f"{shown(folder)} is damaged: {damage}; this trains it again: {again}")
    if damage := _reason(lambda: store.results(folder.name.removesuffix(".partial"))):
        raise RunError(f"{shown(folder)} is damaged: {damage}; this makes its analyses again: {again}")
    return about


def _trained(folder: Path) -> bool:
    """Whether there are, or should be, weights."""
    return not folder.name.endswith(".partial") or (folder / "weights.safetensors").exists()


def _reason(read: Any) -> str:
    try:
        read()
    except RunError as e:
        return str(e)
    return ""


def train_command(run: dict[str, Any], out: Path) -> str:
    """The command that trains a run."""
    words = ["opnorm", "train"]
    for name, value in run.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words += [option] * value
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)] * bool(value)
        elif value is not None:
            words += [option, str(value)]
    words += [] if out == Path(os.path.abspath("runs")) else ["--out", str(shown(out))]
    return shlex.join(words)
