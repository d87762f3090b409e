"""A report as files: one page that works offline, its charts as figures, its content as JSON."""

import base64
import copy
import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import Any

from opnorm._core.files import atomic_write
from opnorm.errors import OpnormError
from opnorm.report.model import Cell, Column, Report, Stat, Table, known

__all__ = ["write_figures", "write_json", "write_page"]

FIGURE_WIDTH = 640
PANEL_WIDTH = 300
FIGURE_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "#dddddd",
        "labelColor": "black",
        "titleColor": "black",
        "titleFontWeight": "normal",
    },
    "legend": {"labelColor": "black"},
    "title": {"color": "black", "fontSize": 12},
}


def write_page(report: Report, path: Path) -> Path:
    """Write the report as one HTML file that loads nothing else, replacing it whole.

    The page forbids itself every connection (Content-Security-Policy); of scripts it runs only its own two,
    named by their hashes, so that no text in a report can become one.
    """
    import jinja2
    from markupsafe import Markup

    source = files("opnorm.report")
    style, script = ((source / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    env = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = env.from_string((source / "page.html.jinja").read_text(encoding="utf-8"))
    charts = [chart for chart in report.charts if not chart.empty]
    html = template.render(
        report=report,
        hashes=[_sha256(_library()), _sha256(script)],
        style=Markup(style),
        library=Markup(_library()),
        script=Markup(script),
        specs=Markup(_inside_script({chart.key: chart.spec for chart in charts})),
        highlight=Markup(_inside_script(report.highlight)),
        columns=report.table.columns,
        rows=_rows(report.table),
        one_seed=any(isinstance(c, Stat) and c.n == 1 for row in report.table.rows for c in row.values()),
        runs=[{**run, "time": _duration(run.get("seconds"))} for run in report.runs],
        total=_duration(math.fsum(run["seconds"] for run in report.runs if known(run.get("seconds")))),
    )
    return _replace(path, html.encode())


def write_json(report: Report, path: Path) -> Path:
    """Write the report's content as JSON; numbers that are not finite become null."""
    text = json.dumps(_finite(asdict(report)), ensure_ascii=False, allow_nan=False, indent=1)
    return _replace(path, text.encode())


def write_figures(report: Report, folder: Path, format: str = "svg") -> list[Path]:
    """Write every chart that has something to draw as ``folder/KEY.FORMAT``; black on white, for a paper.

    Args:
        report: The report.
        folder: Made if it is missing.
        format: "svg", "pdf" or "png".
    """
    import vl_convert

    if format not in ("svg", "pdf", "png"):
        raise OpnormError(f"a figure's format is 'svg', 'pdf' or 'png', not {format!r}")
    paths = []
    for chart in report.charts:
        if chart.empty:
            continue
        spec = _figure(chart.spec, report.highlight)
        if format == "svg":
            data = vl_convert.vegalite_to_svg(spec, config=FIGURE_CONFIG, allowed_base_urls=[]).encode()
        elif format == "pdf":
            data = vl_convert.vegalite_to_pdf(spec, config=FIGURE_CONFIG, allowed_base_urls=[])
        else:
            data = vl_convert.vegalite_to_png(spec, config=FIGURE_CONFIG, allowed_base_urls=[], scale=2)
        paths.append(_replace(folder / f"{chart.key}.{format}", data))
    return paths


def _figure(spec: Mapping[str, Any], highlight: Sequence[str]) -> dict[str, Any]:
    """A copy as wide as a page of paper, with a legend of as many columns as fit, and the same methods highlighted."""
    fixed = copy.deepcopy(dict(spec))
    if highlight and "vconcat" in fixed:
        fixed["vconcat"][1]["params"][0]["value"] = [{"method": method} for method in highlight]
    width = FIGURE_WIDTH
    if "vconcat" in fixed:
        grid = fixed["vconcat"][0]
        width = max(FIGURE_WIDTH, PANEL_WIDTH * grid["columns"])
        for panel in grid["concat"]:
            panel["width"] = FIGURE_WIDTH if grid["columns"] == 1 else PANEL_WIDTH
    longest = max((len(str(row.get("method", ""))) for row in fixed["data"]["values"]), default=1)
    fixed["config"] = {**fixed.get("config", {}), "legend": {"columns": max(1, width // (6 * longest + 30))}}
    return fixed


@functools.cache
def _library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script; Vega-Embed is ``window.vegaEmbed``."""
    import vl_convert

    script = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    if "</script" in script.lower() or "<!--" in script:
        script = script.replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return script.replace("\r\n", "\n")


def _sha256(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _inside_script(value: Any) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace(
        "<", "\\u003c"
    )


def _finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _replace(path: Path, data: bytes) -> Path:
    """Write a file whole or not at all."""
    path = Path(path)
    with atomic_write(path) as part:
        part.write_bytes(data)
    return path


def _rows(table: Table) -> list[dict[str, Any]]:
    """The rows as the template wants them: each cell's text, spread, sort key, and if it is a best one."""
    best = {column.key: _best(table, column) for column in table.columns}
    rows = []
    for number, row in enumerate(table.rows):
        cells = [
            {**_cell(row.get(column.key), column), "best": number in best[column.key]}
            for column in table.columns
        ]
        rows.append({"cells": cells, "failed": row.get("_failed")})
    return rows


def _cell(value: Cell, column: Column) -> dict[str, Any]:
    """One cell: ``text``, ``spread`` (or ""), ``sort`` (None where not known) and ``title``."""
    if isinstance(value, str):
        return {"text": value, "spread": "", "sort": value, "title": ""}
    stat = value if isinstance(value, Stat) else None
    mean = stat.mean if stat else value
    if mean is None or isinstance(mean, Stat) or not math.isfinite(mean):
        return {"text": None, "spread": "", "sort": None, "title": ""}
    scale = 100.0 if column.kind == "percent" else 1.0
    digits = 1 if column.kind == "percent" else _digits(mean)
    spread = f"±\u2009{_number(scale * stat.std, digits)}" if stat and stat.n > 1 else ""
    title = "" if stat is None else "1 seed" if stat.n == 1 else f"mean ± standard deviation, {stat.n} seeds"
    return {
        "text": _number(scale * mean, digits),
        "spread": spread,
        "sort": repr(float(mean)),
        "title": title,
    }


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
    """The rows with the best value and those that a standard deviation cannot tell from it.

    None is marked where that is every row, or where there is one row only.
    """
    stats = {}
    for number, row in enumerate(table.rows):
        value = row.get(column.key)
        stat = (
            value if isinstance(value, Stat) else Stat.of([value]) if isinstance(value, int | float) else None
        )
        if stat and math.isfinite(stat.mean) and not row.get("_failed"):
            stats[number] = stat
    if column.better is None or len(stats) < 2:
        return set()
    sign = 1.0 if column.better == "high" else -1.0
    top = max(stats.values(), key=lambda stat: sign * stat.mean)
    tied = {n for n, stat in stats.items() if abs(top.mean - stat.mean) <= max(top.std, stat.std)}
    return set() if len(tied) == len(stats) else tied


def _duration(seconds: float | None) -> str:
    """A time as a reader says it: "48 s", "3 min 20 s", "2 h 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return "not known"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60:,} h {minutes % 60} min"
