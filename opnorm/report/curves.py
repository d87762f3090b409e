"""Charts of one line a method against a number, or against names in order, in one panel or several."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from opnorm.report.model import Chart
from opnorm.report.vega import (
    Row,
    Spec,
    all_methods,
    assemble,
    bars,
    grouped,
    line_and_points,
    log_axis,
    log_scale,
    mean_of,
    method_looks,
    number_text,
    percent_text,
    short,
    tooltips,
    view,
)

__all__ = ["Head", "Panel", "Point", "curves"]


class Head(NamedTuple):
    """What a chart is about.

    Attributes:
        key: see :class:`opnorm.report.Chart`.
        title: likewise.
        caption: likewise.
        x_title: of the horizontal axis; empty where it holds names.
        x_log: a log scale, which leaves out what is not above 0.
        dots: whether each point is marked.
        columns: at most so many panels side by side.
    """

    key: str
    title: str
    caption: str
    x_title: str
    x_log: bool = False
    dots: bool = True
    columns: int = 2


class Panel(NamedTuple):
    """Title and vertical axis of a panel."""

    title: str
    log: bool = False
    percent: bool = False


Point = tuple[str, float | str, float | None]
"""(panel, x, value); an x in words makes an ordinal axis."""


def curves(
    rows: Sequence[Row],
    methods: Sequence[str],
    baseline: str,
    head: Head,
    panels: dict[str, Panel],
    points: Callable[[Row], Iterable[Point]],
    sort: Sequence[str] = (),
) -> Chart:
    """One line a method in every panel, averaged over seeds.

    Args:
        rows: each with its ``method``.
        methods: all labels, in order.
        baseline: the label drawn in black.
        head: what the chart is about.
        panels: in order; those without points are left out.
        points: what a row shows.
        sort: the names on the horizontal axis, in order; none where it holds numbers.
    """
    order = all_methods(rows, methods)
    flat = [
        {"panel": panel, "method": str(row["method"]), "x": x, "value": value}
        for row in rows
        for panel, x, value in points(row)
        if isinstance(x, str) or not (head.x_log and x <= 0)
    ]
    values: list[Spec] = []
    for (panel, method, x), members in grouped(flat, ("panel", "method", "x"), "value").items():
        stat, look = mean_of(members), panels[panel]
        if look.log and stat.mean <= 0:
            continue
        low = max(stat.mean - stat.std, stat.mean / 100) if look.log else stat.mean - stat.std
        values.append(
            {
                "panel": panel,
                "method": method,
                "x": x,
                "value": short(stat.mean),
                "lo": short(low),
                "hi": short(stat.mean + stat.std),
                "at": x if isinstance(x, str) else f"{x:.4g}",
                "text": percent_text(stat) if look.percent else number_text(stat),
            }
        )
    names, places = list(panels), {name: i for i, name in enumerate(sort)}
    values.sort(key=lambda v: (names.index(v["panel"]), order.index(v["method"]), places.get(v["x"], v["x"])))
    looks = method_looks((v["method"] for v in values), order, baseline)
    views = [
        _view(name, panel, own, head, sort)
        for name, panel in panels.items()
        if (own := [v for v in values if v["panel"] == name])
    ]
    description = f"{head.title} One line per method."
    spec = assemble(views, values, looks, description, dots=head.dots, columns=head.columns)
    return Chart(head.key, head.title, head.caption, spec)


def _view(name: str, panel: Panel, values: list[Spec], head: Head, sort: Sequence[str]) -> Spec:
    x: Spec = {"field": "x", "type": "quantitative", "scale": {"nice": False}}
    x["axis"] = {"title": head.x_title, "labelOverlap": True, "format": "~g"}
    if sort:
        x = {
            "field": "x",
            "type": "ordinal",
            "sort": list(sort),
            "axis": {"title": None, "labelAngle": -30, "labelLimit": 110, "labelOverlap": len(sort) > 8},
        }
    elif head.x_log:
        places = [v["x"] for v in values]
        x |= {"scale": log_scale(places), "axis": {**log_axis(places), "title": head.x_title}}
    y: Spec = {
        "field": "value",
        "type": "quantitative",
        "axis": {"title": None, "format": "~%" if panel.percent else "~g", "tickCount": 5},
    }
    if panel.log:
        ends = [v[end] for v in values for end in ("lo", "hi")]
        y |= {"axis": log_axis(ends), "scale": log_scale(ends)}
        if panel.percent:
            y["axis"]["format"] = ".1~%"
    encoding = {"x": x, "y": y}
    tooltip = tooltips(("method", "method"), ("at", head.x_title.split(" (")[0] or "what"), ("text", "value"))
    layer = [bars(encoding, "y", "lo", "hi"), *line_and_points(encoding, tooltip, 50, dots=head.dots)]
    return view(name, panel.title, layer, 260)
