"""The standard deviation of each layer's singular values."""

import statistics
from collections.abc import Sequence
from functools import partial

from torch import nn

from opnorm._core.kept_parts import kept
from opnorm._core.settings import check_number
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order, numbered, weight_layers
from opnorm.data import Dataset
from opnorm.errors import NormError
from opnorm.norms import LayerCall, singular_value_spread, singular_values
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, known, method_of


@register("weights")
def singular_spread(relative_error: float = 0.01, failure_probability: float = 1e-3) -> Analysis:
    """The standard deviation of the singular values of each linear and convolutional layer.

    It divides by the number of values, min(inputs, outputs). ``std`` is that of the layer with its own padding and stride,
    for large convolutions an estimate (:func:`opnorm.norms.singular_value_spread`); ``circular_std`` is exact, for the
    convolution on a circle of the input's size, as in the paper (:func:`opnorm.norms.singular_values`).

    Args:
        relative_error: of an estimate, to aim at.
        failure_probability: that the error of an estimate is larger than ``error``, a layer.

    Returns:
        One row a layer, in the order of the forward pass: layer, kind, in_shape, count, std, error, failure_probability
        (0 where std is exact), mean, algorithm, circular_std; note (why a value is missing, or empty).

    Raises:
        ModelError: there is no such layer.

    Source: Wen, Li & Jia 2020, Figs. 1a, 5c and 5d.
    """
    check_number("relative_error", relative_error, "a number above 0", above=0)
    check_number("failure_probability", failure_probability, "a number between 0 and 1", above=0, below=1)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        return [
            kept(partial(_row, call, relative_error, failure_probability))
            for call in weight_layers(model, data)
        ]

    return Analysis(rows, sentence, columns, chart, compare)


def _row(call: LayerCall, relative_error: float, failure_probability: float) -> Row:
    row: Row = {
        "layer": call.name,
        "kind": type(call.layer).__name__,
        "in_shape": list(call.in_shape),
        "note": "",
    }
    try:  # one layer does not hide the others
        spread = singular_value_spread(
            call.layer, call.in_shape, relative_error=relative_error, failure_probability=failure_probability
        )
        row |= {"count": spread.count, "std": spread.std, "error": spread.error, "mean": spread.mean}
        row |= {"failure_probability": spread.failure_probability, "algorithm": spread.method}
        row |= {"circular_std": singular_values(call.layer, call.in_shape, circular=True).std}
    except NormError as e:
        row["note"] = str(e)
    return row


def compare(first: Rows, other: Rows, first_name: str, other_name: str) -> str:
    """Increases and decreases over layers of the same name: with circular padding, and with the layers' own.

    Both sides of a difference are the same quantity. One of estimates counts only where it exceeds the sum of their errors.

    Source: Wen, Li & Jia 2020, B.2.
    """
    others = {row["layer"]: row for row in other}
    pairs = [(row, others[row["layer"]]) for row in first if row["layer"] in others]
    circular = _changes([(a, b) for a, b in pairs if _both(a, b, "circular_std")], "circular_std")
    own = _changes([(a, b) for a, b in pairs if _both(a, b, "std")], "std")
    if not own:
        return ""
    published = f"with circular padding, as in the paper, {circular}; " if circular else ""
    return (
        f"The standard deviation of a layer's singular values, {other_name} against {first_name}: {published}"
        f"with the layers' own padding and stride, {own}."
    )


def _both(a: Row, b: Row, key: str) -> bool:
    return known(a.get(key)) and known(b.get(key))


def _changes(pairs: Sequence[tuple[Row, Row]], key: str) -> str:
    """The numbers of increases and decreases with their sums and means, in words; empty for no pairs."""
    if not pairs:
        return ""

    def error(row: Row) -> float:
        return float(row["error"]) if key == "std" else 0.0

    changes = [b[key] - a[key] for a, b in pairs if abs(b[key] - a[key]) > error(a) + error(b)]
    signs = (("larger", [d for d in changes if d > 0]), ("smaller", [-d for d in changes if d < 0]))
    parts = [
        f"{word} in {len(by)} (by {sum(by):.3g} in sum and {sum(by) / max(len(by), 1):.3g} on average)"
        for word, by in signs
    ]
    return f"{' and '.join(parts)} of {len(pairs)} layers"


def sentence(rows: Rows) -> str:
    measured = [row for row in rows if known(row.get("std"))]
    if not measured:
        return f"The singular values of no layer are known: {rows[0]['note'].rstrip('.')}."
    top = max(measured, key=lambda row: row["std"])
    unknown = len(rows) - len(measured)
    missing = f"; of {unknown} layers they are not known" if unknown else ""
    mean = statistics.fmean(row["std"] for row in measured)
    chance = max(row["failure_probability"] for row in measured)
    worst = max((row["error"] / row["std"] for row in measured if row["std"]), default=0.0)
    accuracy = (
        f" Errors are below {worst:.1%}, in each layer with probability {1 - chance:g}." if chance else ""
    )
    return (
        f"The singular values of a layer have a standard deviation of {mean:.3g} on average, and the largest, "
        f"{top['std']:.3g}, in layer {top['layer'] or '(model)'}{missing}.{accuracy}"
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
    panels = {
        "std": Panel("Standard deviation, with each layer's own padding and stride"),
        "circular_std": Panel("Standard deviation with circular padding, as in the paper"),
    }
    points = [Point(method_of(row), key, name, row.get(key)) for name, _, row in layers for key in panels]
    names = names_in_order((name, place) for name, place, _ in layers)
    return draw_curves(points, methods, heading, panels, Axis(quantity="layer", names=names), columns=1)
