"""The standard deviation of each layer's singular values."""

import statistics

from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order, numbered, weight_layers
from opnorm.data import Dataset
from opnorm.errors import NormError
from opnorm.norms.spectral.singular_values import singular_values
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, known, method_of


@register("weights")
def singular_spread() -> Analysis:
    """The standard deviation of the singular values of each linear and convolutional layer.

    It divides by the number of values, min(inputs, outputs). Zero-padded convolutions of more than 2,048 rows and columns
    are taken on a circle instead; ``error`` bounds what that changes of the deviation
    (:mod:`opnorm.norms.spectral.singular_values`).

    Returns:
        One row a layer, in the order of the forward pass: layer, kind, in_shape, count, std, error, mean, largest,
        algorithm, note (why the values are not known, and then there are none).

    Source: Wen, Li & Jia 2020, Figs. 1a, 5c and 5d.
    """

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        found = []
        for call in weight_layers(model, data):
            row: Row = {"layer": call.name, "kind": type(call.layer).__name__}
            row["in_shape"] = list(call.in_shape)
            try:
                values = singular_values(call.layer, call.in_shape)
            except NormError as e:  # one layer does not hide the others
                found.append(row | {"note": str(e)})
                continue
            row |= {"count": len(values.values), "std": values.std, "mean": float(values.values.mean())}
            row |= {"largest": float(values.values[0]), "error": values.error, "algorithm": values.method}
            found.append(row | {"note": ""})
        return found

    return Analysis(rows, sentence, columns, chart, compare)


def compare(first: Rows, other: Rows, first_name: str, other_name: str) -> str:
    """Increases and decreases over layers of the same name; a difference within the errors of both values counts as none.

    Source: Wen, Li & Jia 2020, B.2.
    """
    stds = {row["layer"]: row for row in other if known(row.get("std"))}
    pairs = [(row, stds[row["layer"]]) for row in first if known(row.get("std")) and row["layer"] in stds]
    if not pairs:
        return ""
    changes = [b["std"] - a["std"] for a, b in pairs if abs(b["std"] - a["std"]) > a["error"] + b["error"]]
    signs = {"larger": [d for d in changes if d > 0], "smaller": [-d for d in changes if d < 0]}
    parts = [
        f"{word} in {len(by)} (by {sum(by):.3g} in sum and {sum(by) / max(len(by), 1):.3g} on average)"
        for word, by in signs.items()
    ]
    return (
        f"Of {len(pairs)} layers, the standard deviation of the singular values is, in {other_name} against {first_name}, "
        f"{' and '.join(parts)}."
    )


def sentence(rows: Rows) -> str:
    measured = [row for row in rows if known(row.get("std"))]
    if not measured:
        return f"The singular values of no layer are known: {rows[0]['note'].rstrip('.')}."
    top = max(measured, key=lambda row: row["std"])
    unknown = len(rows) - len(measured)
    missing = f"; of {unknown} layers they are not known" if unknown else ""
    mean = statistics.fmean(row["std"] for row in measured)
    return (
        f"The singular values of a layer have a standard deviation of {mean:.3g} on average, and the largest, "
        f"{top['std']:.3g}, in layer {top['layer'] or '(model)'}{missing}."
    )


def columns(rows: Rows) -> Cells:
    stds = [row["std"] for row in rows if "std" in row]
    help = "Standard deviation of a layer's singular values, mean over the layers."
    column = Column("spread", "singular spread", "number", None, help)
    return [(column, statistics.fmean(stds) if stds else None)]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "singular-spread",
        "Spread of the singular values",
        "The standard deviation of the singular values of each layer, from the first to the last: 0 where a layer lengthens "
        "every direction alike. The smaller they are, the more alike a network treats its inputs, and the less confident it "
        "becomes.",
    )
    layers = numbered(rows)
    points = [Point(method_of(row), "std", name, row.get("std")) for name, _, row in layers]
    names = names_in_order((name, place) for name, place, _ in layers)
    panels = {"std": Panel("Standard deviation of the singular values")}
    return draw_curves(points, methods, heading, panels, Axis(quantity="layer", names=names), columns=1)
