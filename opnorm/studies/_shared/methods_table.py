"""Tables of a paper: one row a method, measured cells beside the printed ones, the best ones found by a test."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from opnorm.analyses._norm_table import typical_norm
from opnorm.report import NOT_RUN_YET, Cell, Column, Stat, Table
from opnorm.runs.run import Result
from opnorm.studies._shared.claim import LEVEL
from opnorm.studies._shared.outcomes import Measure, Outcomes, correct_points, row_of
from opnorm.studies._shared.paired_tests import holm

__all__ = [
    "FAILED_RUNS",
    "Quantity",
    "accuracy_of",
    "failed_seeds",
    "log_typical_norm",
    "methods_table",
    "robust_accuracy_of",
    "typical_norm_of",
    "value_of",
]

FAILED_RUNS = Column(
    "failures", "failed runs", "text", None,
    "Means are over the seeds that did not fail; such a row takes no part in the choice of the best ones.",
)  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """A column of a table: its heading, and how a cell is measured.

    Attributes:
        column: key, heading, unit.
        measure: what is shown of a run.
    """

    column: Column
    measure: Measure

    def cell(self, outcomes: Outcomes) -> Cell:
        """Mean and spread over the seeds that did not fail and whose value is known."""
        found = [self.measure(o.result) for o in outcomes.good]
        arrays = [value for value in found if isinstance(value, np.ndarray)]
        if arrays:
            return Stat.of([float(a.mean()) for a in arrays], len(arrays[0]))
        return Stat.of([value for value in found if not isinstance(value, np.ndarray)])


def methods_table(
    outcomes: Outcomes,
    quantities: Sequence[Quantity],
    printed: Mapping[str, Mapping[str, float]] | None = None,
    *,
    same_setting: bool = False,
    heading: str = "training",
) -> Table:
    """One row a method of one network.

    Args:
        outcomes: of one network.
        quantities: the columns.
        printed: by method and column key, the paper's numbers, in the unit of the column.
        same_setting: whether the paper's setting was this one; only then is a difference shown.
        heading: of the first column.

    Raises:
        ValueError: a printed number belongs to no column.
    """
    keys = [q.column.key for q in quantities]
    shown = {key for row in (printed or {}).values() for key in row}
    if unknown := sorted(shown.difference(keys)):
        raise ValueError(f"printed numbers of {', '.join(unknown)}; the columns are {', '.join(keys)}")
    columns = [Column("method", heading, "text")]
    for quantity in quantities:
        columns.append(quantity.column)
        if quantity.column.key in shown:
            columns += _printed_columns(quantity.column, same_setting)
    some_failed = any(some.good and some.failed for some in (outcomes.of(method=m) for m in outcomes.methods))
    if some_failed:
        columns.append(FAILED_RUNS)
    rows: list[dict[str, Cell]] = []
    for method in outcomes.methods:
        of_method = outcomes.of(method=method)
        failures = [o.result.failure for o in of_method.failed]
        row: dict[str, Cell] = {"method": method}
        if some_failed:
            row["failures"] = failed_seeds(of_method) or "none"
        if not of_method.good:
            rows.append(row | {"_failed": failures[0] if failures else NOT_RUN_YET})
            continue
        for quantity in quantities:
            key, cell = quantity.column.key, quantity.cell(of_method)
            number = (printed or {}).get(method, {}).get(key)
            row |= {key: cell, f"{key}_paper": number}
            if isinstance(cell, Stat) and number is not None:
                row[f"{key}_difference"] = cell.mean - number
        rows.append(row)
    best = {q.column.key: _best(outcomes, q) for q in quantities if q.column.better}
    return Table(columns, rows, best)


def failed_seeds(outcomes: Outcomes) -> str:
    """The seeds of one method that failed, with their reasons; empty where none has."""
    return "; ".join(f"seed {o.seed}: {o.result.failure}" for o in outcomes.failed)


def _printed_columns(column: Column, same_setting: bool) -> list[Column]:
    paper = replace(
        column, key=f"{column.key}_paper", better=None, help=f"{column.label}, as printed in the paper."
    )
    if not same_setting:
        return [replace(paper, label="paper, other setting")]
    difference = replace(
        paper, key=f"{column.key}_difference", label="difference", help="Measured minus printed."
    )
    return [replace(paper, label="paper"), difference]


def _best(outcomes: Outcomes, quantity: Quantity) -> list[int]:
    """The rows of the best mean and of all that a test at 5 %, corrected for their number, does not tell from it.

    Methods take part whose seeds have all ended, did not fail, and have a value.
    """
    methods = [outcomes.of(method=m) for m in outcomes.methods]
    sign = 1.0 if quantity.column.better == "high" else -1.0
    means: dict[int, float] = {}
    for i, method in enumerate(methods):
        cell = quantity.cell(method)
        if isinstance(cell, Stat) and cell.n == len(method.all):
            means[i] = cell.mean
    if len(means) < 2:
        return []
    top = max(means, key=lambda i: sign * means[i])
    others = [i for i in means if i != top]
    compared = [methods[top].compare("best", methods[i], quantity.measure) for i in others]
    p_values = [c.p_above(0.0) if sign > 0 else c.p_below(0.0) for c in compared]
    tied = [i for i, p in zip(others, holm(p_values), strict=True) if p >= LEVEL]
    return [] if len(tied) == len(others) else sorted([top, *tied])


# ---------------------------------------------------------------- frequent columns


def accuracy_of(split: str = "test") -> Quantity:
    """The share of test (or training) points that are classified correctly."""
    label, help = ("clean", "Share of test images classified correctly.")
    if split == "train":
        label, help = ("training accuracy", "Share of training images classified correctly.")
    better: Any = "high" if split == "test" else None
    return Quantity(
        Column(f"accuracy_{split}", label, "percent", better, help), correct_points("accuracy", split=split)
    )


def robust_accuracy_of(label: str, help: str, analysis: str = "robust_accuracy", **where: Any) -> Quantity:
    """The share of test points that stay correct after an attack, of the row with these fields."""
    key = "_".join(
        ["robust", *(f"{value:g}" if isinstance(value, float) else str(value) for value in where.values())]
    )
    return Quantity(Column(key, label, "percent", "high", help), correct_points(analysis, **where))


def typical_norm_of(ord: str, name: str) -> Quantity:
    """The geometric mean of a norm over the linear and convolutional layers: "1", "2" or "inf"."""
    help = f"Geometric mean of the {name} operator norm over the linear and convolutional layers."

    def measure(result: Result) -> float | None:
        return typical_norm(result.find("norm_table"), ord)

    return Quantity(Column(f"norm_{ord}", f"{name} norm", "number", "low", help), measure)


def log_typical_norm(ord: str) -> Callable[[Result], float | None]:
    """log10 of the geometric mean of a norm over the linear and convolutional layers; None where one is 0 or not known."""

    def measure(result: Result) -> float | None:
        norm = typical_norm(result.find("norm_table"), ord)
        return math.log10(norm) if norm else None

    return measure


def value_of(
    key: str, label: str, analysis: str, help: str = "", *, better: Any = None, kind: Any = "number"
) -> Quantity:
    """A field of an analysis's first row."""

    def measure(result: Result) -> float | None:
        return row_of(result, analysis).get(key)

    return Quantity(Column(key, label, kind, better, help), measure)
