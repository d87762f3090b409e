"""A run: one network trained on one data set in one way with one seed; and its result."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

from opnorm import spec
from opnorm._core.settings import check_count, is_number
from opnorm._core.training_numbers import Precision, check_numbers
from opnorm.errors import RunError, SpecError
from opnorm.report import NOT_RUN_YET
from opnorm.runs.identity import hash_of, identity, with_full_paths
from opnorm.runs.kinds import KINDS
from opnorm.runs.method_label import method_label
from opnorm.runs.store import FORMAT

__all__ = ["DEFAULT_ANALYSES", "Result", "Run", "analyses_after"]

DEFAULT_ANALYSES = ("accuracy()", "robust_accuracy()", "norm_table()", "margins()")


def analyses_after(objective: str) -> tuple[str, ...]:
    """The default analyses of a training, with robust accuracy also at the radius of the objective's attack, if any."""
    settings = dict(spec.full(objective, "objective").kwargs)
    eps, norm = settings.get("eps"), settings.get("norm", math.inf)
    if not is_number(eps) or eps <= 0:
        return DEFAULT_ANALYSES
    radii = sorted({*(n / 255 for n in (2, 4, 8)), eps} if norm == math.inf else {eps / 2, eps})
    robust = f"robust_accuracy(norm={norm}, eps=({', '.join(map(repr, radii))}))"
    return tuple(robust if call == "robust_accuracy()" else call for call in DEFAULT_ANALYSES)


_FROM_DATA = dict.fromkeys(("in_shape", "classes", "mean", "std"), "from the data")


@dataclass(frozen=True)
class Run:
    """All settings of a training, as calls (text, or objects made by opnorm's factories).

    Attributes:
        model: such as ``cnn(width=32)``; image shape, classes, mean and std that it leaves open are taken from the data.
        data: such as ``digits()`` or ``parquet("folder")``.
        objective: such as ``pgd_at(eps=8/255)``.
        regularizers: any number, applied in order.
        optimizer: such as ``sgd(lr=0.1)``.
        schedule: such as ``cosine()``.
        epochs: passes over the training data.
        batch: points a step.
        augment: augmentations, applied in order.
        limit: at most so many training and test points.
        precision: "fp32", "bf16", or "auto", the faster one where training begins; the metrics of every epoch say which.
        channels_last: memory format.
        ema: decay a step of an average of the weights, which is what is saved and analyzed; 0 for none.
        seed: of initialization, data order, augmentation, attacks.
        analyses: what is measured after training; not part of the key, so that more can be asked of a finished run.
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
        """Name the arguments of every call; OpnormError for one that cannot be read or found, or makes no sense."""
        check_numbers(self.epochs, self.batch, self.precision, self.seed, self.ema)
        check_count("limit", self.limit, unit="points", optional=True)
        for name, kind in KINDS.items():
            value = getattr(self, name)
            many = name in ("regularizers", "augment", "analyses")
            if many and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise SpecError(f"{name}={value!r:.60}: expected a tuple of calls, such as ({value!r:.60},)")
            object.__setattr__(
                self, name, tuple(_canonical(v, kind) for v in value) if many else _canonical(value, kind)
            )

    @cached_property
    def key(self) -> str:
        """Twelve hex digits that name the run: a hash of all that its network depends on, but not of the analyses.

        That is every setting, defaults included; the source of the user's modules that the calls reach; the files that they
        name; and the version of opnorm.
        """
        settings = {name: value for name, value in self.as_dict().items() if name != "analyses"}
        # what the data decide is not the same as a stated default
        settings["model"] = spec.fill(spec.parse(self.model), **_FROM_DATA)
        for name in settings.keys() & KINDS.keys():
            value, kind = settings[name], KINDS[name]
            calls = value if isinstance(value, tuple) else (value,)
            settings[name] = [identity(spec.full(call, kind)) for call in calls]
        return hash_of(FORMAT, settings)

    @cached_property
    def label(self) -> str:
        """What a table calls it: the objective and the regularizers, ``plain`` when there is nothing to name."""
        objective = str(spec.short(self.objective, "objective"))
        regularizers = [str(spec.short(r, "regularizer")) for r in self.regularizers]
        return method_label(objective, regularizers, self.ema)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; ``Run.from_dict`` takes them back."""
        return asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "Run":
        """The run that :meth:`as_dict` described; RunError when it has fields of another version."""
        if not {"model", "data"} <= values.keys():
            raise RunError(f"{values!s:.60} is no run; expected its settings, model and data at least")
        unknown = sorted(values.keys() - {f.name for f in fields(Run)})
        if unknown:
            raise RunError(
                f"a run has no settings named {', '.join(unknown)}; was it written by another version of opnorm?"
            )
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return Run(**settings)


def _canonical(value: Any, kind: str) -> str:
    call = value if isinstance(value, str | spec.Call) else spec.spec_of(value)
    return str(spec.short(call, kind) if kind == "analysis" else with_full_paths(spec.stated(call, kind)))


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        run: its settings.
        metrics: one dict an epoch. In a process group, only the main process gets more than this and ``run``.
        rows: the rows of every analysis, by its canonical call.
        seconds: of all epochs and analyses, in all sessions.
        failure: why there are no rows; empty when all went well, ``NOT_RUN_YET`` where the run is still to come.
        folder: the folder with its files.
        ended: when its training ended.
        found: whether nothing had to be done for it.
        log: where the output of a run that failed on another machine is; empty where it was printed here.
    """

    run: Run
    metrics: list[dict[str, Any]]
    rows: dict[str, list[dict[str, Any]]]
    seconds: float
    failure: str = ""
    folder: Path | None = None
    ended: str = ""
    found: bool = field(default=False, compare=False)
    log: str = field(default="", compare=False)

    @classmethod
    def to_come(cls, run: Run) -> "Result":
        """What stands for the result of a run that has not ended."""
        return cls(run, [], {}, 0.0, NOT_RUN_YET)

    @property
    def pending(self) -> bool:
        """Whether the run has not ended yet."""
        return self.failure == NOT_RUN_YET

    def find(self, name: str) -> list[dict[str, Any]]:
        """The rows of all analyses of that name: ``find("robust_accuracy")``."""
        return [row for call, rows in self.rows.items() if call.partition("(")[0] == name for row in rows]
