"""A run as one flat row of plain values, for tables and SQL engines: settings, state, accuracies, norms."""

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opnorm import spec
from opnorm._core.files import write_bytes
from opnorm._core.settings import is_number
from opnorm.errors import OpnormError, RunError
from opnorm.runs.method_label import label_of
from opnorm.runs.store import Store

__all__ = ["COLUMNS", "RobustAccuracy", "robust_accuracies", "run_row", "run_rows", "write_parquet"]

Row = dict[str, Any]

SETTINGS = (
    "model", "data", "objective", "regularizers", "optimizer", "schedule", "epochs", "batch", "augment", "limit",
    "precision", "channels_last", "ema", "seed", "analyses",
)  # fmt: skip
LAST_EPOCH = ("loss", "train_accuracy", "test_accuracy", "norm_1", "norm_2", "norm_inf")
LARGEST = ("largest_norm_1", "largest_norm_2", "largest_norm_inf")
WHERE = ("opnorm", "git", "torch", "python", "machine", "threads", "processes")

COLUMNS = (
    "key", "state", "begun", "ended", "seconds", "method", *SETTINGS, "accuracy", "robust_accuracy", "epochs_done",
    *LAST_EPOCH, *LARGEST, *WHERE, "failure", "folder",
)  # fmt: skip
"""What every row has; None where it is not known. Robust accuracies by norm, radius and attack follow, if any."""


NUMBERS = (
    "seconds", "epochs", "batch", "limit", "channels_last", "ema", "seed", "accuracy", "robust_accuracy",
    "epochs_done", *LAST_EPOCH, *LARGEST, "threads", "processes",
)  # fmt: skip
"""The columns of ``COLUMNS`` that are no text."""


class RobustAccuracy(NamedTuple):
    """A robust accuracy that is kept for a network.

    Attributes:
        attack: the call.
        norm: of the ball: "1", "2" or "inf".
        eps: its radius.
        robust: how many points stay correct.
        points: how many points there are, misclassified ones included.
    """

    attack: str
    norm: str
    eps: float
    robust: int
    points: int

    @property
    def accuracy(self) -> float:
        """The share of the points."""
        return self.robust / self.points

    @property
    def column(self) -> str:
        """Such as ``robust_inf_0.03137_pgd``."""
        return f"robust_{self.norm}_{self.eps:.4g}_{self.attack.partition('(')[0]}"


def run_rows(store: Store) -> list[Row]:
    """The flat row of every run of a store. All have the same columns."""
    attacks: dict[str, list[Row]] = {}
    for row in Store(store.root / "attacks").ls():
        attacks.setdefault(str(row.get("subject")), []).append(row)
    rows = [run_row(store, about, attacks.get(about["key"], ())) for about in store.ls()]
    names = dict.fromkeys([*COLUMNS, *sorted({name for row in rows for name in row} - {*COLUMNS})])
    return [{name: row.get(name) for name in names} for row in rows]


def run_row(store: Store, about: Row, attacks: Sequence[Row] = ()) -> Row:
    """The flat row of a run.

    ``robust_accuracy`` is the lowest that is kept for its network, of whatever attack and radius; the columns after
    ``folder`` name both, and have the number of points beside them. Of several with one name, that of most points counts.

    Args:
        store: the run's.
        about: the run, as in :meth:`Store.ls`.
        attacks: those on its network, as in :meth:`Store.ls`.
    """
    row: Row = dict.fromkeys(COLUMNS)
    row |= {name: about.get(name) for name in ("key", "state", "begun", "ended", "seconds", "folder")}
    run, where = (value if isinstance(value := about.get(name), dict) else {} for name in ("run", "where"))
    row |= {name: _plain(run.get(name)) for name in SETTINGS}
    row |= {name: where.get(name) for name in WHERE}
    if not run:
        return row
    row["method"] = label_of(about)
    try:
        return row | _found(store, about, attacks)
    except RunError as e:
        return row | {"state": str(e)}


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return " + ".join(map(str, value))
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _found(store: Store, about: Row, attacks: Sequence[Row]) -> Row:
    """What was measured of a run."""
    folder, analyses = Path(about["folder"]), store.results(about["key"])
    metrics = store.metrics(folder)
    row: Row = {"epochs_done": len(metrics), "failure": store.failure(about["key"]) or None}
    row |= {name: metrics[-1].get(name) for name in LAST_EPOCH if metrics}
    for call, saved in analyses.items():
        name = call.partition("(")[0]
        for found in saved["rows"]:
            if name == "accuracy" and found.get("split") == "test":
                row["accuracy"] = found["accuracy"]
            if name == "norm_table":
                _raise_largest(row, found)
    robust = robust_accuracies(analyses, attacks, str(about["run"].get("data")))
    if robust:
        row["robust_accuracy"] = min(found.accuracy for found in robust)
    for found in sorted(robust, key=lambda r: (r.points, -r.accuracy)):
        row |= {found.column: found.accuracy, f"{found.column}_points": found.points}
    return row


def _raise_largest(row: Row, layer: Row) -> None:
    """The largest upper end of a layer's norm."""
    for ord, norm in layer["norms"].items():
        name = f"largest_norm_{ord}"
        if name in LARGEST and norm["upper"] is not None:
            row[name] = max(row.get(name) or 0.0, norm["upper"])


def robust_accuracies(analyses: dict[str, Row], attacks: Iterable[Row], data: str) -> list[RobustAccuracy]:
    """The robust accuracies of a network on its own data, from its analyses and from attacks on it that have ended."""
    rows = [row for saved in analyses.values() for row in saved["rows"] if _is_robust(row)]
    found = [(row, row["correct"], row.get("of", row["points"])) for row in rows]
    found += [
        (row, row["robust"], row["points"])
        for row in attacks
        if row.get("state") == "finished" and {"robust", "points", "attack"} <= row.keys()
        if _canonical(row.get("data")) == _canonical(data)
    ]
    return [robust for row, correct, points in found for robust in _robust(row, correct, points)]


def _is_robust(row: Row) -> bool:
    """Whether a row of an analysis is one radius of one attack."""
    return {"attack", "correct", "points"} <= row.keys() and is_number(row.get("eps"))


def _robust(row: Row, correct: int, points: int) -> Iterator[RobustAccuracy]:
    try:
        settings = dict(spec.parse(row["attack"]).kwargs)
    except OpnormError:
        settings = {}
    eps, norm = row.get("eps", settings.get("eps")), row.get("norm", settings.get("norm"))
    if is_number(eps) and norm is not None and points:
        yield RobustAccuracy(
            row["attack"], norm if isinstance(norm, str) else f"{norm:g}", eps, correct, points
        )


def _canonical(data: Any) -> str:
    try:
        return str(spec.parse(str(data)))
    except OpnormError:
        return str(data)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a parquet file, all or nothing: numbers, truth values or text, one type a column.

    Raises:
        RunError: it cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet

    columns = {}
    for name in rows[0] if rows else COLUMNS:
        values = [row[name] for row in rows]
        kinds = {type(value) for value in values} - {type(None)}
        text = not kinds and name in COLUMNS and name not in NUMBERS
        if (kinds <= {int, float} or kinds == {bool}) and not text:
            whole, kind = kinds == {int}, pa.bool_() if bool in kinds else pa.float64()
            columns[name] = pa.array(values, pa.int64() if whole else kind)
        else:
            texts = [None if value is None else str(value) for value in values]
            columns[name] = pa.array([_encodable(text) for text in texts], pa.string())
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), buffer)
    write_bytes(path, buffer.getvalue())


def _encodable(text: str | None) -> str | None:
    """Text without the halves of characters that names of files may have."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
