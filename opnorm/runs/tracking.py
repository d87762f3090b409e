"""Trackers: modules that also get the metrics of a run, such as TensorBoard. The run's folder stays the truth.

A tracker is a module with three functions, as wandb and trackio have them:

    init(project="opnorm", name=KEY, config={...})     # when a training begins or goes on
    log({"loss": 0.5, ...}, step=EPOCH)                # after every epoch, and once with the results
    finish()                                           # when the run ends, in whatever way

They are told what the folder already holds, once an epoch, so that a step costs nothing; a training that goes on tells them
all its epochs again.
"""

import importlib
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from opnorm._core import files
from opnorm._core.settings import is_number
from opnorm.errors import OpnormError, did_you_mean
from opnorm.runs.run_columns import run_row
from opnorm.runs.store import Store

if TYPE_CHECKING:
    from opnorm.runs.run import Run

__all__ = ["TRACKERS", "Tracker", "check_installed", "check_trackers", "tracked"]

TRACKERS = {"tensorboard": "'opnorm[tensorboard]'", "trackio": "trackio", "wandb": "wandb"}
"""The trackers that need no module path, and what pip installs for them."""

FUNCTIONS = ("init", "log", "finish")


class Tracker(Protocol):
    """What a tracker's module has."""

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> object:
        """Begin a run with these settings."""

    def log(self, metrics: dict[str, float], *, step: int) -> object:
        """Take the metrics of an epoch, counted from 1."""

    def finish(self) -> object:
        """End the run."""


def check_trackers(names: tuple[str, ...], root: Path) -> None:
    """Import the trackers.

    Args:
        names: of ``--track``: a key of ``TRACKERS``, or a module.
        root: the folder of runs, below which TensorBoard's files are.

    Raises:
        OpnormError: one is not known, not installed, or has not the three functions.
    """
    for name in names:
        _tracker(name, root)


def check_installed(names: tuple[str, ...]) -> None:
    """OpnormError for a tracker that is not installed; none is imported."""
    _search_here()
    for name in names:
        package = name.partition(".")[0]
        if not package or (package not in sys.modules and importlib.util.find_spec(package) is None):
            _module(name)  # which fails, and says why


def _tracker(name: str, root: Path) -> Tracker:
    return _TensorBoard(root / "tensorboard") if name == "tensorboard" else _module(name)


def _module(name: str) -> Tracker:
    if name not in TRACKERS and "." not in name and importlib.util.find_spec(name) is None:
        hint = did_you_mean(name, TRACKERS, f"known: {', '.join(TRACKERS)}")
        raise OpnormError(
            f"--track {name}: there is no such tracker{hint}; or a module with init, log and finish"
        )
    module: Any = _imported(name)
    if missing := [f for f in FUNCTIONS if not callable(getattr(module, f, None))]:
        raise OpnormError(
            f"--track {name}: the module has no {', '.join(missing)}; expected a tracker, with {', '.join(FUNCTIONS)}"
        )
    return module


def _imported(name: str, module: str = "") -> Any:
    _search_here()
    try:
        return importlib.import_module(module or name)
    except Exception as e:
        remedy = (
            f"pip install {TRACKERS[name]}" if name in TRACKERS else "expected a module of this environment"
        )
        raise OpnormError(f"--track {name} cannot be imported ({type(e).__name__}: {e}): {remedy}") from e


def _search_here() -> None:
    """Also find a module beside the user, as in calls."""
    if "" not in sys.path:
        sys.path.append("")


class _TensorBoard:
    """Writes a run's metrics to TensorBoard's files, in a folder of its own."""

    def __init__(self, root: Path) -> None:
        self.kind = _imported("tensorboard", "torch.utils.tensorboard").SummaryWriter
        self.root = root
        self.writer: Any = None

    def init(self, *, project: str, name: str, config: dict[str, Any]) -> None:
        shutil.rmtree(self.root / name, ignore_errors=True)  # all epochs are told again
        self.writer = self.kind(str(self.root / name), max_queue=1000, flush_secs=10)
        self.writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in config.items()))

    def log(self, metrics: dict[str, float], *, step: int) -> None:
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)

    def finish(self) -> None:
        self.writer.close()


class _Tracked:
    """The trackers of a run, and how many of its epochs they were told."""

    def __init__(self, run: "Run", store: Store) -> None:
        self.run, self.store, self.told, self.epoch = run, store, 0, 0
        self.trackers = {name: _tracker(name, store.root) for name in store.track}
        config = run.as_dict() | {"key": run.key, "method": run.label}
        for name, tracker in self.trackers.items():
            try:
                tracker.init(project="opnorm", name=run.key, config=config)
            except Exception as e:
                raise OpnormError(
                    f"--track {name} does not begin ({type(e).__name__}: {_line(e)}). Likely cause: not logged in, or no "
                    "network; nothing was trained"
                ) from e

    def follow(self) -> None:
        """Tell the trackers of the epochs that the folder holds, and they have not been told of."""
        rows = files.read_lines(self.store.folder(self.run.key) / "metrics.jsonl")
        for row in rows[self.told :]:
            self.each("log", _numbers(row), step=row["epoch"])
        self.told = len(rows)

    def results(self) -> None:
        """Tell the trackers the results."""
        about = self.store.about(self.run.key)
        row = run_row(
            self.store, about | {"key": self.run.key, "folder": str(self.store.folder(self.run.key))}
        )
        found = {k: v for k, v in row.items() if k == "accuracy" or k.startswith(("robust_", "largest_"))}
        self.each("log", _numbers(found), step=max(self.told, 1))

    def each(self, function: str, *args: Any, **kwargs: Any) -> None:
        """Call a function of all trackers; one that fails is left out from then on, which is said."""
        for name, tracker in list(self.trackers.items()):
            try:
                getattr(tracker, function)(*args, **kwargs)
            except Exception as e:  # noqa: BLE001 - whatever a tracker raises, the training is worth more
                del self.trackers[name]
                warnings.warn(
                    f"--track {name} failed in {function} ({type(e).__name__}: {_line(e)}) and gets nothing more; the "
                    f"training goes on, and its metrics are in {self.store.folder(self.run.key)}",
                    stacklevel=2,
                )


def _line(e: Exception) -> str:
    return f"{' '.join(str(e).split()):.200}"


def _numbers(row: Mapping[str, Any], before: str = "") -> dict[str, float]:
    """The numbers of a row, those inside it under ``name/inner``."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= _numbers(value, f"{before}{name}/")
        elif is_number(value) and name != "epoch":
            found[before + name] = value
    return found


@contextmanager
def tracked(run: "Run", store: Store, report: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """A progress callback for a training in this block, which also tells the trackers of ``store.track``.

    Raises:
        OpnormError: a tracker is not known, not installed, or does not begin.
    """
    if not store.track:
        yield report
        return
    trackers = _Tracked(run, store)

    def follow(event: Any) -> None:
        epoch = event.training.epoch if event.training else -1  # -1: an analysis, after all epochs
        if epoch != trackers.epoch:
            trackers.epoch = epoch
            trackers.follow()
        report(event)

    try:
        yield follow
        trackers.follow()
        trackers.results()
    finally:
        trackers.each("finish")
