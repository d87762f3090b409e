"""Bounds of each layer's ℓ2 norm from the literature, beside the certified norm."""

import math
from functools import partial

from torch import nn

from opnorm._core.kept_parts import kept
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order, numbered, weight_layers
from opnorm.data import Dataset
from opnorm.errors import NormError
from opnorm.norms import LayerCall, bound, spectral_norm
from opnorm.report import Axis, Chart, Heading, Panel, Point, draw_curves, known, method_of

NAMES = {
    "thm1": ("Theorem 1 of Liang & Huang", "an upper bound"),
    "sgl": ("Sedghi, Gupta & Long", "raised to hold for zero padding"),
    "vs": ("Virmaux & Scaman", "100 power iterations, a lower bound"),
    "schur": ("sqrt(ℓ1 · ℓ∞)", "an upper bound"),
    "gram": ("Gram iteration", "an upper bound"),
}
"""Bound -> what it is called in sentences and charts, and what it is."""


@register("weights")
def l2_bounds() -> Analysis:
    """The bounds of Liang's Theorem 1, VS, SGL and others for each linear and convolutional layer, beside its norm.

    - thm1: sqrt(h_out w_out Σ K²); schur: sqrt(‖M‖_1 ‖M‖_∞); gram: Gram iteration on the circle that holds the convolution;
    - sgl: the largest singular value with circular padding, times the largest rise between its frequencies;
    - vs: ‖M v‖_2 after 100 power iterations through autograd, from below.

    Returns:
        One row a layer, in the order of the forward pass: layer, kind, in_shape, lower and upper (of the certified norm);
        thm1, schur, gram, sgl (upper bounds) and vs (a lower one), each None where it is not defined for the layer; notes
        (the reasons, by bound).

    Raises:
        ModelError: there is no such layer.

    Source: Liang & Huang 2021, Theorem 1; Virmaux & Scaman 2018; Sedghi, Gupta & Long 2019; Delattre et al. 2023.
    """

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        return [kept(partial(_row, call)) for call in weight_layers(model, data)]

    return Analysis(rows, sentence, chart=chart)


def _row(call: LayerCall) -> Row:
    row: Row = {"layer": call.name, "kind": type(call.layer).__name__, "in_shape": list(call.in_shape)}
    row |= {"lower": None, "upper": None, **dict.fromkeys(NAMES), "notes": {}}
    try:
        norm = spectral_norm(call.layer, call.in_shape)
        row |= {"lower": float(norm.lower), "upper": float(norm.upper)}
    except NormError as e:
        row["notes"]["norm"] = str(e)
    for name in NAMES:
        try:
            found = bound(call.layer, call.in_shape, name)
            end = float(found.lower if name == "vs" else found.upper)
            row[name] = end if math.isfinite(end) else None
        except NormError as e:
            row["notes"][name] = str(e)
    return row


def sentence(rows: Rows) -> str:
    parts = []
    for name, (called, _) in NAMES.items():
        ratios = [ratio for row in rows if (ratio := _ratio(row, name)) is not None]
        if ratios:
            middle = math.exp(math.fsum(map(math.log, ratios)) / len(ratios))
            parts.append(f"{middle:.3g} by {called} ({len(ratios)} of {len(rows)} layers)")
    if not parts:
        return f"No bound is known for its {len(rows)} linear and convolutional layers."
    return f"Bounds of the ℓ2 norms over the norms themselves, geometric means: {'; '.join(parts)}."


def _ratio(row: Row, name: str) -> float | None:
    """A bound over the certified norm's upper end; None where one is not known or not above 0."""
    value, norm = row[name], row["upper"]
    return value / norm if known(value) and known(norm) and value > 0 and norm > 0 else None


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "l2-bounds",
        "Bounds of the layers' ℓ2 norms",
        "Each bound over the certified norm of the layer, from the first layer to the last: an upper bound is at 1 or "
        "above, a lower one at 1 or below, and the closer to 1 the better.",
    )
    layers = numbered(rows)
    panels = {
        name: Panel(f"{called}, {what} (log scale)", log=True) for name, (called, what) in NAMES.items()
    }
    points = [Point(method_of(row), key, name, _ratio(row, key)) for name, _, row in layers for key in panels]
    names = names_in_order((name, place) for name, place, _ in layers)
    return draw_curves(points, methods, heading, panels, Axis(quantity="layer", names=names), columns=1)
