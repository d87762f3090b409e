"""Where runs are kept: one folder a run, named by its key, complete or clearly not.

    runs/3f2a.../            a finished run: run.json, metrics.jsonl, weights.safetensors, results.json
    runs/3f2a....partial/    one under way or stopped: the same, as far as it got, and checkpoint.safetensors
    runs/.locks/             who is at work

A folder gets its final name by one rename, at the end; a process that is killed leaves a partial one that the next
goes on with.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from opnorm._core import files
from opnorm.errors import RunError

__all__ = ["FORMAT", "Store"]

FORMAT = 1
"""The version of what is written in a run's folder."""


class Store:
    """A folder of runs.

    Args:
        root: made when first written to.
    """

    def __init__(self, root: str | Path = "runs") -> None:
        self.root = Path(root)

    def folder(self, key: str) -> Path:
        """Where a run is: under its key when finished, otherwise under its partial name."""
        done = self.root / key
        return done if done.exists() else self.root / f"{key}.partial"

    def finished(self, key: str) -> bool:
        """Whether a run has ended; RunError when its folder is of another version."""
        if not (self.root / key).exists():
            return False
        self.read(self.root / key)
        return True

    def read(self, folder: Path) -> dict[str, Any]:
        """The run.json of a folder, checked for its version."""
        about = files.read_json(folder / "run.json")
        version = about.get("format")
        if version != FORMAT:
            raise RunError(
                f"{folder} was written in format {version!r}, and this opnorm reads format {FORMAT}; "
                "use another --out folder, or move this one away"
            )
        return about

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Keep other processes from the same run; released even when this process is killed.

        Raises:
            RunError: another process has it, or nothing can be written here.
        """
        path = self.root / ".locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another process is at run {key} in {self.root}; wait until it ends, or use another --out folder"
            ) from None
        except OSError as e:
            raise RunError(
                f"cannot write in {self.root}: {e.strerror or e}; expected a folder that can be written"
            ) from e
        try:
            files.sweep(self.folder(key))
            yield
        finally:
            lock.release()

    def begin(self, key: str, about: dict[str, Any]) -> Path:
        """The partial folder of a run, made anew or found; a found one must be of this version."""
        folder = self.root / f"{key}.partial"
        if (folder / "run.json").exists():
            self.read(folder)
            return folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise RunError(f"cannot make {folder}: {e.strerror or e}") from e
        begun = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        files.write_json(folder / "run.json", {"format": FORMAT, "key": key, "begun": begun, **about})
        return folder

    def results(self, key: str) -> dict[str, dict[str, Any]]:
        """For every analysis that was made: its rows and the seconds it took."""
        path = self.folder(key) / "results.json"
        saved = files.read_json(path).get("analyses") if path.exists() else {}
        if not isinstance(saved, dict) or not all(
            isinstance(r, dict) and "rows" in r for r in saved.values()
        ):
            raise RunError(f"{path} does not hold the rows of analyses; was it edited by hand?")
        return saved

    def fail(self, key: str, why: str) -> None:
        """Remember that a run cannot end well."""
        files.write_json(self.folder(key) / "failure.json", {"failure": why})

    def failure(self, key: str) -> str:
        """Why a run cannot end well; empty when nothing is known against it."""
        path = self.folder(key) / "failure.json"
        return str(files.read_json(path).get("failure") or "not known") if path.exists() else ""

    def finish(self, key: str, seconds: float) -> None:
        """Give the partial folder its final name, and note how long the run took in all."""
        folder, done = self.folder(key), self.root / key
        about = self.read(folder)
        files.write_json(folder / "run.json", about | {"seconds": round(seconds, 3)})
        if folder != done:
            folder.rename(done)
        (done / "checkpoint.safetensors").unlink(missing_ok=True)  # not before: until then it is what we have

    def seconds(self, key: str) -> float:
        """How long a finished run took."""
        return float(self.read(self.root / key).get("seconds", 0))

    def ls(self) -> list[dict[str, Any]]:
        """The run.json of every folder, with its state ("finished", "partial" or what is wrong) and its folder."""
        found = []
        for path in sorted(self.root.glob("*/run.json")):
            folder = path.parent
            try:
                about = self.read(folder)
                failed = (folder / "failure.json").exists()
                state = "failed" if failed else "partial" if folder.name.endswith(".partial") else "finished"
            except RunError as e:
                about, state = {}, str(e)
            key = folder.name.removesuffix(".partial")
            found.append({**about, "key": key, "state": state, "folder": str(folder)})
        return sorted(found, key=lambda about: str(about.get("begun", "")))
