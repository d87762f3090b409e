"""The norms of a network's layers as a bar plot: Vega-Lite, drawn by vl-convert, nothing loaded from elsewhere."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opnorm.errors import NormError
from opnorm.norms import display as show

if TYPE_CHECKING:
    from opnorm.norms.table import NormTable

__all__ = ["spec", "write_plot"]

# Paul Tol's "vibrant" scheme, as in opnorm.report: told apart by readers with the common color deficiencies
COLORS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#aa8800", "#8866cc")
CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "#dddddd",
        "labelColor": "black",
        "titleColor": "black",
        "titleFontWeight": "normal",
    },
    "title": {"color": "black", "fontSize": 12},
}
PANEL_WIDTH = 240
ROW_HEIGHT = 13


def spec(table: "NormTable") -> dict[str, Any]:
    """A Vega-Lite chart: layers from top to bottom, one panel a norm, log scale.

    A bar ends at the lower end of a norm; a pale piece reaches on to the upper one. Activations are left out.

    Raises:
        NormError: no layer has a norm above 0.
    """
    values: list[dict[str, Any]] = []
    for index, row in enumerate(table.rows):
        for p, norm in row.norms.items():
            low, high = float(norm.lower), float(norm.upper)
            if row.parameters and low > 0:
                values.append(
                    {
                        "index": index,
                        "layer": row.layer or "(model)",
                        "kind": row.kind,
                        "norm": show.label(p),
                        "lower": float(f"{low:.6g}"),
                        "upper": float(f"{high if math.isfinite(high) else low:.6g}"),
                        "text": show.cell(norm),
                        "input": show.shape(row.in_shape),
                    }
                )
    if not values:
        raise NormError("there is nothing to draw: no layer with parameters has a norm above 0")
    low = min(v["lower"] for v in values) / 1.5
    high = max(v["upper"] for v in values) * 1.1
    kinds = list(dict.fromkeys(v["kind"] for v in values))
    names = {v["index"]: v["layer"] for v in sorted(values, key=lambda v: v["index"])}
    # an ordinal axis of indices, shown by name: a layer that is called twice has two bars
    labels = " : ".join(f"datum.value == {i} ? {show_text(n)}" for i, n in names.items()) + " : ''"
    panels = []
    for i, name in enumerate(dict.fromkeys(v["norm"] for v in values)):
        axis = {"title": None, "labelExpr": labels, "labelLimit": 220, "labelOverlap": False}
        axis |= {"ticks": False, "domain": False}
        y: dict[str, Any] = {
            "field": "index",
            "type": "ordinal",
            "axis": axis if i == 0 else None,
            "sort": list(names),
        }
        digits = "~g" if high < 1e6 and low > 1e-4 else ".0e"
        x_axis = {"title": None, "format": digits, "tickCount": 5, "labelOverlap": True}
        x: dict[str, Any] = {
            "field": "lower",
            "type": "quantitative",
            "scale": {"type": "log", "domain": [low, high], "nice": False},
            "axis": x_axis,
        }
        color: dict[str, Any] = {
            "field": "kind",
            "type": "nominal",
            "scale": {"domain": kinds, "range": colors(len(kinds))},
        }
        color["legend"] = {"title": None, "orient": "bottom", "columns": 4, "symbolOpacity": 1}
        titles = {"layer": "layer", "kind": "kind", "input": "input", "text": "norm"}
        tooltip = [{"field": f, "type": "nominal", "title": t} for f, t in titles.items()]
        encoding: dict[str, Any] = {"y": y, "color": color, "tooltip": tooltip}
        solid = {
            "mark": {"type": "bar", "height": ROW_HEIGHT - 4},
            "encoding": {**encoding, "x": x, "x2": {"datum": low}},
        }
        pale = {
            "mark": {"type": "bar", "height": ROW_HEIGHT - 4, "opacity": 0.35},
            "encoding": {**encoding, "x": {**x, "field": "upper"}, "x2": {"field": "lower"}},
        }
        panels.append(
            {
                "title": {"text": f"{name} norm (log scale)", "anchor": "start"},
                "transform": [{"filter": {"field": "norm", "equal": name}}],
                "width": PANEL_WIDTH,
                "height": ROW_HEIGHT * len(names),
                "layer": [solid, pale],
            }
        )
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "description": "Operator norm of every layer, one panel per norm.",
        "data": {"values": values},
        "hconcat": panels,
        "spacing": 12,
        "resolve": {"scale": {"y": "shared", "color": "shared"}},
    }


def show_text(name: str) -> str:
    """A name as a string of Vega's expression language."""
    return "'" + name.replace("\\", "\\\\").replace("'", "\\'") + "'"


def colors(count: int) -> list[str]:
    """So many colors; beyond eight they repeat."""
    return [COLORS[i % len(COLORS)] for i in range(count)]


def write_plot(table: "NormTable", path: Path) -> Path:
    """Write the chart; see :meth:`opnorm.norms.NormTable.plot`."""
    import vl_convert

    from opnorm._core.files import atomic_write

    chart = spec(table)
    options: dict[str, Any] = {"config": CONFIG, "allowed_base_urls": []}
    match path.suffix.lower():
        case ".svg":
            data = vl_convert.vegalite_to_svg(chart, **options).encode()
        case ".pdf":
            data = vl_convert.vegalite_to_pdf(chart, **options)
        case ".png":
            data = vl_convert.vegalite_to_png(chart, **options, scale=2)
        case ".html":
            data = vl_convert.vegalite_to_html(chart, bundle=True, config=CONFIG).encode()
        case other:
            raise NormError(f"a plot's name ends in .svg, .pdf, .png or .html, not {other!r}")
    with atomic_write(path) as part:
        part.write_bytes(data)
    return path
