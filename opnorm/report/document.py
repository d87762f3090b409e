"""A report as plain data: a question, findings, claims, tables, charts, and how it was made."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from opnorm._core.confidence import confidence_interval
from opnorm.errors import OpnormError

__all__ = [
    "NOT_RUN_YET",
    "Cell",
    "Chart",
    "Column",
    "Progress",
    "Report",
    "Section",
    "Stat",
    "Table",
    "known",
]

NOT_RUN_YET = "not run yet"
"""Why a row of a table is empty as long as its runs are still to come."""


def known(value: float | None) -> TypeGuard[float]:
    """Whether a value is a finite number; None, NaN and infinities are "not known"."""
    return value is not None and math.isfinite(value)


@dataclass(frozen=True)
class Stat:
    """A mean over seeds.

    Attributes:
        mean: The mean.
        std: The sample standard deviation (divided by n - 1); 0 where n = 1.
        n: How many values went in.
        points: Where the value is a share of points: of how many, the same in every seed.
    """

    mean: float
    std: float
    n: int
    points: int | None = None

    @classmethod
    def share(cls, correct: int, points: int) -> "Stat | None":
        """The share of ``correct`` points of ``points``; None where there are none.

        Example:
            >>> Stat.share(45, 50)
            Stat(mean=0.9, std=0.0, n=1, points=50)
        """
        return cls(correct / points, 0.0, 1, points) if points else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of a share over other points of the same kind; None where it is no share.

        Seeds do not narrow it, since they share the points.

        Example:
            >>> [round(end, 3) for end in Stat.share(45, 50).interval]
            [0.786, 0.957]
        """
        if self.points is None:
            return None
        correct = self.mean * self.points  # a whole number for one seed, to rounding
        low, _ = confidence_interval(math.floor(correct + 1e-6), self.points)
        return low, confidence_interval(math.ceil(correct - 1e-6), self.points)[1]

    @classmethod
    def of(cls, values: Iterable[float | None], points: int | None = None) -> "Stat | None":
        """The mean and spread of the values that are known, shares of ``points`` where that is given; None where none is.

        Example:
            >>> Stat.of([0.5, 0.75, 1.0])
            Stat(mean=0.75, std=0.25, n=3, points=None)
            >>> Stat.of([2.0, None, float("nan")]).n
            1
            >>> Stat.of([]) is None
            True
        """
        xs = [float(v) for v in values if known(v)]
        if not xs:
            return None
        mean = math.fsum(xs) / len(xs)
        var = math.fsum((x - mean) ** 2 for x in xs) / (len(xs) - 1) if len(xs) > 1 else 0.0
        return cls(mean, math.sqrt(var), len(xs), points)

    @classmethod
    def from_cell(cls, value: Any) -> "Stat | None":
        """A cell of the table as a Stat; None where it is not a known number."""
        if isinstance(value, Stat):
            return value if known(value.mean) and known(value.std) else None
        return cls.of([value]) if isinstance(value, int | float) else None


Cell = str | Stat | float | None


@dataclass(frozen=True)
class Column:
    """One column of the table.

    Attributes:
        key: The key of its cells in the rows.
        label: Its heading.
        kind: "text"; "percent", a fraction shown times 100 with one decimal; or "number", three digits.
        better: Which end is the good one; None where neither is.
        help: One sentence for a reader who does not know the quantity.
    """

    key: str
    label: str
    kind: Literal["text", "percent", "number"] = "number"
    better: Literal["high", "low"] | None = None
    help: str = ""


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column names the row, by the label that the charts have for it.

    A missing or None cell is shown as "not known". A row with a key ``"_failed"`` shows its reason across the other columns;
    the reason is :data:`NOT_RUN_YET` where nothing has failed.

    Attributes:
        columns: in order.
        rows: in order.
        best: by column key, the rows that are marked as best; found from the spread of the cells where it is None.
    """

    columns: list[Column]
    rows: list[dict[str, Cell]]
    best: dict[str, list[int]] | None = None


@dataclass(frozen=True)
class Chart:
    """One chart.

    Attributes:
        key: Names its place in the page and its file: lower-case letters, digits and hyphens.
        title: Its heading.
        caption: One or two plain sentences that say how to read it.
        spec: Vega-Lite; ``spec["datasets"]`` holds the data ("rows") and the style of each method ("styles").
    """

    key: str
    title: str
    caption: str
    spec: dict[str, Any]

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", self.key):
            raise OpnormError(
                f"a chart's key is lower-case letters, digits and single hyphens (it becomes a file name), "
                f"not {self.key!r}"
            )

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return self.spec.get("datasets", {}).get("rows") == []

    @property
    def drawable(self) -> bool:
        """Whether there is something to draw, and what draws it; a kept report leaves that out of large charts."""
        return bool(self.spec) and not self.empty

    def _repr_svg_(self) -> str:
        """The picture that a notebook shows."""
        from opnorm.report.page import small_svg  # draws; this module is data

        return small_svg(self.spec, ())


@dataclass(frozen=True)
class Section:
    """A part of a page with its own heading, tables by title and charts; ``key`` names its place, as a chart's does."""

    key: str
    title: str
    text: str = ""
    tables: dict[str, Table] = field(default_factory=dict)
    charts: list[Chart] = field(default_factory=list)


@dataclass(frozen=True)
class Progress:
    """How far the study behind a page was when the page was written.

    Attributes:
        ended: how many runs have ended.
        total: how many there are, as far as is known.
        running: what runs, each as text.
        seconds_left: an estimate; None where nothing is known yet.
        written: when, in seconds since 1970.
    """

    ended: int
    total: int
    running: list[str]
    seconds_left: float | None
    written: float


@dataclass(frozen=True)
class Report:
    """The content of a page, in its order.

    Attributes:
        title: The page's heading.
        question: The question, in a sentence.
        findings: Plain sentences, each with its measured evidence.
        table: One row per method; None where all tables are in sections.
        charts: The charts, in order.
        settings: Code version, git commit, data, network, time taken, machine, command ..., in order.
        runs: The runs behind it: ``key``, ``label``, ``seed`` and ``seconds`` (None where not known).
        highlight: The methods that the charts begin with; all where none is named.
        claims: Of papers, each with its verdict: ``name``, ``sentence``, ``section``, ``outcome``, ``evidence`` and more.
        sections: After the charts.
    """

    title: str
    question: str
    findings: list[str] = field(default_factory=list)
    table: Table | None = None
    charts: list[Chart] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)
    runs: list[dict[str, Any]] = field(default_factory=list)
    highlight: list[str] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    sections: list[Section] = field(default_factory=list)

    @property
    def all_charts(self) -> list[Chart]:
        """Those of the sections included."""
        return [*self.charts, *(chart for section in self.sections for chart in section.charts)]

    def __post_init__(self) -> None:
        keys = [chart.key for chart in self.all_charts]
        for key in sorted({key for key in keys if keys.count(key) > 1}):
            raise OpnormError(f"two charts of one report have the key {key!r}; their files would collide")
