"""Weight energy and complexity."""

import math
from typing import Any

from torch import nn

from opnorm._core.derived_weights import weight_of
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order, weight_layers
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, method_of


@register("weights")
def weight_energy() -> Analysis:
    """Weight energy ∏_l ‖W_l‖_2² and complexity Σ_l ‖W_l / ‖W_l‖_2‖_1, of Frobenius norms and sums of absolute values.

    Linear and convolutional layers count, tied weights once. The energy is given by its logarithm: it leaves the range of
    numbers in networks of a few tens of layers.

    Returns:
        One row: log10_energy (None where a weight is all 0, so that the energy is 0), complexity (layers of zeros left out),
        and lists by layer: layers, kinds, sizes (‖W_l‖_2), complexities.

    Source: Liu et al. 2020, Eq. 13 and Fig. 2.
    """

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        layers: dict[nn.Module, tuple[str, Any]] = {}
        for call in weight_layers(model, data):
            weight = weight_of(call.layer)
            if call.layer not in layers and not any(weight is other for _, other in layers.values()):
                layers[call.layer] = call.name, weight
        weights = [weight.detach().double() for _, weight in layers.values()]
        sizes = [float(weight.norm()) for weight in weights]
        parts = [float(w.abs().sum()) / size if size else 0.0 for w, size in zip(weights, sizes, strict=True)]
        energy = 2 * math.fsum(math.log10(size) for size in sizes) if all(sizes) else None
        row: Row = {"log10_energy": energy, "complexity": math.fsum(parts)}
        row["layers"] = [name for name, _ in layers.values()]
        row["kinds"] = [type(layer).__name__ for layer in layers]
        return [row | {"sizes": sizes, "complexities": parts}]

    return Analysis(rows, sentence, columns, chart)


def sentence(rows: Rows) -> str:
    row = rows[0]
    energy = "0 (a weight is all zeros)" if row["log10_energy"] is None else f"10^{row['log10_energy']:.1f}"
    return f"Its weight energy is {energy}, its weight complexity {row['complexity']:.4g}, over {len(row['layers'])} layers."


def columns(rows: Rows) -> Cells:
    help = "Power of ten of the product of the squared sizes of the layers' weights."
    return [(Column("energy", "log₁₀ weight energy", "number", None, help), rows[0]["log10_energy"])]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "weight-energy",
        "Weight energy and complexity by layer",
        "Left: the size of each layer's weights (Frobenius norm), the product of whose squares is the weight energy. Right: "
        "the sum of absolute weights over that size, which is small where few weights are large; their sum is the "
        "complexity.",
    )
    panels = {
        "sizes": Panel("Size of the weights (log scale)", log=True),
        "complexities": Panel("Absolute weights over the size (log scale)", log=True),
    }
    points, places = [], []
    for row in rows:
        names = [f"{layer} {kind}" for layer, kind in zip(row["layers"], row["kinds"], strict=True)]
        places += [(name, i) for i, name in enumerate(names)]
        for key in panels:
            points += [Point(method_of(row), key, *pair) for pair in zip(names, row[key], strict=True)]
    return draw_curves(points, methods, heading, panels, Axis(quantity="layer", names=names_in_order(places)))
