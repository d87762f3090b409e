"""Charts of what the weights say by themselves: norms of the layers, spread of singular values, weight energy.

Each takes the rows of one analysis (:mod:`opnorm.analyses`), every one with its ``method`` and ``seed``; see
:mod:`opnorm.report.charts` for what all charts share.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

from opnorm._core.layers import LINEAR_OR_CONV
from opnorm.report import charts
from opnorm.report.curves import Head, Panel, Point, curves
from opnorm.report.model import Chart, Stat, known
from opnorm.report.vega import (
    ORDS,
    Row,
    Spec,
    all_methods,
    assemble,
    fade,
    grouped,
    line_and_points,
    log_axis,
    log_scale,
    look,
    method_looks,
    number_text,
    short,
    tooltips,
    view,
)

__all__ = ["kde", "layer_norms", "norm_density", "singular_spread", "weight_energy"]

WEIGHTED = tuple(kind.__name__ for kind in LINEAR_OR_CONV)
GRID = 81


def layer_norms(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The norm of every linear and convolutional layer, in the network's order; Liang & Huang 2021, supplement."""
    flat = [
        {**_of(row), "layer": f"{row['layer']} {row['kind']}", "index": i, "ord": p}
        | {"value": norm["lower"], "lower": norm["lower"], "upper": norm["upper"]}
        for group in _by_network(rows)
        for i, row in enumerate(group)
        for p, norm in row["norms"].items()
        if row["kind"] in WEIGHTED
    ]
    return charts.layer_norms(flat, methods, baseline=baseline)


def norm_density(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """How the norms of the layers are distributed; Liang & Huang 2021, Fig. 2.

    The density is that of log10 of the norm, so the area under a line is 1 where a decade has the width 1.
    """
    order = all_methods(rows, methods)
    flat = [
        {"panel": p, "method": str(row["method"]), "value": norm["lower"]}
        for row in rows
        if row["kind"] in WEIGHTED
        for p, norm in row["norms"].items()
        if known(norm["lower"]) and norm["lower"] > 0
    ]
    values: list[Spec] = []
    views = []
    for panel in (p for p in ORDS if any(row["panel"] == p for row in flat)):
        own = [row for row in flat if row["panel"] == panel]
        logs = {
            key[0]: [math.log10(v) for v in group]
            for key, group in grouped(own, ("method",), "value").items()
        }
        lines = {method: _density(xs) for method, xs in logs.items()}
        for method in (m for m in order if m in logs):
            values += [
                {
                    "panel": panel,
                    "method": method,
                    "norm": short(10**x),
                    "density": short(y),
                    "text": f"{10**x:.3g}",
                }
                for x, y in lines[method]
            ]
            values += [
                {
                    "panel": panel,
                    "method": method,
                    "rug": short(10**x),
                    "text": number_text(Stat(10**x, 0.0, 1)),
                }
                for x in sorted(logs[method])
            ]
        views.append(_density_view(panel, [10**x for line in lines.values() for x, _ in line]))
    looks = method_looks((v["method"] for v in values), order, baseline)
    return Chart(
        "norm-density",
        "How are the layers' norms distributed?",
        "The share of layers at each size of the norm (Gaussian kernel density of its logarithm, so that equal factors are "
        "equally wide); the ticks below are the layers. A hump further right is a network of larger norms.",
        assemble(
            views, values, looks, "Density of the layers' norms, one line per method.", dots=False, columns=3
        ),
    )


def kde(values: Sequence[float], at: Sequence[float], bandwidth: float) -> list[float]:
    """Gaussian kernel density of the values: mean of N(v, bandwidth²) over them, at each place.

    Example:
        >>> [round(y, 4) for y in kde([0.0], [0.0, 1.0], 1.0)]
        [0.3989, 0.242]
    """
    scale = len(values) * bandwidth * math.sqrt(2 * math.pi)
    return [math.fsum(math.exp(-0.5 * ((x - v) / bandwidth) ** 2) for v in values) / scale for x in at]


def singular_spread(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The standard deviation of each layer's singular values; Wen, Li & Jia 2020, Figs. 1a, 5c and 5d."""
    head = Head(
        "singular-spread",
        "How evenly do the layers treat their inputs?",
        "The standard deviation of the singular values of each layer, from the first to the last: 0 where a layer lengthens "
        "every direction alike. The smaller they are, the more alike a network treats what it sees, and the less sure it "
        "becomes of its answers.",
        "",
        columns=1,
    )
    named = [
        {**row, "at": f"{row['layer']} {row['kind']}", "index": i}
        for group in _by_network(rows)
        for i, row in enumerate(group)
    ]
    panels = {"std": Panel("Standard deviation of the singular values")}
    return curves(
        named,
        methods,
        baseline,
        head,
        panels,
        lambda row: [("std", row["at"], row.get("std"))],
        _in_order(named),
    )


def weight_energy(rows: Sequence[Row], methods: Sequence[str], *, baseline: str = "plain") -> Chart:
    """The size of each layer and its part in the complexity; Liu et al. 2020, Fig. 2 by layers."""
    head = Head(
        "weight-energy",
        "Weight energy and complexity, layer by layer",
        "Left: the size of each layer's weights (Frobenius norm), the product of whose squares is the weight energy. Right: "
        "the sum of absolute weights over that size, which is small where few weights do the work; their sum is the "
        "complexity.",
        "",
    )
    panels = {
        "size": Panel("Size of the weights (log scale)", log=True),
        "complexity": Panel("Absolute weights over the size (log scale)", log=True),
    }

    def points(row: Row) -> Iterator[Point]:
        for layer, size, part in zip(_names(row), row["sizes"], row["complexities"], strict=True):
            yield "size", layer, size
            yield "complexity", layer, part

    named = [{"at": layer, "index": i} for row in rows for i, layer in enumerate(_names(row))]
    return curves(rows, methods, baseline, head, panels, points, _in_order(named))


def _names(row: Row) -> list[str]:
    return [f"{layer} {kind}" for layer, kind in zip(row["layers"], row["kinds"], strict=True)]


def _of(row: Row) -> dict[str, object]:
    return {"method": str(row["method"]), "seed": row["seed"]}


def _by_network(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each method and seed, in their order."""
    groups: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        groups.setdefault((str(row["method"]), row["seed"]), []).append(row)
    return list(groups.values())


def _in_order(named: Iterable[Row]) -> list[str]:
    """Names by their mean place, so that networks of other layers fit between."""
    places: dict[str, list[float]] = {}
    for row in named:
        places.setdefault(row["at"], []).append(float(row["index"]))
    return sorted(places, key=lambda name: (math.fsum(places[name]) / len(places[name]), name))


def _density(logs: Sequence[float]) -> list[tuple[float, float]]:
    """(place, density) from end to end; the bandwidth by Scott's rule, never below 0.02."""
    mean = math.fsum(logs) / len(logs)
    std = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / max(len(logs) - 1, 1))
    bandwidth = max(std * len(logs) ** -0.2, 0.02)
    low, high = min(logs) - 3 * bandwidth, max(logs) + 3 * bandwidth
    grid = [low + (high - low) * k / (GRID - 1) for k in range(GRID)]
    return list(zip(grid, kde(logs, grid, bandwidth), strict=True))


def _density_view(panel: str, ends: Sequence[float]) -> Spec:
    axis = {**log_axis(ends), "title": f"{ORDS[panel]} norm (log scale)"}
    x: Spec = {"type": "quantitative", "scale": log_scale(ends), "axis": axis}
    y: Spec = {
        "field": "density",
        "type": "quantitative",
        "axis": {"title": None, "format": "~g", "tickCount": 4},
    }
    encoding = {"x": {**x, "field": "norm"}, "y": y}
    lines = [
        {**layer, "transform": [{"filter": "isValid(datum.density)"}]}
        for layer in line_and_points(
            encoding, tooltips(("method", "method"), ("text", "norm")), 40, dots=False
        )
    ]
    rug = {
        "transform": [{"filter": "isValid(datum.rug)"}],
        "mark": {"type": "tick", "orient": "vertical", "thickness": 1.5, "size": 10, "yOffset": -5},
        "encoding": {
            "x": {**x, "field": "rug"},
            "y": {"datum": 0, "type": "quantitative"},
            "tooltip": tooltips(("method", "method"), ("text", "norm of a layer")),
            **look("color"),
            **fade(0.7),
        },
    }
    return view(panel, f"Density of the {ORDS[panel]} norms", [rug, *lines], 220)
