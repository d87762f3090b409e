"""Results on the disk: one folder each, named by a key, complete or clearly not.

    runs/3f2a.../            a finished run: run.json, metrics.jsonl, weights.safetensors, results.json
    runs/3f2a....partial/    one under way or stopped: the same, as far as it got, and checkpoint.safetensors
    runs/.locks/             one lock per key

A folder gets its final name by one rename, at the end; a process that is killed leaves a partial folder, from which the
next one resumes.
"""

import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from opnorm import spec
from opnorm._core import files
from opnorm._core.kept_parts import Place, kept_in
from opnorm.errors import BusyError, OpnormError, RunError
from opnorm.runs.identity import hash_of, identity, same_outputs

__all__ = ["FORMAT", "Entry", "Saved", "Store"]

KEY = re.compile(r"[0-9a-f]{12}(\.partial)?")

FORMAT = 4
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
        subject: added to the run.json of what is begun, such as the run whose network is attacked.
        track: trackers that also get the metrics of trainings, see :mod:`opnorm.runs.tracking`.

    Attributes:
        root: absolute, so that a change of the working folder misplaces nothing.
    """

    def __init__(
        self,
        root: str | Path = "runs",
        *,
        again: bool = False,
        subject: dict[str, Any] | None = None,
        track: tuple[str, ...] = (),
    ) -> None:
        if not isinstance(root, str | Path):
            raise RunError(f"root={root!r:.60}: expected a folder, such as 'runs'")
        self.root, self.again, self.subject = Path(os.path.abspath(root)), again, subject or {}
        self.track = tuple(dict.fromkeys(track))

    @contextmanager
    def lock(self, key: str) -> Iterator[None]:
        """Keep other processes from a key; released even when this process is killed.

        Raises:
            BusyError: another process has it.
            RunError: nothing can be written here.
        """
        from filelock import FileLock, Timeout  # a tenth of what opnorm ls takes

        path = self.root / ".locks" / f"{key}.lock"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path)
            lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"another process is at run {key} in {files.shown(self.root)}; wait until it ends, or use another --out "
                "folder"
            ) from None
        except OSError as e:
            raise RunError(
                f"cannot write in {files.shown(self.root)}: {e.strerror or e}; expected a folder that can be written"
            ) from e
        try:
            yield
        finally:
            lock.release()

    def remove(self, key: str) -> None:
        """Remove the folder of a key, finished or not; the caller holds its lock."""
        for folder in (self.root / key, self.root / f"{key}.partial"):
            files.remove_folder(folder, self.root / ".locks" / f"{key}.removed")

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
            BusyError: another process holds the lock.
            RunError: nothing can be written here, or the folder is damaged or of another format.
        """
        with self.lock(key):
            folder = self.folder(key)
            files.remove_partial_files(folder)
            kept = (folder / "run.json").exists()
            if (self.again and not keep) or (
                kept and not same_outputs(self.read(folder).get("outputs"), outputs)
            ):
                self.remove(key)
            yield Entry(self, key, outputs)

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
        """The run.json of a folder; RunError when it is damaged, or of another format."""
        path = folder / "run.json"
        try:
            version = files.read_json(path).get("format")
            if version == FORMAT:
                return files.read_json(path, checked=True)
        except RunError as e:
            raise RunError(
                f"{files.shown(folder)} is damaged: {e}; opnorm rm {folder.name} --out {files.shown(folder.parent)} removes "
                "the folder, and the command that began it makes it anew"
            ) from e
        age = "an older" if isinstance(version, int) and version < FORMAT else "another"
        raise RunError(
            f"{files.shown(folder)} was written in format {version!r} by {age} version of opnorm, and this one reads format "
            f"{FORMAT}; use another --out folder, or delete this one and run the command again"
        )

    def results(self, key: str) -> dict[str, dict[str, Any]]:
        """For every analysis that was made: its rows and the seconds it took; RunError where they are damaged."""
        path = self.folder(key) / "results.json"
        return files.read_json(path, checked=True)["analyses"] if path.exists() else {}

    def metrics(self, folder: Path) -> list[dict[str, Any]]:
        """The metrics of every epoch of a run; RunError where they have changed since its training ended."""
        path, checksum = folder / "metrics.jsonl", self.read(folder).get("metrics")
        rows = files.read_lines(path)
        if checksum is not None and checksum != files.lines_checksum(rows):
            raise RunError(f"{path} has changed since the training ended: damaged, or edited by hand?")
        return rows

    def unreadable_weights(self, folder: Path) -> str:
        """Why the weights of a finished training cannot be read; empty when they can."""
        try:
            files.check_tensors(folder / "weights.safetensors")
        except RunError as e:
            return str(e)
        return ""

    def failure(self, key: str) -> str:
        """Why a run cannot end well; empty when no reason is known."""
        path = self.folder(key) / "failure.json"
        try:
            return str(files.read_json(path, checked=True)["failure"]) if path.exists() else ""
        except RunError as e:
            return str(e)

    def about(self, key: str) -> dict[str, Any]:
        """The run.json of a key."""
        return self.read(self.folder(key))

    def has(self, key: str, call: str) -> bool:
        """Whether the rows of an analysis are there, undamaged, made by the same code with the same settings."""
        try:
            return self.results(key).get(call, {}).get("version") == _version(call)
        except RunError:
            return False

    def folders(self) -> list[Path]:
        """The folders that are named by a key, or have a run.json."""
        found = [f for f in self.root.glob("[!.]*") if KEY.fullmatch(f.name) or (f / "run.json").exists()]
        return sorted(f for f in found if f.is_dir())

    def ls(self) -> list[dict[str, Any]]:
        """The run.json of every folder, with its folder and its state.

        That is "finished", "partial", "failed", "no weights" (of a finished training), or what is wrong.
        """
        found = []
        for folder in self.folders():
            try:
                about = self.read(folder)
                failed = (folder / "failure.json").exists()
                state = "failed" if failed else "partial" if folder.name.endswith(".partial") else "finished"
                if state == "finished" and "run" in about and not (folder / "weights.safetensors").exists():
                    state = "no weights"
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
        try:
            self.results = store.results(key)
        except RunError as e:
            warnings.warn(f"{e}; the analyses are made again", stacklevel=4)
            self.results = {}

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
        files.make_folder(folder)
        files.write_json(folder / "run.json", begun | about | self.store.subject, checked=True)

    def get_or_compute(self, call: str, compute: Callable[[], list[dict[str, Any]]]) -> Saved:
        """The rows of an analysis: found, or computed by ``compute()`` and written at once; its parts meanwhile."""
        found = not self.store.again and self.store.has(self.key, call)
        if not found:
            started = time.perf_counter()
            with self._parts(call) as parts:
                rows = compute()
            seconds = round(time.perf_counter() - started + parts.seconds, 3)
            about = {"rows": rows, "seconds": seconds, "made": _now(), "version": _version(call)}
            self.results[call] = about
            results = {"format": FORMAT, "analyses": self.results}
            files.write_json(self.folder / "results.json", results, checked=True)
            self._remove(parts.folder)
        saved = self.results[call]
        return Saved(saved["rows"], saved["seconds"], saved["made"], found)

    @contextmanager
    def _parts(self, call: str) -> Iterator[Place]:
        """Where an analysis keeps its parts until it ends; those of another version of it are removed."""
        folder = self.folder / f"parts-{hash_of(call)}-{_version(call)}"
        for other in self.folder.glob(f"parts-{hash_of(call)}-*"):
            if other != folder or self.store.again:
                self._remove(other)
        try:
            with kept_in(folder) as place:
                yield place
        except OpnormError as e:
            if not isinstance(e, RunError):  # it cannot be made; a RunError is of the disk
                self._remove(folder)
            raise

    def _remove(self, folder: Path) -> None:
        files.remove_folder(folder, self.store.root / ".locks" / f"{self.key}.removed")

    def fail(self, reason: str) -> None:
        """Write down why the run cannot end well."""
        files.write_json(self.folder / "failure.json", {"failure": reason}, checked=True)

    def note(self, **about: Any) -> None:
        """Add to the run.json."""
        files.write_json(self.folder / "run.json", self.store.read(self.folder) | about, checked=True)

    def restart(self) -> None:
        """Remove what the folder holds, for :meth:`begin` to begin anew."""
        self.store.remove(self.key)
        self.finished, self.failure, self.results = False, "", {}

    def finish(self, seconds: float = 0.0) -> None:
        """Give the folder its final name; its time is ``seconds`` and that of all analyses."""
        folder, done = self.folder, self.store.root / self.key
        seconds += sum(r["seconds"] for r in self.results.values())
        self.note(ended=self.store.read(folder).get("ended", _now()), seconds=round(seconds, 3))
        with files.writing(done):
            if folder != done:
                folder.rename(done)
            for checkpoint in done.glob(
                "checkpoint*.safetensors"
            ):  # not before: until then it is what we have
                checkpoint.unlink()


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S")


def _version(call: str) -> str:
    """A hash of what the rows of an analysis depend on besides network and data."""
    return hash_of(identity(spec.full(call, "analysis")))
