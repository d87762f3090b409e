"""Charts drawn by altair: lines, error bars, and a legend that highlights methods. The only module that loads altair.

The legend belongs to a view of its own, since Vega-Lite cannot merge the legends of layers that fade differently; the
panels take color, dash and symbol of a method from a look-up. The page replaces widths and the columns of the grid.

Each mark is drawn by altair and put in its place as a dict: altair copies whole charts whenever it combines some.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from opnorm.report.curves import Axis, Heading, Panel
from opnorm.report.document import Chart
from opnorm.report.theme import NOTE, method_styles, significant

__all__ = ["assemble", "bars", "linear_axis", "log_axis", "panel", "symbols", "tooltips", "view"]

ROWS, STYLES = alt.NamedData("rows"), alt.NamedData("styles")
# a finger has no shift key: each tap adds or removes
PICK = alt.selection_point(
    name="pick", fields=["method"], toggle="event.shiftKey || event.pointerType === 'touch'", bind="legend"
)
COLOR = alt.Color("color:N").scale(None)
SHAPE = alt.Shape("shape:N").scale(None)
DASH = alt.StrokeDash("strokeDash:N").scale(None)
HEIGHT = 260


def faded(on: float = 1.0, off: float = 0.08) -> alt.OpacityValue:
    """Opacity ``on`` for the methods picked in the legend, or for all where none is; ``off`` for the others.

    The page lets the pointer pass through symbols of opacity 0.08 or 0, so that they hide no tooltip.
    """
    return alt.OpacityValue(off, condition={"param": PICK.name, "value": on})


def tooltips(*fields: tuple[str, str]) -> list[alt.Tooltip]:
    """Tooltip lines from (field, title) pairs; the fields hold ready texts."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in fields]


def linear_axis(channel: Any, percent: bool = False, values: Iterable[float] = ()) -> Any:
    """A linear scale on the channel; labels have powers of ten only where the values are very large or small."""
    largest = max(map(abs, values), default=0.0)
    # six digits: with fewer, as Vega chooses them, neighboring ticks may be 0.1 and 0.12, both written 0.1
    text = "~%" if percent else ".6~r" if 1e-3 <= largest < 1e6 else ".6~g"
    return channel.axis(title=None, format=text, tickCount=5)


def log_axis(
    channel: Any, values: Iterable[float], *, title: str | None = None, percent: bool = False
) -> Any:
    """A log scale on the channel, a little wider than the values.

    Ticks are at powers of ten; where these are few, at 2 and 5 times them too; where these are few, at all digits.
    """
    positive = [x for x in values if x > 0] or [1.0]
    low, high = significant(min(positive) / 1.15), significant(max(positive) * 1.15)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        if len(ticks) < 3:
            ticks = [t for k in powers for d in digits if low <= (t := significant(d * 10.0**k)) <= high]
    if len(ticks) < 2:
        ticks = [significant(t, 3) for t in (low * 1.15, high / 1.15)]
    text = ".4~%" if percent else ".2~e" if high >= 1e6 or low < 1e-4 else ",~g"
    return channel.axis(title=title, values=sorted(set(ticks)), format=text, labelOverlap=True).scale(
        type="log", domain=[low, high], nice=False
    )


def symbols(chart: alt.Chart, tooltip: list[alt.Tooltip], size: int, *, visible: bool = True) -> alt.Chart:
    """Symbols that carry the tooltips, with x and y as the chart has them."""
    opacity = faded() if visible else faded(on=0.001, off=0)
    return chart.mark_point(filled=True, size=size).encode(
        color=COLOR, shape=SHAPE, opacity=opacity, tooltip=tooltip
    )


def bars(chart: alt.Chart, **ends: Any) -> alt.Chart:
    """Error bars: ``y`` and ``y2``, or ``x`` and ``x2``, as the lower and the upper end."""
    return chart.mark_rule(strokeWidth=1.5).encode(color=COLOR, opacity=faded(0.65), **ends)


def _as_dict(chart: alt.Chart) -> dict[str, Any]:
    """The chart as Vega-Lite, without altair's own look: the page and the figures have theirs."""
    with alt.data_transformers.enable("default", consolidate_datasets=False):
        spec = chart.to_dict(validate=False)  # most of the time otherwise; the tests draw every chart
    return {key: value for key, value in spec.items() if key not in ("$schema", "config")}


def view(key: str, title: str, layers: Sequence[alt.Chart], height: int = HEIGHT) -> dict[str, Any]:
    """One panel: the rows whose ``panel`` is its key, drawn by its layers."""
    drawn = [_as_dict(layer) for layer in layers]
    for layer in drawn:
        del layer["data"]  # that of the grid, filtered
    heading = {"text": title, "anchor": "start"}
    own = {"filter": {"field": "panel", "equal": key}}
    return {"layer": drawn, "transform": [own], "title": heading, "width": 300, "height": height}


def panel(
    key: str, panel: Panel, axis: Axis, values: Sequence[dict[str, Any]], *, dots: bool, band: bool
) -> dict[str, Any]:
    """One panel of :func:`opnorm.report.curves.draw_curves`."""
    x = _horizontal(axis, [value["x"] for value in values])
    ends = [v[end] for v in values if "value" in v for end in (("value",) if band else ("lo", "hi"))]

    def vertical(field: str) -> Any:
        y = alt.Y(f"{field}:Q")
        if panel.log:
            return log_axis(y, ends, percent=panel.percent)
        y = linear_axis(y, panel.percent, ends)
        return y.scale(domain=list(panel.limits)) if panel.limits else y.scale(zero=panel.zero)

    rows = alt.Chart(ROWS).encode(x=x, detail="method:N")
    curve = rows.encode(y=vertical("value"))
    quantity = axis.name
    fields = [("method", "method"), ("text", panel.quantity)]
    if quantity != "method":
        fields.insert(1, ("at", quantity))
    tooltip = tooltips(*fields, *([("note", panel.note)] if panel.note else []))
    spread = {"y": vertical("lo"), "y2": "hi"}
    shade = bars(rows, **spread)
    if band:  # of the methods that are picked, so that many do not pile up
        picked = alt.OpacityValue(0, condition={"param": PICK.name, "value": 0.2, "empty": False})
        shade = rows.mark_area(clip=True, tooltip=None).encode(color=COLOR, opacity=picked, **spread)
    line = curve.mark_line(strokeWidth=2, clip=True).encode(color=COLOR, strokeDash=DASH, opacity=faded())
    layers = [shade, line, symbols(curve, tooltip, 50, visible=dots and panel.dots)]
    if any("rug" in value for value in values):
        layers = [_rug(rows, quantity), *(layer.transform_filter("isValid(datum.value)") for layer in layers)]
    if axis.mark is not None:
        layers = [*_mark(*axis.mark), *layers]
    return view(key, panel.title, layers)


def _horizontal(axis: Axis, places: Sequence[Any]) -> alt.X:
    if axis.names:
        overlap: Any = "parity" if len(axis.names) > 8 else False
        return alt.X("at:O", sort=list(axis.names)).axis(
            title=axis.title or None, labelAngle=-40, labelLimit=110, labelOverlap=overlap
        )
    x = alt.X("x:Q")
    if axis.log:
        return log_axis(x, places, title=axis.title)
    settings: dict[str, Any] = {"values": list(axis.ticks)} if axis.ticks else {}
    if axis.levels:
        settings["labelExpr"] = "datum.value ? round(255 * datum.value) + '/255' : '0'"
    x = x.axis(title=axis.title, labelOverlap="greedy", labelSeparation=6, format=".6~g", **settings)
    return x.scale(nice=False, zero=axis.zero)


def _rug(rows: alt.Chart, quantity: str) -> alt.Chart:
    ticks = rows.mark_tick(orient="vertical", thickness=1.5, size=10, yOffset=-5)
    tooltip, bottom = tooltips(("method", "method"), ("at", quantity)), alt.datum(0, type="quantitative")
    on_axis = ticks.encode(y=bottom, color=COLOR, opacity=faded(0.7), tooltip=tooltip)
    return on_axis.transform_filter("isValid(datum.rug)")


def _mark(place: float, text: str) -> list[alt.Chart]:
    once = alt.Chart(ROWS).transform_aggregate(n="count()").encode(x=alt.datum(place, type="quantitative"))
    words = once.mark_text(text=text, align="left", dx=6, baseline="top", color=NOTE)
    return [once.mark_rule(strokeDash=[4, 3], color=NOTE), words.encode(y=alt.value(2))]


def assemble(
    heading: Heading,
    panels: Sequence[dict[str, Any]],
    values: list[dict[str, Any]],
    methods: Sequence[str],
    *,
    dots: bool = True,
    columns: int = 2,
) -> Chart:
    """Panels (from :func:`view`) in a grid over one legend that selects, of symbols (``dots``) or of lines."""
    styles = method_styles((str(value["method"]) for value in values), methods)
    spec: dict[str, Any] = {}
    if panels:
        look = {"data": STYLES.to_dict(), "key": "method", "fields": ["color", "strokeDash", "shape"]}
        styled = {"lookup": "method", "from": look}
        grid = {"data": ROWS.to_dict(), "concat": list(panels), "columns": min(columns, len(panels))}
        legend, own = _legend(styles, dots)
        spec = {
            "vconcat": [grid | {"transform": [styled]}, legend],
            "spacing": 0,
            "description": f"{heading.title.rstrip('.?')}. One line or symbol per method.",
            "params": [param | {"views": [legend["name"]]} for param in legend.pop("params")],
            "resolve": {"scale": dict.fromkeys(own, "independent")},
        }
    spec["datasets"] = {"rows": values, "styles": styles}
    return Chart(heading.key, heading.title, heading.caption, spec)


def _legend(styles: Sequence[dict[str, Any]], dots: bool) -> tuple[dict[str, Any], tuple[str, str]]:
    """The view that has the legend and shows nothing else, and which of its scales are its own."""
    key = alt.Legend(title=None, orient="bottom", symbolSize=90 if dots else 300, labelLimit=320)

    def channel(kind: Any, name: str) -> Any:
        scale = alt.Scale(domain=[s["method"] for s in styles], range=[s[name] for s in styles])
        return kind("method:N", scale=scale, legend=key)

    color, mark = channel(alt.Color, "color"), alt.Chart(STYLES, name="legend")
    if dots:
        view = mark.mark_point(filled=True, size=0).encode(color=color, shape=channel(alt.Shape, "shape"))
    else:
        dash = channel(alt.StrokeDash, "strokeDash")
        view = mark.mark_line(strokeWidth=2).encode(color=color, strokeDash=dash)
    view = view.encode(opacity=faded()).properties(width=1, height=1).add_params(PICK)
    return _as_dict(view), ("color", "shape" if dots else "strokeDash")
