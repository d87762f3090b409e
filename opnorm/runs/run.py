"""A run: one way of training one network on one data set with one seed, and what was found out about it."""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.layers import LINEAR_OR_CONV
from opnorm._core.linear_map import linear_map
from opnorm._core.modes import evaluating
from opnorm.data import Dataset
from opnorm.errors import ModelError, OpnormError, RunError, SpecError, TrainError
from opnorm.models import save
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.spectral.interval import power_iteration
from opnorm.norms.table import Visit, trace
from opnorm.runs.store import FORMAT, Store
from opnorm.training import distributed as parallel
from opnorm.training.loop import Moment, Precision, as_pixels, check_settings, train

__all__ = ["DEFAULT_ANALYSES", "Result", "Run", "execute", "make_model"]

DEFAULT_ANALYSES = ("accuracy()", "robust_accuracy()", "norm_table()", "margins()")

_FIELD_KINDS = {
    "model": "model",
    "data": "data set",
    "objective": "objective",
    "regularizers": "regularizer",
    "optimizer": "optimizer",
    "schedule": "schedule",
    "augment": "augmentation",
    "analyses": "analysis",
}


@dataclass(frozen=True)
class Run:
    """Everything that decides how a training ends, as calls (text, or objects made by opnorm's factories).

    Attributes:
        model: such as ``cnn(width=32)``; image shape, classes, mean and std are filled in from the data.
        data: such as ``digits()`` or ``parquet("folder")``.
        objective: such as ``pgd_at(eps=8/255)``.
        regularizers: any number, applied in order.
        optimizer: such as ``sgd(lr=0.1)``.
        schedule: such as ``cosine()``.
        epochs: passes over the training data.
        batch: points a step.
        augment: augmentations, applied in order.
        limit: at most so many training and test points.
        precision: "fp32" or "bf16".
        channels_last: memory format.
        ema: decay a step of an average of the weights, which is what is saved and analyzed; 0 for none.
        seed: of initialization, data order, augmentation, attacks.
        analyses: what to find out afterwards; not part of the key, so that more can be asked of a finished run.
    """

    model: str
    data: str
    objective: str = "plain()"
    regularizers: tuple[str, ...] = ()
    optimizer: str = "sgd()"
    schedule: str = "cosine()"
    epochs: int = 10
    batch: int = 128
    augment: tuple[str, ...] = ()
    limit: int | None = None
    precision: Precision = "fp32"
    channels_last: bool = False
    ema: float = 0.0
    seed: int = 0
    analyses: tuple[str, ...] = field(default=DEFAULT_ANALYSES, compare=False)

    def __post_init__(self) -> None:
        """Bring every call into its canonical form; OpnormError for what cannot be read, looked up or make sense."""
        check_settings(self.epochs, self.batch, self.precision, self.seed, self.ema)
        if self.limit is not None and self.limit < 1:
            raise SpecError(f"limit={self.limit!r}: expected at least 1 point, or None for all")
        for name, kind in _FIELD_KINDS.items():
            value = getattr(self, name)
            many = name in ("regularizers", "augment", "analyses")
            canonical = tuple(_text(v, kind) for v in value) if many else _text(value, kind)
            object.__setattr__(self, name, canonical)

    @property
    def key(self) -> str:
        """Twelve hex digits that name the run: a hash of every setting, defaults included, but not of the analyses."""
        settings = {name: self._full(name) for name in _names() if name != "analyses"}
        text = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def _full(self, name: str) -> Any:
        value, kind = getattr(self, name), _FIELD_KINDS.get(name)
        if kind is None:
            return value
        return (
            [str(spec.full(v, kind)) for v in value]
            if isinstance(value, tuple)
            else str(spec.full(value, kind))
        )

    @property
    def label(self) -> str:
        """What a table calls it: the objective and the regularizers, ``plain`` when there is nothing to name."""
        return label(self.objective, self.regularizers, self.ema)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``Run.from_dict`` takes them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Run":
        """The run that :meth:`as_dict` described; RunError when it has fields of another version."""
        if not {"model", "data"} <= values.keys():
            raise RunError(f"{values!s:.60} is no run; expected its settings, model and data at least")
        unknown = sorted(values.keys() - set(_names()))
        if unknown:
            raise RunError(
                f"a run has no settings named {', '.join(unknown)}; was it written by another version of opnorm?"
            )
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Run(**settings)


def label(objective: str, regularizers: Sequence[str], ema: float = 0.0) -> str:
    """What a table calls a way of training, given its calls in canonical form."""
    named = [] if objective == "plain()" else [objective]
    averaged = [f"ema={ema:g}"] if ema else []
    return " + ".join([*named, *regularizers, *averaged]) or "plain"


def _names() -> list[str]:
    return [f.name for f in fields(Run)]


def _text(value: Any, kind: str) -> str:
    return str(spec.short(value if isinstance(value, str | spec.Call) else spec.spec_of(value), kind))


@dataclass(frozen=True)
class Result:
    """What became of a run.

    Attributes:
        run: its settings.
        metrics: one dict an epoch. In a process group this and ``run`` are all that the other processes than the first get.
        rows: for every analysis (its canonical call) the rows it gave.
        seconds: of all epochs and analyses together, whatever the number of sessions.
        failure: why there are no rows; empty when all went well.
        folder: where it is kept.
    """

    run: Run
    metrics: list[dict[str, Any]]
    rows: dict[str, list[dict[str, Any]]]
    seconds: float
    failure: str = ""
    folder: Path | None = None

    def find(self, name: str) -> list[dict[str, Any]]:
        """The rows of all analyses of that name: ``find("robust_accuracy")``."""
        return [row for call, rows in self.rows.items() if spec.parse(call).name == name for row in rows]


# ---------------------------------------------------------------- carrying it out


def execute(
    run: Run,
    store: Store,
    *,
    device: torch.device | str = "cpu",
    watch: Callable[[str, Moment | None], None] | None = None,
) -> Result:
    """Train and analyze, or find what is already there.

    A finished run is not run again; one that was stopped goes on from its last epoch; analyses that a finished run lacks
    are added to it.

    Args:
        run: what to do.
        store: where runs are kept.
        device: where to train.
        watch: told what is going on: ("train", moment) at every step, (analysis, None) before every analysis.

    Raises:
        RunError: another process is at this run, its folder is of another version, or the disk is full.
        TrainError: the training diverged. It is remembered: the next call raises the same again.
        OpnormError: whatever is wrong with model, data or settings.
    """
    if not parallel.leads():
        return _follow(run, device)
    with parallel.leading() as call_the_others:
        return _execute(run, store, device, watch or (lambda what, moment: None), call_the_others)


def _follow(run: Run, device: torch.device | str) -> Result:
    """What the other processes of a group do: they train along if the first one trains."""
    metrics: list[dict[str, Any]] = []
    if parallel.from_first(bool):
        data = make_data(run)
        metrics = train(make_model(run, data), data, **_settings(run), device=device)
    return Result(run, metrics, {}, 0.0)


def _execute(
    run: Run,
    store: Store,
    device: torch.device | str,
    tell: Callable[[str, Moment | None], None],
    call_the_others: Callable[[], None],
) -> Result:
    if is_done(run, store):  # needs no lock, so that a folder that cannot be written can still be read
        return load(run, store)
    with store.open(run.key) as entry:
        if is_done(run, store):
            return load(run, store)
        if entry.failure:
            raise TrainError(f"{entry.failure} (remembered; delete {entry.folder} to try again)")
        # what is wrong with them is raised before training
        analyses = {a: spec.build(a, "analysis") for a in run.analyses if a not in entry.results}
        settings = _settings(run)
        data = make_data(run)
        model = make_model(run, data)
        if entry.finished:
            load_weights(model, entry.folder / "weights.safetensors")
            model.to(device)
        else:
            entry.begin({"run": run.as_dict(), "data": data.describe(), "where": environment()})
            call_the_others()
            try:
                _train(settings, model, data, entry.folder, device, lambda moment: tell("train", moment))
            except TrainError as e:
                entry.fail(str(e))
                raise
        for call, analysis in analyses.items():
            tell(call, None)
            entry.get_or_compute(call, partial(analysis, model, data))
        # of every session, resumed or not
        entry.finish(sum(row["seconds"] for row in files.read_lines(entry.folder / "metrics.jsonl")))
    return load(run, store)


def is_done(run: Run, store: Store) -> bool:
    """Whether the run is finished, with all its analyses."""
    return store.finished(run.key) and store.results(run.key).keys() >= set(run.analyses)


def load(run: Run, store: Store) -> Result:
    """The result of a finished run."""
    folder = store.folder(run.key)
    metrics = files.read_lines(folder / "metrics.jsonl")
    rows = {a: r["rows"] for a, r in store.results(run.key).items() if a in run.analyses}
    return Result(run, metrics, rows, store.seconds(run.key), "", folder)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill a run's network with the weights that it ended with; RunError when they are of another one."""
    try:
        model.load_state_dict(files.read_tensors(path)[0])
    except RuntimeError as e:
        raise RunError(
            f"{path} does not hold the weights of this run: {e}; delete its folder to start over"
        ) from e


def make_data(run: Run) -> Dataset:
    """The run's data set, cut to its limit."""
    data = spec.build(run.data, "data set")
    if not isinstance(data, Dataset):
        raise ModelError(f"{run.data} gave {type(data).__name__}; expected an opnorm.data.Dataset")
    return data if run.limit is None else data.limit(run.limit)


def make_model(run: Run, data: Dataset) -> nn.Module:
    """The run's network, initialized from its seed, with what the data knows filled in.

    Raises:
        ModelError: it is no network, does not take such images (also as the augmentations leave them), or has another
            number of outputs than there are classes.
    """
    std = tuple(s if s > 0 else 1.0 for s in data.std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = spec.build(
            run.model, "model", in_shape=data.image_shape, classes=data.num_classes, mean=data.mean, std=std
        )
    if not isinstance(model, nn.Module):
        raise ModelError(f"{run.model} gave {type(model).__name__}; expected a torch.nn.Module")
    images = data.train.images[:1]
    check_model(model, as_pixels(images), data.num_classes, run.model)
    changed = images
    for augment in run.augment:
        changed = spec.build(augment, "augmentation")(changed, torch.Generator().manual_seed(0))
    if changed.shape != images.shape:
        check_model(
            model, as_pixels(changed), data.num_classes, f"{run.model} after {', '.join(run.augment)}"
        )
    return model


def check_model(model: nn.Module, example: Tensor, classes: int, name: str) -> None:
    """One forward pass, to see that images go in and one logit for each class comes out."""
    try:
        with evaluating(model):
            out = model(example)
    except OpnormError:
        raise
    except Exception as e:  # whatever the user's own network raises
        raise ModelError(f"{name} does not take images of shape {tuple(example.shape[1:])}: {e}") from e
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if shape != (1, classes):
        raise ModelError(
            f"{name} gives an output of shape {shape} for one image; expected (1, {classes}), one logit for each of the "
            f"{classes} classes of the data. Set its number of classes, or leave it out so that it is taken from the data"
        )


def _settings(run: Run) -> dict[str, Any]:
    """The run's settings as the keyword arguments of :func:`opnorm.training.loop.train`."""
    return {
        "objective": spec.build(run.objective, "objective"),
        "regularizers": [spec.build(r, "regularizer") for r in run.regularizers],
        "optimizer": spec.build(run.optimizer, "optimizer"),
        "schedule": spec.build(run.schedule, "schedule"),
        "augment": [spec.build(a, "augmentation") for a in run.augment],
        **{
            name: getattr(run, name)
            for name in ("epochs", "batch", "seed", "precision", "channels_last", "ema")
        },
    }


def _train(
    settings: dict[str, Any],
    model: nn.Module,
    data: Dataset,
    folder: Path,
    device: torch.device | str,
    watch: Callable[[Moment], None],
) -> None:
    example = as_pixels(data.train.images[:1]).to(device)
    train(
        model,
        data,
        **settings,
        device=device,
        folder=folder,
        probe=lambda m: probe(m, example, data),
        watch=watch,
    )
    save(model, folder / "weights.safetensors")


def probe(model: nn.Module, example: Tensor, data: Dataset, points: int = 1000) -> dict[str, float]:
    """What is looked at after every epoch: test accuracy on the first ``points``, and the typical layer norms.

    norm_1, norm_2 and norm_inf are geometric means over the linear and convolutional layers; norm_2 by 20 steps of power
    iteration, so from below.
    """
    images, labels = (
        data.test.images[:points].to(example.device),
        data.test.labels[:points].to(example.device),
    )
    with evaluating(model):
        logits = torch.cat([model(as_pixels(x)) for x in images.split(500)])
        if not torch.isfinite(logits).all():
            raise TrainError(
                "the network gives NaN or infinity for test images at the end of an epoch; "
                "a smaller learning rate or a weaker regularizer usually helps"
            )
        right = int((logits.argmax(1) == labels).sum())
        layers = weight_layers(trace(model, example))
        norms = {
            "norm_1": [float(l1(v.layer, v.in_shape)) for v in layers],
            "norm_2": [power_iteration(linear_map(v.layer, v.in_shape), 20) for v in layers],
            "norm_inf": [float(linf(v.layer, v.in_shape)) for v in layers],
        }
    return {"test_accuracy": right / len(labels), **{k: geometric_mean(v) for k, v in norms.items()}}


def weight_layers(visits: Sequence[Visit]) -> list[Visit]:
    """The linear and convolutional layers: those whose norms the papers count."""
    return [v for v in visits if isinstance(v.layer, LINEAR_OR_CONV)]


def geometric_mean(values: Sequence[float]) -> float:
    """(∏ values)^(1 / count), by logarithms; 0 when one is 0, 1 when there are none."""
    if any(v == 0 for v in values):
        return 0.0
    return math.exp(math.fsum(math.log(v) for v in values) / max(len(values), 1))


def environment() -> dict[str, Any]:
    """The code and the machine, as far as they can be told."""
    import opnorm

    return {
        "opnorm": opnorm.__version__,
        "git": git_state(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "processes": parallel.size(),
    }


def git_state() -> str:
    """The commit of the source tree that opnorm is imported from, with ``+changes`` if it is edited; else empty."""
    here = Path(__file__).resolve().parent
    if not (here.parent / ".git").exists():
        return ""
    try:
        call = ["git", "-C", str(here), "describe", "--always", "--dirty=+changes", "--exclude=*"]
        return subprocess.run(call, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""  # no git on this machine, or no commit yet: the version has to do


def with_seeds(run: Run, seeds: int) -> list[Run]:
    """The same run under seeds 0, 1, ..."""
    return [replace(run, seed=seed) for seed in range(seeds)]
