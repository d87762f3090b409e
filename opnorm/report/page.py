"""A report as files: one page that works offline, its charts as figures, its content as JSON."""

import base64
import copy
import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm._core.settings import check_choice
from opnorm.errors import OpnormError
from opnorm.report.document import Column, Progress, Report, Stat, Table, known
from opnorm.report.shrinking import shrink_svg
from opnorm.report.tables import duration_text, rough_duration, shown_columns, table_note, table_rows
from opnorm.report.theme import INK, NOTE, PAPER
from opnorm.report.vega import library

__all__ = ["load_libraries", "small_svg", "write_figures", "write_json", "write_page"]

FIGURE_WIDTH = 640
PANEL_WIDTH = 300


def load_libraries() -> None:
    """Load what draws and writes pages: a few seconds, once in a process, which the first page takes otherwise."""
    import altair  # noqa: F401
    import jinja2  # noqa: F401

    library()


def write_page(report: Report, path: Path, progress: Progress | None = None) -> Path:
    """Write the report as one HTML file that loads nothing else, replacing it whole.

    With ``progress`` it is the page of a study that is under way: it says how far that is and reloads itself. It has no
    pictures for readers without JavaScript, since drawing them takes seconds.

    The page forbids itself every connection (Content-Security-Policy); of scripts it runs only its own two,
    named by their hashes, so that no text in a report can become one.
    """
    import jinja2
    from markupsafe import Markup

    source = resources.files("opnorm.report")
    style, script = ((source / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = env.from_string((source / "page.html.jinja").read_text(encoding="utf-8"))
    charts = [chart for chart in report.all_charts if chart.drawable]
    columns, rows, note = _drawn_table(report.table or Table([], []))
    sections = [
        {"about": section, "tables": [(title, *_drawn_table(t)) for title, t in section.tables.items()]}
        for section in report.sections
    ]
    cells = [c for table in _tables(report) for row in table.rows for c in row.values()]
    html = template.render(
        report=report,
        progress=_progress_texts(progress),
        hashes=[_sha256(library()), _sha256(script)],
        style=Markup(style),
        library=Markup(library()),
        script=Markup(script),
        specs=Markup(_inside_script({chart.key: chart.spec for chart in charts})),
        highlight=Markup(_inside_script(report.highlight)),
        theme=Markup(_inside_script({"ink": INK, "note": NOTE, "paper": PAPER})),
        figures={} if progress else {c.key: _picture(c.spec, report.highlight) for c in charts},
        columns=columns,
        rows=rows,
        note=note,
        sections=sections,
        one_seed=any(isinstance(c, Stat) and c.n == 1 for c in cells),
        shares=any(isinstance(c, Stat) and c.interval for c in cells),
        runs=[{**run, "time": duration_text(run.get("seconds"))} for run in report.runs],
        total=duration_text(math.fsum(run["seconds"] for run in report.runs if known(run.get("seconds")))),
    )
    return files.write_bytes(path, html.encode("utf-8", "backslashreplace"))


def _progress_texts(progress: Progress | None) -> dict[str, Any] | None:
    """How far the study is, as the template shows it."""
    if progress is None:
        return None
    left = progress.seconds_left
    return {
        **asdict(progress),
        "left": "" if left is None else f"about {rough_duration(left)} left",
        "time": time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(progress.written)),
    }


def _tables(report: Report) -> list[Table]:
    tables = [table for section in report.sections for table in section.tables.values()]
    return [report.table, *tables] if report.table else tables


def _drawn_table(table: Table) -> tuple[list[Column], list[dict[str, Any]], str]:
    return shown_columns(table), table_rows(table), table_note(table)


def write_json(report: Report, path: Path) -> Path:
    """Write the report's content as JSON; numbers that are not finite become null."""
    files.make_folder(path.parent)
    files.write_json(path, asdict(report))
    return path


def write_figures(report: Report, folder: Path, format: str = "svg") -> list[Path]:
    """Write each chart that has something to draw as ``folder/KEY.FORMAT``, svg, pdf or png; black on white, for a paper."""
    check_choice("format", format, ("svg", "pdf", "png"), OpnormError)
    return [
        files.write_bytes(folder / f"{chart.key}.{format}", _drawn(chart.spec, report.highlight, format))
        for chart in report.all_charts
        if chart.drawable
    ]


def _drawn(spec: Mapping[str, Any], highlight: Sequence[str], format: str) -> bytes:
    import vl_convert

    draw = getattr(vl_convert, f"vegalite_to_{format}")
    scale = {"scale": 2} if format == "png" else {}
    data = draw(_figure(spec, highlight), config=PAPER, allowed_base_urls=[], **scale)
    return data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data


def small_svg(spec: Mapping[str, Any], highlight: Sequence[str]) -> str:
    """A chart as SVG without what cannot be seen, of a third to a tenth of the size."""
    return shrink_svg(_drawn(spec, highlight, "svg").decode())


def _picture(spec: Mapping[str, Any], highlight: Sequence[str]) -> str:
    """A chart as SVG in base64, for readers without JavaScript."""
    return base64.b64encode(small_svg(spec, highlight).encode("utf-8", "backslashreplace")).decode()


def _figure(spec: Mapping[str, Any], highlight: Sequence[str]) -> dict[str, Any]:
    """A copy as wide as a page of paper, with a legend of as many columns as fit, and the same methods highlighted."""
    fixed = copy.deepcopy(dict(spec))
    if highlight:
        fixed["params"][0]["value"] = [{"method": method} for method in highlight]
    grid = fixed["vconcat"][0]
    for panel in grid["concat"]:
        panel["width"] = FIGURE_WIDTH if grid["columns"] == 1 else PANEL_WIDTH
    width = max(FIGURE_WIDTH, PANEL_WIDTH * grid["columns"])
    longest = max(len(style["method"]) for style in fixed["datasets"]["styles"])
    fixed["config"] = {"legend": {"columns": max(1, width // (6 * longest + 46))}}
    return fixed


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _inside_script(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    return files.to_json(value, None).replace("<", "\\u003c")
