"""An analysis: its computation and its display, and the list of all analyses."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, get_args

from torch import nn

from opnorm._core.argument_checks import check_module, named
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_choice
from opnorm.data import Dataset
from opnorm.data.dataset import check_dataset
from opnorm.errors import SpecError
from opnorm.report import Cell, Chart, Column
from opnorm.spec import factory

__all__ = [
    "Analysis",
    "Cells",
    "Methods",
    "Registration",
    "Row",
    "Rows",
    "Section",
    "all_analyses",
    "register",
]

Row = dict[str, Any]
Rows = Sequence[Row]
Methods = Sequence[str]
Cells = list[tuple[Column, Cell]]
Section = Literal["accuracy and robustness", "weights", "confidence", "neighborhood of the data"]
P = ParamSpec("P")


@dataclass(frozen=True, eq=False)
class Analysis:
    """A measurement of a trained network, and how a report shows it. ``analysis(model, data)`` gives the rows.

    Attributes:
        rows: (model, data) -> rows, ready for JSON; the model is unchanged afterwards.
        sentence: the rows of one network -> one or two plain sentences with the measured numbers.
        columns: the rows of one network -> columns of a table, each with its cell.
        chart: (rows, methods) -> a chart of the rows of one network or of several, then each with its ``method`` and
            ``seed``; ``methods`` are all of them in order, the baseline first.
        compare: (rows of the baseline, rows of another network, their names) -> a sentence on the difference, or "".
        caution: the rows of one network -> what would mislead a reader who does not know it, as a sentence, or "".
    """

    rows: Callable[[nn.Module, Dataset], list[Row]]
    sentence: Callable[[Rows], str] = lambda rows: ""
    columns: Callable[[Rows], Cells] = lambda rows: []
    chart: Callable[..., Chart | None] = lambda rows, methods=(): None
    compare: Callable[[Rows, Rows, str, str], str] = lambda first, other, a, b: ""
    caution: Callable[[Rows], str] = lambda rows: ""

    @in_default_modes
    def __call__(self, model: nn.Module, data: Dataset) -> list[Row]:
        """The rows; SpecError where they are no list of dicts that JSON can hold."""
        check_module(model)
        check_dataset(data)
        rows = self.rows(model, data)
        if not isinstance(rows, list | tuple) or not all(isinstance(row, dict) for row in rows):
            raise SpecError(
                f"an analysis gave {named(rows)}; expected its rows, a list of dicts such as [{{'mean': 0.5}}]"
            )
        for name, value in ((name, value) for row in rows for name, value in row.items()):
            try:
                json.dumps({name: value})
            except (TypeError, ValueError) as e:
                raise SpecError(
                    f"an analysis gave {name}={named(value)} in a row; expected what JSON can hold: numbers, text, lists, "
                    "dicts; of a tensor its item() or tolist()"
                ) from e
        return list(rows)


@dataclass(frozen=True)
class Registration:
    """A registered analysis.

    Attributes:
        name: of its function.
        factory: its settings -> :class:`Analysis`.
        section: of a page and of the documentation.
        calls: what "all" asks for, on one chart.
    """

    name: str
    factory: Callable[..., Analysis]
    section: Section
    calls: tuple[str, ...]


_registered: dict[str, Registration] = {}


def register(section: Section, *calls: str) -> Callable[[Callable[P, Analysis]], Callable[P, Analysis]]:
    """Decorate the function that makes an analysis, so that commands, pages and documentation find it.

    Args:
        section: where a page and the documentation show it.
        calls: what "all" asks for; the function's own defaults when none is given.

    Raises:
        SpecError: an unknown section.
    """
    check_choice("section", section, get_args(Section))

    def decorate(function: Callable[P, Analysis]) -> Callable[P, Analysis]:
        made = factory("analysis")(function)
        name = function.__name__
        _registered[name] = Registration(name, made, section, calls or (f"{name}()",))
        return made

    return decorate


def all_analyses() -> list[Registration]:
    """All analyses in the order of a page: by section, then by name."""
    sections = get_args(Section)
    return sorted(_registered.values(), key=lambda one: (sections.index(one.section), one.name))
