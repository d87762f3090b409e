"""One run on a node of a Ray cluster."""

import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from opnorm._core import files
from opnorm.errors import OpnormError
from opnorm.runs.engines.engine import Progress, StudyProgress, run_one
from opnorm.runs.engines.share import Share
from opnorm.runs.remote_folder import RemoteFolder
from opnorm.runs.run import Run
from opnorm.runs.store import Store

__all__ = ["Outcome", "Storage", "run_task"]

OFTEN = 0.5  # seconds between two reports of a run


class Storage(NamedTuple):
    """Where the nodes keep the runs.

    Attributes:
        root: a folder that all nodes see; of the driver alone where there is a URL.
        url: what all nodes see instead; each run works in a local folder and is copied there.
        cwd: the user's folder, where own modules are.
        track: the trackers, as of the store.
    """

    root: str
    url: str
    cwd: str
    track: tuple[str, ...] = ()


class Outcome(NamedTuple):
    """What came out of a task.

    Attributes:
        state: "done", "busy" (another process is at the run), "failed" (the run by itself) or "error" (ends the study).
        text: why.
        found: whether nothing had to be done.
        log: where the output of the run is.
    """

    state: str
    text: str = ""
    found: bool = False
    log: str = ""


def run_task(index: int, settings: dict[str, Any], storage: Storage, share: Share, board: Any) -> Outcome:
    """Carry out a run on this node; it resumes from what an earlier attempt, here or elsewhere, has left.

    Nothing large is returned: the results are in the storage.

    Args:
        index: of the run in the study.
        settings: of the run.
        storage: where the nodes keep the runs.
        share: what the run gets.
        board: the actor that keeps how far every run is.
    """
    if storage.cwd not in sys.path:  # the user's own modules
        sys.path.insert(0, storage.cwd)
    remote = RemoteFolder(storage.url) if storage.url else None
    with tempfile.TemporaryDirectory(prefix="opnorm-run-") if remote else nullcontext(storage.root) as root:
        log, where = Path(root, ".logs", f"{index}.log"), ""
        try:
            run, store = Run.from_dict(settings), Store(root, track=storage.track)
            log = log.with_name(f"{run.key}.log")
            where = f"{storage.url or storage.root}/.logs/{log.name}"
            with _written_to(log):
                return _carry_out(index, run, store, share, (board, remote))._replace(log=where)
        except OpnormError as e:
            return Outcome("error", str(e), log=where)
        except Exception as e:  # noqa: BLE001 - a user's code raises what it likes; the driver says it in one line
            return Outcome("error", f"{type(e).__name__}: {e}", log=where)
        finally:
            if remote and log.exists():
                remote.write(f".logs/{log.name}", log.read_text(errors="replace"))


def _carry_out(
    index: int, run: Run, store: Store, share: Share, to: tuple[Any, RemoteFolder | None]
) -> Outcome:
    board, remote = to
    report = _reporter(board)
    if remote:
        remote.download(run.key, store.root)
        report = _uploader(report, remote, store, run.key)
    found = store.finished(run.key) and all(store.has(run.key, call) for call in run.analyses)
    result = run_one(index, run, store, share, report)
    if remote and result is not None:
        remote.upload(store.folder(run.key), run.key)
    if result is None:
        return Outcome("busy")
    return Outcome("failed" if result.failure else "done", result.failure, result.found or found)


def _reporter(board: Any) -> Progress:
    """Tells the board how far a run is, now and then."""
    last = 0.0

    def report(event: StudyProgress) -> None:
        nonlocal last
        if time.monotonic() - last > OFTEN:
            last = time.monotonic()
            board.note.remote(event.index, event.share, event.text)

    return report


def _uploader(report: Progress, remote: RemoteFolder, store: Store, key: str) -> Progress:
    """Sends the folder of a run whenever its checkpoint or its analyses have changed."""
    sent: list[int] = []

    def upload(event: StudyProgress) -> None:
        nonlocal sent
        folder = store.folder(key)
        paths = [folder / name for name in ("checkpoint.safetensors", "results.json")]
        now = [path.stat().st_mtime_ns for path in paths if path.exists()]
        if now != sent:
            sent = now
            remote.upload(folder, key)
        report(event)

    return upload


@contextmanager
def _written_to(log: Path) -> Iterator[None]:
    """What the block prints, its warnings and its traceback, in a file."""
    files.make_folder(log.parent)
    with files.writing(log), log.open("a", buffering=1) as f, redirect_stdout(f), redirect_stderr(f):
        try:
            yield
        except Exception:
            traceback.print_exc()
            raise
