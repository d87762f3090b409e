"""The norms of a network's layers as a bar plot, drawn by altair and vl-convert; nothing is loaded from the network."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opnorm._core.files import atomic_write
from opnorm._core.plot_names import check_plot_name
from opnorm.errors import NormError
from opnorm.norms import display

__all__ = ["norm_chart", "write_plot"]

# Paul Tol's "vibrant" scheme, as in opnorm.report: distinct for readers with the common color deficiencies
COLORS = ("#0077bb", "#ee7733", "#009988", "#cc3311", "#33bbee", "#ee3377", "#aa8800", "#8866cc")
CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {"gridColor": "#dddddd", "labelColor": "black", "titleColor": "black"},
    "title": {"color": "black", "fontSize": 12, "anchor": "start"},
}
PANEL_WIDTH = 240
ROW_HEIGHT = 13


def norm_chart(rows: Sequence[Any]) -> Any:
    """An altair chart of the rows of a NormTable: layers from top to bottom, one panel a norm, log scale.

    A bar ends at the lower end of a norm; a pale bar continues to the upper one. Layers without parameters are left out.

    Raises:
        NormError: no layer has a norm above 0.
    """
    import altair as alt

    values = [
        {
            "index": index, "layer": row.layer or "(model)", "kind": row.kind, "norm": display.label(p),
            "lower": float(f"{norm.lower:.6g}"),
            "upper": float(f"{norm.upper if math.isfinite(norm.upper) else norm.lower:.6g}"),
            "text": display.cell(norm), "input": display.shape(row.in_shape),
        }
        for index, row in enumerate(rows)
        for p, norm in row.norms.items()
        if row.parameters and norm.lower > 0
    ]  # fmt: skip
    if not values:
        raise NormError("there is nothing to draw: no layer with parameters has a norm above 0")
    low, high = min(v["lower"] for v in values) / 1.5, max(v["upper"] for v in values) * 1.1
    kinds = list(dict.fromkeys(v["kind"] for v in values))
    names = {v["index"]: v["layer"] for v in values}
    # an axis of indices labeled by name: a layer that is called twice has two bars
    labels = alt.Axis(
        title=None, ticks=False, domain=False, labelLimit=220, labelOverlap=False,
        labelExpr=_lookup(names),
    )  # fmt: skip
    x_axis = alt.Axis(
        title=None, format="~g" if low > 1e-4 and high < 1e6 else ".0e", tickCount=5, labelOverlap=True
    )
    scale = alt.Scale(type="log", domain=[low, high], nice=False)
    colors = alt.Scale(domain=kinds, range=[COLORS[i % len(COLORS)] for i in range(len(kinds))])
    legend = alt.Legend(title=None, orient="bottom", columns=4, symbolOpacity=1)
    titles = {"layer": "layer", "kind": "kind", "input": "input", "text": "norm"}
    data, panels = alt.Data(values=values), []
    for i, name in enumerate(dict.fromkeys(v["norm"] for v in values)):
        base = alt.Chart(data, width=PANEL_WIDTH, height=ROW_HEIGHT * len(names)).encode(
            y=alt.Y("index:O", sort=list(names), axis=labels if i == 0 else None),
            color=alt.Color("kind:N", scale=colors, legend=legend),
            tooltip=[alt.Tooltip(f"{field}:N", title=title) for field, title in titles.items()],
        )
        solid = base.mark_bar(height=ROW_HEIGHT - 4).encode(
            x=alt.X("lower:Q", scale=scale, axis=x_axis), x2=alt.datum(low)
        )
        pale = base.mark_bar(height=ROW_HEIGHT - 4, opacity=0.35).encode(
            x=alt.X("upper:Q", scale=scale, axis=x_axis), x2="lower"
        )
        panel = alt.layer(solid, pale, title=f"{name} norm (log scale)")
        panels.append(panel.transform_filter(alt.FieldEqualPredicate(field="norm", equal=name)))
    return alt.hconcat(*panels, data=data, spacing=12, config=CONFIG).resolve_scale(
        y="shared", color="shared"
    )


def _lookup(names: dict[int, str]) -> str:
    """An expression of Vega that gives the name of an index."""
    quoted = (n.replace("\\", "\\\\").replace("'", "\\'") for n in names.values())
    return " : ".join(f"datum.value == {i} ? '{n}'" for i, n in zip(names, quoted, strict=True)) + " : ''"


def write_plot(rows: Sequence[Any], path: Path) -> Path:
    """Write the chart; see :meth:`opnorm.norms.NormTable.plot`."""
    ending = check_plot_name(path)
    chart = norm_chart(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        chart.save(part, format=ending, scale_factor=2, **{"inline": True} if ending == "html" else {})
    return path
