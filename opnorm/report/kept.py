"""Reports in a repository: their content as JSON with six digits, and their charts as small pictures."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm.errors import RunError
from opnorm.report.document import Chart, Column, Report, Section, Stat, Table
from opnorm.report.page import small_svg

__all__ = ["keep_report", "read_report"]

MOST_DATA = 100_000
"""Bytes of a chart that are kept beside its picture."""


def keep_report(report: Report, folder: Path) -> Path:
    """Write a report as ``folder/report.json`` and its charts as ``folder/KEY.svg``, to be committed to a repository.

    Numbers have six digits. Of a chart with more than 100 kB of data the picture is kept, and the data, which only draw it,
    are not. An earlier report in the folder is replaced, with its charts; other files there stay.

    Returns:
        The path of ``report.json``.

    Raises:
        RunError: nothing can be written there, or what stands there as ``report.json`` is no report.
    """
    files.make_folder(folder)
    path = folder / "report.json"
    earlier = read_report(path).all_charts if path.exists() else []
    for key in {chart.key for chart in earlier} - {
        chart.key for chart in report.all_charts if not chart.empty
    }:
        (folder / f"{key}.svg").unlink(missing_ok=True)
    for chart in report.all_charts:
        if chart.drawable:
            files.write_bytes(folder / f"{chart.key}.svg", small_svg(chart.spec, report.highlight).encode())
    content = _six_digits(asdict(report))
    for part in (content, *content["sections"]):
        for chart in part["charts"]:
            if len(json.dumps(chart["spec"])) > MOST_DATA:
                chart["spec"] = {}
    files.write_json(path, content)
    return path


def read_report(path: Path) -> Report:
    """The report that :func:`~opnorm.report.write_json` or :func:`keep_report` has written.

    Raises:
        RunError: the file cannot be read, or holds something else.
    """
    content = files.read_json(path)
    try:
        table, charts = content["table"], _charts(content["charts"])
        sections = [
            Section(
                s["key"],
                s["title"],
                s["text"],
                {t: _table(v) for t, v in s["tables"].items()},
                _charts(s["charts"]),
            )
            for s in content["sections"]
        ]
        made = {"table": _table(table) if table else None, "charts": charts, "sections": sections}
        return Report(**{**content, **made})
    except (AttributeError, KeyError, TypeError) as e:
        raise RunError(f"{path} is not the report of a study ({type(e).__name__}: {e})") from e


def _six_digits(value: Any) -> Any:
    """A value with its floats rounded to six digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _six_digits(inner) for key, inner in value.items()}
    return [_six_digits(inner) for inner in value] if isinstance(value, list | tuple) else value


def _charts(charts: Sequence[Mapping[str, Any]]) -> list[Chart]:
    return [Chart(**chart) for chart in charts]


def _table(table: Mapping[str, Any]) -> Table:
    rows = [
        {key: Stat(**cell) if isinstance(cell, dict) else cell for key, cell in row.items()}
        for row in table["rows"]
    ]
    return Table([Column(**column) for column in table["columns"]], rows, table["best"])
