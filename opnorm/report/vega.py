"""What all charts of a report share: colors, legends that select, scales, texts of tooltips."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opnorm.report.model import Stat, known

Row = Mapping[str, Any]
Spec = dict[str, Any]

INK = "#1f2328"
"""The baseline's color; the page puts its own text color in its place, for dark screens."""
NOTE = "#59636e"
"""The color of words and lines inside a chart; the page replaces it too."""

# Paul Tol's "vibrant" scheme with an ochre and a violet: told apart by readers with the common color
# deficiencies and readable on white and on black. Beyond eight, dashes and symbols tell methods apart.
PALETTE = ["#0077bb", "#ee7733", "#009988", "#cc3311", "#22a7dd", "#ee3377", "#aa8800", "#8866cc"]
DASHES = [[1, 0], [7, 3], [2, 2], [8, 2, 2, 2]]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"]
ORDS = {"1": "ℓ₁", "2": "ℓ₂", "inf": "ℓ∞"}


def all_methods(rows: Iterable[Row], methods: Sequence[str]) -> list[str]:
    """All methods: those given, then those only the rows name."""
    return list(dict.fromkeys([*methods, *(str(row["method"]) for row in rows)]))


def grouped(rows: Iterable[Row], by: Sequence[str], value: str) -> dict[tuple[Any, ...], list[float]]:
    """The known values of each group (never none), groups in order of appearance."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        if known(row.get(value)):
            groups.setdefault(tuple(row[key] for key in by), []).append(float(row[value]))
    return groups


def mean_of(values: Iterable[float]) -> Stat:
    """The Stat of a group, which has a known value."""
    stat = Stat.of(values)
    assert stat is not None, "a group has at least one known value"
    return stat


def short(x: float) -> float:
    """Five digits: more cannot be seen and would only make the page larger."""
    return float(f"{x:.5g}")


def seeds_text(n: int) -> str:
    """How many seeds, in words."""
    return "1 seed" if n == 1 else f"{n} seeds"


def percent_text(stat: Stat) -> str:
    """A fraction as a percentage with its spread."""
    spread = f" ± {100 * stat.std:.1f}" if stat.n > 1 else ""
    return f"{100 * stat.mean:.1f}{spread} % ({seeds_text(stat.n)})"


def number_text(stat: Stat) -> str:
    """A number with its spread."""
    spread = f" ± {stat.std:.2g}" if stat.n > 1 else ""
    return f"{stat.mean:.3g}{spread} ({seeds_text(stat.n)})"


def eps_text(eps: float, norm: str) -> str:
    """ε as a number, and as n/255 where a pixel's change is a whole number of gray levels."""
    if eps == 0:
        return "0 (clean)"
    n = round(255 * eps)
    whole = norm == "inf" and n > 0 and math.isclose(n, 255 * eps, rel_tol=1e-4)
    return f"{eps:.4g} = {n}/255" if whole else f"{eps:.4g}"


def method_looks(present: Iterable[str], order: Sequence[str], baseline: str) -> list[Spec]:
    """Each method that a chart shows, with its ``color``, ``strokeDash`` and ``shape``."""
    others = [method for method in order if method != baseline]
    seen = set(present)
    looks = []
    for method in order:
        if method not in seen:
            continue
        entry: Spec = {"method": method, "color": INK, "strokeDash": DASHES[0], "shape": SHAPES[0]}
        if method != baseline:
            i = others.index(method)
            entry["color"] = PALETTE[i % len(PALETTE)]
            entry["strokeDash"] = DASHES[i // len(PALETTE) % len(DASHES)]
            entry["shape"] = SHAPES[(i + 1) % len(SHAPES)]
        looks.append(entry)
    return looks


def look(*channels: str) -> Spec:
    """Encodings that take color, dash or shape as `assemble` looks them up for each row."""
    return {"detail": {"field": "method"}} | {
        c: {"field": c, "type": "nominal", "scale": None} for c in channels
    }


def fade(on: float = 1.0, off: float = 0.08) -> Spec:
    """Opacity: ``on`` for the methods picked in the legend, or for all where none is; ``off`` for the others.

    The page lets the pointer pass through symbols of opacity 0.08 or 0, so that they hide no tooltip.
    """
    return {"opacity": {"condition": {"param": "pick", "value": on}, "value": off}}


def only_picked(on: float) -> Spec:
    """Opacity: shown only once the method is picked, so that the spreads of many do not pile up."""
    return {"opacity": {"condition": {"param": "pick", "value": on, "empty": False}, "value": 0}}


def tooltips(*fields: tuple[str, str]) -> list[Spec]:
    """Tooltip lines from (field, title) pairs; the fields hold ready texts."""
    return [{"field": name, "title": title, "type": "nominal"} for name, title in fields]


def log_scale(values: Iterable[float]) -> Spec:
    """A log scale a little wider than the values, which may be one value or none."""
    xs = [x for x in values if x > 0] or [1.0]
    return {"type": "log", "domain": [short(min(xs) / 1.15), short(max(xs) * 1.15)], "nice": False}


def log_axis(values: Iterable[float]) -> Spec:
    """Ticks at 1, 2 and 5 times the powers of ten, or at the powers alone where there are many."""
    low, high = log_scale(values)["domain"]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1,), (1, 2, 5), range(1, 10)):
        if len(ticks) < 3:
            ticks = [t for k in powers for d in digits if low <= (t := short(d * 10.0**k)) <= high]
    if len(ticks) < 2:
        ticks = [float(f"{t:.3g}") for t in (low * 1.15, high / 1.15)]
    number_format = ".0e" if high >= 1e6 or low < 1e-3 else ",~g"
    return {"title": None, "values": sorted(set(ticks)), "format": number_format, "labelOverlap": True}


def line_and_points(encoding: Spec, tooltip: list[Spec], size: int, dots: bool = True) -> list[Spec]:
    """A line through points that carry the tooltips; without dots the points are there but cannot be seen."""
    line = {
        "mark": {"type": "line", "strokeWidth": 2, "clip": True},
        "encoding": {**encoding, **look("color", "strokeDash"), **fade()},
    }
    opacity = fade() if dots else fade(on=0.001, off=0)
    point = {
        "mark": {"type": "point", "filled": True, "size": size},
        "encoding": {**encoding, **look("color", "shape"), "tooltip": tooltip, **opacity},
    }
    return [line, point]


def bars(encoding: Spec, channel: str, low: str, high: str) -> Spec:
    """Error bars along one channel, from the field ``low`` to the field ``high``."""
    ends = {channel: {**encoding[channel], "field": low}, f"{channel}2": {"field": high}}
    return {
        "mark": {"type": "rule", "strokeWidth": 1.5},
        "encoding": {**encoding, **ends, **look("color"), **fade(0.65)},
    }


def assemble(
    panels: list[Spec],
    values: list[Spec],
    looks: list[Spec],
    description: str,
    *,
    dots: bool = True,
    columns: int = 2,
) -> Spec:
    """Panels in a grid over one legend that selects.

    Vega-Lite cannot merge the legends of layers that fade differently. So the legend belongs to a view of its
    own that shows nothing else, and the panels take colors, dashes and shapes from a look-up.

    Args:
        panels: From `view`; the page chooses their width and the columns of the grid.
        values: The rows of all panels.
        looks: From `method_looks`.
        description: For readers who cannot see the chart.
        dots: Whether the legend shows symbols; if not, lines.
        columns: At most so many panels side by side.
    """
    legend = {"title": None, "orient": "bottom", "symbolSize": 90 if dots else 300, "labelLimit": 320}

    def channel(name: str) -> Spec:
        scale = {"domain": [m["method"] for m in looks], "range": [m[name] for m in looks]}
        return {"field": "method", "type": "nominal", "scale": scale, "legend": legend}

    pick = {
        "name": "pick",
        # a finger has no shift key: each tap adds or removes
        "select": {
            "type": "point",
            "fields": ["method"],
            "toggle": "event.shiftKey || event.pointerType === 'touch'",
        },
        "bind": "legend",
    }
    names = ("color", "shape") if dots else ("color", "strokeDash")
    legend_view = {
        "data": {"values": looks},
        "params": [pick],
        "mark": {"type": "point", "filled": True, "size": 0} if dots else {"type": "line", "strokeWidth": 2},
        "width": 1,
        "height": 1,
        "encoding": {**{name: channel(name) for name in names}, **fade()},
    }
    from_looks = {"data": {"values": looks}, "key": "method", "fields": ["color", "strokeDash", "shape"]}
    grid = {
        "transform": [{"lookup": "method", "from": from_looks}],
        "concat": [{**panel, "width": 300} for panel in panels],
        "columns": min(columns, len(panels)),
    }
    return {
        "description": description,
        "data": {"values": values},
        "vconcat": [grid, legend_view],
        "spacing": 0,
        "resolve": {"scale": dict.fromkeys(names, "independent")},
    }


def view(panel: str, title: str, layer: list[Spec], height: int) -> Spec:
    """One panel: the rows whose ``panel`` is its name, drawn by its layers."""
    return {
        "title": {"text": title, "anchor": "start"},
        "transform": [{"filter": {"field": "panel", "equal": panel}}],
        "height": height,
        "layer": layer,
    }


def as_stat(value: Any) -> Stat | None:
    """A cell of the table as a Stat; None where it is not a known number."""
    if isinstance(value, Stat):
        return value if known(value.mean) and known(value.std) else None
    return Stat.of([value]) if isinstance(value, int | float) else None
