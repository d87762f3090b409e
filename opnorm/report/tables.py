"""A report's table as text: cells with three digits, their standard deviations, and the best of each column."""

import math
from typing import Any

from opnorm.report.document import Cell, Column, Stat, Table

__all__ = ["duration_text", "table_rows"]


def table_rows(table: Table) -> list[dict[str, Any]]:
    """The rows in the form of the template: each cell's text, spread, sort key, and if it is a best one."""
    best = {column.key: _best(table, column) for column in table.columns}
    rows = []
    for number, row in enumerate(table.rows):
        cells = [_cell(row.get(c.key), c) | {"best": number in best[c.key]} for c in table.columns]
        rows.append({"cells": cells, "failed": row.get("_failed")})
    return rows


def _cell(value: Cell, column: Column) -> dict[str, Any]:
    """One cell: ``text``, ``spread`` (or ""), ``sort`` (None where not known) and ``title``."""
    if isinstance(value, str):
        return {"text": value, "spread": "", "sort": value, "title": ""}
    stat = Stat.from_cell(value)
    if stat is None:
        return {"text": None, "spread": "", "sort": None, "title": ""}
    scale, digits = (100, 1) if column.kind == "percent" else (1, _digits(stat.mean))
    text, spread, title = _number(scale * stat.mean, digits), "", "1 seed"
    if stat.n > 1:
        spread = f"±\u2009{_number(scale * stat.std, digits)}"
        title = f"mean ± standard deviation, {stat.n} seeds"
    title = title if isinstance(value, Stat) else ""
    return {"text": text, "spread": spread, "sort": repr(stat.mean), "title": title}


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
    """The rows with the best value and those within one standard deviation of it.

    None is marked where that is every row, or where there is one row only.
    """
    cells = {n: row.get(column.key) for n, row in enumerate(table.rows) if not row.get("_failed")}
    stats = {n: stat for n, cell in cells.items() if (stat := Stat.from_cell(cell))}
    if column.better is None or len(stats) < 2:
        return set()
    sign = 1.0 if column.better == "high" else -1.0
    top = max(stats.values(), key=lambda stat: sign * stat.mean)
    tied = {n for n, stat in stats.items() if abs(top.mean - stat.mean) <= max(top.std, stat.std)}
    return set() if len(tied) == len(stats) else tied


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
