"""Train and analyze a run, or find what its folder holds."""

import os
import platform
import subprocess
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import opnorm
from opnorm import spec
from opnorm._core import files
from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels
from opnorm.errors import RunError, TrainError
from opnorm.models import save
from opnorm.runs.build import known_of, make_data, make_model, restore, training_settings
from opnorm.runs.network_identity import data_identity, outputs
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Entry, Store
from opnorm.runs.tracking import tracked
from opnorm.runs.trust import trust
from opnorm.training import TrainingProgress, distributed, train, weight_metrics

__all__ = ["RunProgress", "environment", "find_result", "run_training", "threads_of_torch"]


class RunProgress(NamedTuple):
    """Progress of a run: ``activity`` is "train", or the call of the analysis that begins (without ``training``)."""

    activity: str
    training: TrainingProgress | None = None


def run_training(
    run: Run,
    store: Store,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[RunProgress], None] | None = None,
) -> Result:
    """Train and analyze, or find the result of a run.

    A finished run is not repeated, unless its weights are lost, which is said; a stopped one resumes from its last epoch,
    with the number of threads that it began with; analyses that a finished run lacks are added to it.

    Args:
        run: the settings.
        store: where results are written and found.
        device: where to train.
        progress: called after every training step and before every analysis.

    Raises:
        BusyError: another process is at this run.
        RunError: its folder is damaged or of another format, or the disk is full; the network of a finished run gives
            other outputs than after its training; or the user's own function gives other data than when the run began.
        TrainError: the training diverged. The next call raises the same again, without training.
        OpnormError: whatever is wrong with model, data or settings.
    """
    report = progress or (lambda event: None)
    trust(run.as_dict())
    if not distributed.is_main_process():
        metrics: list[dict[str, Any]] = []
        if distributed.broadcast_from_main(bool):
            data = make_data(run)
            metrics = train(make_model(run, data), data, training_settings(run), device=device)
        return Result(run, metrics, {}, 0.0)
    with distributed.start_signal() as start_others:
        # without a lock, so that results are found in a folder that cannot be written
        if result := find_result(run, store):
            return result
        with store.open(run.key) as entry:
            if entry.finished and (damage := store.unreadable_weights(entry.folder)):
                warnings.warn(f"{damage}; the network of run {run.key} is trained again", stacklevel=2)
                entry.restart()
            if not _is_done(run, store):
                with tracked(run, store, report) as told:
                    _complete(run, entry, device, told, start_others)
        return _load(run, store)


def find_result(run: Run, store: Store) -> Result | None:
    """The result of a run, if it is finished and has all its analyses; the user's own network is checked as well."""
    if store.again or not _is_done(run, store) or store.unreadable_weights(store.folder(run.key)):
        return None
    if "." in run.model.partition("(")[0]:
        restore(run, store.folder(run.key))
    if _own_data(run):
        _check_data(run, store.about(run.key), make_data(run))
    return replace(_load(run, store), found=True)


def _own_data(run: Run) -> bool:
    """Whether the user's own function makes the data: no key sees what it reads."""
    return any("." in call.name for call in spec.calls_in(spec.parse(run.data)))


def _check_data(run: Run, about: dict[str, Any], data: Dataset) -> None:
    """RunError where the data of a run that has begun were others, but for data that are drawn anew each time."""
    kept = about.get("points")
    if kept is None or kept == (now := data_identity(data)) or now != data_identity(make_data(run)):
        return
    raise RunError(
        f"{run.data} gives other data than when run {run.key} began: a file that it reads has changed since; restore it, or "
        "train again with --again"
    )


def _is_done(run: Run, store: Store) -> bool:
    return store.finished(run.key) and all(store.has(run.key, call) for call in run.analyses)


def _load(run: Run, store: Store) -> Result:
    folder, about = store.folder(run.key), store.about(run.key)
    rows = {a: saved["rows"] for a, saved in store.results(run.key).items() if a in run.analyses}
    try:
        metrics = store.metrics(folder)
    except RunError as e:
        raise RunError(f"{e} The same command with --again trains anew") from e
    return Result(run, metrics, rows, float(about.get("seconds", 0)), "", folder, about.get("ended", ""))


def _complete(
    run: Run,
    entry: Entry,
    device: torch.device | str,
    report: Callable[[RunProgress], None],
    start_others: Callable[[], None],
) -> None:
    """What is missing: the training, some of the analyses."""
    if entry.failure:
        raise TrainError(f"{entry.failure} (remembered; --again tries again)")
    # all calls are built first, so that what is wrong with them is raised before training
    missing = [call for call in run.analyses if not entry.store.has(entry.key, call)]
    analyses = {call: spec.build(call, "analysis") for call in missing}
    settings = training_settings(run)
    data = make_data(run)
    if entry.finished:
        model = restore(run, entry.folder).to(device)
        _check_data(run, entry.store.about(entry.key), data)
    else:
        model = make_model(run, data)
        about: dict[str, Any] = {
            "run": run.as_dict(),
            "label": run.label,
            "known": known_of(data),
            "data": data.describe(),
        }
        if _own_data(run):
            about["points"] = data_identity(data)
        entry.begin(about | {"where": environment()})
        _check_data(run, entry.store.about(entry.key), data)
        start_others()
        try:
            with threads_of_torch(entry.store.about(entry.key)["where"]["threads"]):
                metrics = train(
                    model, data, settings, device=device, folder=entry.folder,
                    probe=partial(_probe, example=as_pixels(data.test.images[:1]).to(device), data=data),
                    progress=lambda step: report(RunProgress("train", step)),
                )  # fmt: skip
        except TrainError as e:
            entry.fail(str(e))
            raise
        entry.note(outputs=outputs(model, data.image_shape), metrics=files.lines_checksum(metrics))
        save(model, entry.folder / "weights.safetensors")
    for call, analysis in analyses.items():
        report(RunProgress(call))
        entry.get_or_compute(call, partial(analysis, model, data))
    # of every session, resumed or not
    entry.finish(sum(row["seconds"] for row in files.read_lines(entry.folder / "metrics.jsonl")))


@contextmanager
def threads_of_torch(number: int) -> Iterator[None]:
    """So many threads of torch in the block: those that a run began with, for others round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _probe(model: nn.Module, example: Tensor, data: Dataset, points: int = 1000) -> dict[str, Any]:
    """Metrics after every epoch: test accuracy on the first ``points`` points, and :func:`weight_metrics`."""
    images, labels = (tensor[:points].to(example.device) for tensor in data.test)
    with evaluating(model):
        logits = torch.cat([output_of(model, as_pixels(x)) for x in images.split(500)])
        if not torch.isfinite(logits).all():
            raise TrainError(
                "the network gives NaN or infinity for test images at the end of an epoch; "
                "a smaller learning rate or a weaker regularizer usually helps"
            )
        right = int((logits.argmax(1) == labels).sum())
    return {"test_accuracy": right / len(labels), **weight_metrics(model, example)}


def environment() -> dict[str, Any]:
    """Versions of the code and the machine."""
    return {
        "opnorm": opnorm.__version__,
        "git": git_state(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()} used by torch",
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
    }


def git_state() -> str:
    """The commit of the source tree that opnorm is imported from, with ``+changes`` if it is edited; else empty."""
    root = Path(opnorm.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        call = ["git", "-C", str(root), "describe", "--always", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # no git on this machine, or no commit yet
