"""A report's table as text: cells with three digits, their standard deviations, and the best of each column."""

import math
from typing import Any

from opnorm.report.document import NOT_RUN_YET, Cell, Column, Stat, Table

__all__ = ["duration_text", "marks_note", "rough_duration", "shown_columns", "table_note", "table_rows"]

PRINTED = "_paper"
"""How the key of a column ends that has the paper's numbers, after the key of the column that they belong to."""


def shown_columns(table: Table) -> list[Column]:
    """The columns with cells of their own. Numbers of a paper stand in the cells of what is compared with them."""
    keys = {column.key for column in table.columns}
    return [c for c in table.columns if not (c.key.endswith(PRINTED) and c.key.removesuffix(PRINTED) in keys)]


def table_rows(table: Table) -> list[dict[str, Any]]:
    """The rows in the form of the template: each cell's text, spread, sort key, and its ``mark``, see :func:`marks_note`.

    The cells are those of :func:`shown_columns`; ``printed`` is the paper's number, "" where there is none.
    """
    columns, printed = shown_columns(table), {column.key: column for column in table.columns}
    marks = {column.key: _marks(table, column) for column in columns}
    rows = []
    for number, row in enumerate(table.rows):
        cells = [_cell(row.get(c.key), c) | {"mark": marks[c.key].get(number, "")} for c in columns]
        for cell, column in zip(cells, columns, strict=True):
            paper = printed.get(f"{column.key}{PRINTED}")
            cell["printed"] = (paper and _cell(row.get(paper.key), paper)["text"]) or ""
        failed = row.get("_failed")
        reason = failed if failed in (None, NOT_RUN_YET) else f"failed: {failed}"
        rows.append({"cells": cells, "reason": reason})
    return rows


def table_note(table: Table) -> str:
    """What is in parentheses, and what bold and italic mean; empty where there is nothing of them."""
    shown = {column.key for column in shown_columns(table)}
    printed = [column.label for column in table.columns if column.key not in shown]
    labels = dict.fromkeys(label.replace("paper", "the paper's number", 1) for label in printed)
    return " ".join(
        filter(None, [f"In parentheses: {'; '.join(labels)}." if labels else "", marks_note(table)])
    )


def marks_note(table: Table) -> str:
    """What bold (the mark "best") and italic ("tied") mean in a table; empty where no cell is marked."""
    if not any(_marks(table, column) for column in table.columns):
        return ""
    if table.best is None:
        return (
            "Bold: the best of a column. Italic: what lies within one standard deviation of it or, of a share with one "
            "seed, within its interval."
        )
    return (
        "Bold: the best mean of a column. Italic: the means that a test at 5 %, corrected for their number, does not tell "
        "from it."
    )


def _marks(table: Table, column: Column) -> dict[int, str]:
    """By row: "best" for the best mean of those that are marked, "tied" for the others."""
    marked = _best(table, column) if table.best is None else table.best.get(column.key, ())
    means = {n: stat.mean for n in marked if (stat := Stat.from_cell(table.rows[n].get(column.key)))}
    sign = -1.0 if column.better == "low" else 1.0
    top = max(means, key=lambda n: sign * means[n], default=None)
    return {n: "best" if n == top else "tied" for n in means}


def _cell(value: Cell, column: Column) -> dict[str, Any]:
    """One cell: ``text`` and ``sort`` (None where not known), ``spread``, ``interval`` and ``title`` (or "")."""
    cell = {"text": None, "sort": None, "spread": "", "interval": "", "title": ""}
    stat = Stat.from_cell(value)
    if isinstance(value, str):
        cell |= {"text": value, "sort": value}
    elif stat is not None:
        scale, digits = (100, 1) if column.kind == "percent" else (1, _digits(stat.mean))
        cell |= {"text": _number(scale * stat.mean, digits), "sort": repr(stat.mean)}
        if stat.n > 1:
            cell["spread"] = f"±\u2009{_number(scale * stat.std, digits)}"
            cell["title"] = f"mean ± standard deviation, {stat.n} seeds"
        if stat.interval is not None:
            low, high = (_number(100 * end, 1) for end in stat.interval)
            cell["interval"] = f"{low}–{high}, n\u00a0=\u00a0{stat.points:,}"
    return cell


def _digits(x: float) -> int | None:
    """Decimals that show three digits of a number; None where it needs a power of ten."""
    if x == 0:
        return 0
    power = math.floor(math.log10(abs(float(f"{x:.2e}"))))
    return None if power < -3 or power > 6 else max(0, 2 - power)


def _number(x: float, digits: int | None) -> str:
    """A number with so many decimals; with three digits and a power of ten where ``digits`` is None."""
    if digits is not None:
        return f"{x:,.{digits}f}".replace("-", "\u2212")
    mantissa, power = f"{x:.2e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa} × 10{raised}".replace("-", "\u2212")


def _best(table: Table, column: Column) -> set[int]:
    """The rows with the best value and those within one standard deviation of it, or, of shares with one seed, the interval.

    None is marked where that is every row, or where there is one row only.
    """
    cells = {n: row.get(column.key) for n, row in enumerate(table.rows) if not row.get("_failed")}
    stats = {n: stat for n, cell in cells.items() if (stat := Stat.from_cell(cell))}
    if column.better is None or len(stats) < 2:
        return set()
    sign = 1.0 if column.better == "high" else -1.0
    top = max(stats.values(), key=lambda stat: sign * stat.mean)
    tied = {n for n, stat in stats.items() if abs(top.mean - stat.mean) <= max(_margin(top), _margin(stat))}
    return set() if len(tied) == len(stats) else tied


def _margin(stat: Stat) -> float:
    """The standard deviation over seeds; half the interval of a share with one seed."""
    if stat.n > 1 or stat.interval is None:
        return stat.std
    return (stat.interval[1] - stat.interval[0]) / 2


def duration_text(seconds: float | None) -> str:
    """A time as text: "48 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "not known"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"


def rough_duration(seconds: float) -> str:
    """An estimated time as text, rounded up: "20 s", "4 min", "2 h 10 min".

    Example:
        >>> [rough_duration(s) for s in (3, 80, 130, 3700, 86400)]
        ['10 s', '80 s', '3 min', '62 min', '24 h']
    """
    if seconds <= 90:
        return f"{10 * max(1, math.ceil(seconds / 10))} s"
    minutes = math.ceil(seconds / 60)
    if minutes <= 90:
        return f"{minutes} min"
    hours, tens = divmod(math.ceil(minutes / 10), 6)
    return f"{hours} h {10 * tens} min" if tens else f"{hours} h"
