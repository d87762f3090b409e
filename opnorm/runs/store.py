"""Results on the disk: one folder each, named by a key, complete or clearly not.

    runs/3f2a.../            a finished run: run.json, metrics.jsonl, weights.safetensors, results.json
    runs/3f2a....partial/    one under way or stopped: the same, as far as it got, and checkpoint.safetensors
    runs/.locks/             one lock per key

A folder gets its final name by one rename, at the end; a process that is killed leaves a partial folder, from which the
next one resumes.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from opnorm import spec
from opnorm._core import files
from opnorm.errors import RunError
from opnorm.runs.identity import hash_of, identity, same_outputs

__all__ = ["FORMAT", "Entry", "Saved", "Store"]

FORMAT = 3
"""The version of what is written in a folder; raised when older folders can no longer be read."""


class Saved(NamedTuple):
    """The rows of an analysis, the seconds that it took, when it was made, and whether it was found in the folder."""

    rows: list[dict[str, Any]]
    seconds: float
    made: str
    found: bool


class Store:
    """A folder of results.

    Args:
        root: made when first written to.
        again: nothing that it holds is found; it is made anew.
    """

    def __init__(self, root: str | Path = "runs", *, again: bool = False) -> None:
        self.root, self.again = Path(root), again

    @contextmanager
    def open(
        self, key: str, *, outputs: list[list[float]] | None = None, keep: bool = False
    ) -> Iterator["Entry"]:
        """Lock the folder of a key, find what it holds, and write what is missing.

            with store.open(key) as entry:
                if not entry.finished:
                    entry.begin({"run": ...})                       # made, or found where a stopped process left it
                for call in calls:
                    rows = entry.get_or_compute(call, compute).rows  # found, or computed and written at once
                entry.finish()

        The lock keeps other processes out and is released even when this process is killed. Whatever interrupts the
        block, all that was written is found by the next call.

        Args:
            key: names the folder.
            outputs: of the network on fixed inputs; what the folder holds is removed if it was made with others.
            keep: what it holds stays when the store makes things anew, for :meth:`Entry.get_or_compute` to replace.

        Raises:
            RunError: another process holds the lock, nothing can be written here, or the folder is of another format.
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
            folder = self.folder(key)
            files.remove_partial_files(folder)
            kept = (folder / "run.json").exists()
            if (self.again and not keep) or (
                kept and not same_outputs(self.read(folder).get("outputs"), outputs)
            ):
                shutil.rmtree(folder, ignore_errors=True)
            yield Entry(self, key, outputs)
        finally:
            lock.release()

    def folder(self, key: str) -> Path:
        """Where a run is: under its key when finished, otherwise under its partial name."""
        done = self.root / key
        return done if done.exists() else self.root / f"{key}.partial"

    def finished(self, key: str) -> bool:
        """Whether a run has ended; RunError when its folder is of another format."""
        if not (self.root / key).exists():
            return False
        self.read(self.root / key)
        return True

    def read(self, folder: Path) -> dict[str, Any]:
        """The run.json of a folder; RunError when it is of another format."""
        about = files.read_json(folder / "run.json")
        version = about.get("format")
        if version != FORMAT:
            age = "an older" if isinstance(version, int) and version < FORMAT else "another"
            raise RunError(
                f"{folder} was written in format {version!r} by {age} version of opnorm, and this one reads format "
                f"{FORMAT}; use another --out folder, or delete this one and run the command again"
            )
        return about

    def results(self, key: str) -> dict[str, dict[str, Any]]:
        """For every analysis that was made: its rows and the seconds it took."""
        path = self.folder(key) / "results.json"
        saved = files.read_json(path).get("analyses") if path.exists() else {}
        if not isinstance(saved, dict) or not all(
            isinstance(r, dict) and "rows" in r for r in saved.values()
        ):
            raise RunError(f"{path} does not hold the rows of analyses; was it edited by hand?")
        return saved

    def failure(self, key: str) -> str:
        """Why a run cannot end well; empty when no reason is known."""
        path = self.folder(key) / "failure.json"
        return str(files.read_json(path).get("failure") or "not known") if path.exists() else ""

    def about(self, key: str) -> dict[str, Any]:
        """The run.json of a key."""
        return self.read(self.folder(key))

    def has(self, key: str, call: str) -> bool:
        """Whether the rows of an analysis are there, made by the same code with the same settings."""
        return self.results(key).get(call, {}).get("version") == _version(call)

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
            about.pop("outputs", None)  # long, and of no use to a reader
            found.append({**about, "key": key, "state": state, "folder": str(folder)})
        return sorted(found, key=lambda about: str(about.get("begun", "")))


class Entry:
    """The locked folder of one key, from :meth:`Store.open`.

    Attributes:
        finished: whether it was finished before.
        failure: why it cannot end well, as :meth:`fail` has written it; empty when no reason is known.
    """

    def __init__(self, store: Store, key: str, outputs: list[list[float]] | None = None) -> None:
        self.store, self.key, self.outputs = store, key, outputs
        self.finished, self.failure = store.finished(key), store.failure(key)
        self.results = store.results(key)

    @property
    def folder(self) -> Path:
        """Where it is: partial until it is finished."""
        return self.store.folder(self.key)

    def begin(self, about: dict[str, Any]) -> None:
        """Make the partial folder with ``about`` in its run.json; one of this format that exists is kept as it is."""
        folder = self.store.root / f"{self.key}.partial"
        if (folder / "run.json").exists():
            self.store.read(folder)
            return
        begun = {"format": FORMAT, "key": self.key, "begun": _now(), "outputs": self.outputs}
        files.write_json(folder / "run.json", begun | about)

    def get_or_compute(self, call: str, compute: Callable[[], list[dict[str, Any]]]) -> Saved:
        """The rows of an analysis: found, or computed by ``compute()`` and written at once."""
        found = not self.store.again and self.store.has(self.key, call)
        if not found:
            started = time.perf_counter()
            rows = compute()
            seconds = round(time.perf_counter() - started, 3)
            about = {"rows": rows, "seconds": seconds, "made": _now(), "version": _version(call)}
            self.results[call] = about
            files.write_json(self.folder / "results.json", {"format": FORMAT, "analyses": self.results})
        saved = self.results[call]
        return Saved(saved["rows"], saved["seconds"], saved["made"], found)

    def fail(self, reason: str) -> None:
        """Write down why the run cannot end well."""
        files.write_json(self.folder / "failure.json", {"failure": reason})

    def note(self, **about: Any) -> None:
        """Add to the run.json."""
        files.write_json(self.folder / "run.json", self.store.read(self.folder) | about)

    def finish(self, seconds: float = 0.0) -> None:
        """Give the folder its final name; its time is ``seconds`` and that of all analyses."""
        folder, done = self.folder, self.store.root / self.key
        seconds += sum(r["seconds"] for r in self.results.values())
        self.note(ended=self.store.read(folder).get("ended", _now()), seconds=round(seconds, 3))
        if folder != done:
            folder.rename(done)
        for checkpoint in done.glob("checkpoint*.safetensors"):  # not before: until then it is what we have
            checkpoint.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _version(call: str) -> str:
    """A hash of what the rows of an analysis depend on besides network and data."""
    return hash_of(identity(spec.full(call, "analysis")))
