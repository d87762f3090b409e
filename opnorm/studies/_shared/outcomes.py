"""What came out of the runs of a part, by network, method and seed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opnorm.analyses import all_analyses
from opnorm.analyses._shared.by_point import unpack
from opnorm.errors import OpnormError
from opnorm.report import Chart, known
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.paired_tests import Comparison

__all__ = [
    "Case",
    "Measure",
    "MissingError",
    "Outcome",
    "Outcomes",
    "by_point_of",
    "correct_points",
    "row_of",
    "share_that",
]

Measure = Callable[[Result], NDArray[np.bool_] | float | None]
"""A number of a run, or the points that count, as an array of booleans, whose share is meant; None where it is not known."""


class MissingError(OpnormError):
    """What a claim or a table needs was not measured, because a run failed or is still to come."""


@dataclass(frozen=True)
class Case:
    """A run of a part, with the names that its tables and charts give to its network and its method."""

    network: str
    method: str
    run: Run


@dataclass(frozen=True)
class Outcome:
    """A case and its result."""

    case: Case
    result: Result

    @property
    def seed(self) -> int:
        return self.case.run.seed


class Outcomes:
    """The outcomes of cases, in their order.

    Args:
        outcomes: failed ones included.
    """

    def __init__(self, outcomes: Sequence[Outcome]) -> None:
        self.all = list(outcomes)

    @property
    def networks(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(o.case.network for o in self.all))

    @property
    def methods(self) -> list[str]:
        """Their names, in order."""
        return list(dict.fromkeys(o.case.method for o in self.all))

    @property
    def pending(self) -> list[Outcome]:
        """Those whose runs are still to come."""
        return [o for o in self.all if o.result.pending]

    @property
    def failed(self) -> list[Outcome]:
        """Those that have ended and failed."""
        return [o for o in self.all if o.result.failure and not o.result.pending]

    @property
    def good(self) -> list[Outcome]:
        """Those that have ended and did not fail."""
        return [o for o in self.all if not o.result.failure]

    def of(self, network: str | None = None, method: str | None = None) -> "Outcomes":
        """Those of a network, of a method, or of both."""
        return Outcomes(
            [
                o
                for o in self.all
                if network in (None, o.case.network) and method in (None, o.case.method)
            ]
        )  # fmt: skip

    def labeled(self, analysis: str) -> list[dict[str, Any]]:
        """The rows of an analysis, each with its method and its seed, as charts take them."""
        return [_label(o) | row for o in self.good for row in o.result.find(analysis)]

    def chart(self, analysis: str, key: str, title: str) -> list[Chart]:
        """The chart of an analysis over all methods, under another key and title; none where there is nothing to draw."""
        made = next(a for a in all_analyses() if a.name == analysis).factory()
        found = made.chart(self.labeled(analysis), self.methods) if self.good else None
        return [] if found is None or found.empty else [replace(found, key=key, title=title)]

    def metrics(self) -> list[dict[str, Any]]:
        """The metrics of every epoch, each with its method and its seed."""
        return [_label(o) | row for o in self.good for row in o.result.metrics]

    def complete(self) -> "list[Outcome]":
        """All of them.

        Raises:
            MissingError: one of the runs failed, or there is none.
        """
        if not self.all:
            raise MissingError("there is no run of it")
        for o in self.all:
            if o.result.failure:
                why = o.result.failure if o.result.pending else f"failed: {o.result.failure}"
                raise MissingError(f"{o.case.network}, {o.case.method}, seed {o.seed}: {why}")
        return self.all

    def by_seed(self, measure: Callable[[Result], Any]) -> dict[int, Any]:
        """A measure of each seed of one network and method.

        Raises:
            MissingError: one of the runs failed, or there is none.
        """
        return {o.seed: measure(o.result) for o in self.complete()}

    def compare(self, name: str, other: "Outcomes", measure: Measure) -> Comparison:
        """This method minus another one, of the seeds that both have.

        Args:
            name: of the two, as text.
            other: the second.
            measure: of both.

        Raises:
            MissingError: a run failed, or a value is not known.
        """
        first, second = self.by_seed(measure), other.by_seed(measure)
        seeds = [seed for seed in first if seed in second]
        if not seeds:
            raise MissingError(f"{name}: no seed in common")
        for seed in seeds:
            if not all(isinstance(v, np.ndarray) or known(v) for v in (first[seed], second[seed])):
                raise MissingError(f"{name}: a value is not known in seed {seed}")
        pairs = [first[s] for s in seeds], [second[s] for s in seeds]
        if isinstance(pairs[0][0], np.ndarray):
            return Comparison.of_shares(name, *pairs)
        return Comparison.of_values(name, *pairs)


def share_that(
    name: str,
    first: Outcomes,
    second: Outcomes,
    measure: Callable[[Result], Mapping[Any, float]],
    counts: Callable[[float, float], bool],
    share: float,
    measure_second: Callable[[Result], Mapping[Any, float]] | None = None,
) -> Comparison:
    """The share of layers (or ranks) at which the values of two methods stand in a relation, less a share such as one half.

    Args:
        name: of the comparison, as text.
        first: the outcomes of one network and method.
        second: those of another method.
        measure: the values of a run by layer or rank; those that both runs of a seed have count.
        counts: (value of the first, value of the second) -> whether it counts.
        share: that is taken away.
        measure_second: of the second method, where it is measured in another way.

    Raises:
        MissingError: a run failed, or they have no seed, or no layer, in common.
    """
    one, other = first.by_seed(measure), second.by_seed(measure_second or measure)
    counted = [
        [counts(value, other[seed][key]) for key, value in one[seed].items() if key in other[seed]]
        for seed in one
        if seed in other
    ]
    if not counted or not all(counted):
        raise MissingError(f"{name}: nothing in common")
    return Comparison.of_counts(name, counted, share)


def _label(outcome: Outcome) -> dict[str, Any]:
    return {"method": outcome.case.method, "seed": outcome.seed}


def correct_points(analysis: str, **where: Any) -> Callable[[Result], NDArray[np.bool_]]:
    """The test points that are classified correctly, by an analysis that gives ``by_point``.

    Args:
        analysis: such as "accuracy" or "robust_accuracy".
        where: fields of the row, such as ``eps=0.1``.
    """
    return lambda result: by_point_of(row_of(result, analysis, **where))


def by_point_of(row: dict[str, Any]) -> NDArray[np.bool_]:
    """The points that count in a row's share."""
    return unpack(row["by_point"], row["points"])


def row_of(result: Result, analysis: str, **where: Any) -> dict[str, Any]:
    """The first row of an analysis with these fields; OpnormError where there is none."""
    for row in result.find(analysis):
        if all(row.get(name) == value for name, value in where.items()):
            return row
    raise OpnormError(f"{result.run.label}: no row of {analysis} with {where}")
