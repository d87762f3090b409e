"""What a shift of scale between the layers changes, and what it leaves as it is."""

import math

from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order
from opnorm.analyses._shared.points import in_double, sample
from opnorm.analyses._weight_energy import weight_energy
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, method_of
from opnorm.theory.weight_scale import balance


@register("weights")
def scale_shift(points: int | None = 100, seed: int = 0) -> Analysis:
    """The shift W_l → γ_l W_l, ∏ γ_l = 1, to equal Frobenius norms, which leaves the function of the network as it is.

    Weight decay Σ ‖W_l‖_2² falls to (L+1) (∏ ‖W_l‖_2²)^{1/(L+1)}, the least that a shift can reach; the weight energy
    ∏ ‖W_l‖_2² of WEISSI and its complexity Σ ‖W_l / ‖W_l‖_2‖_1 do not move. For a chain of linear and convolutional layers
    with positively homogeneous layers between them. Computed on a copy in float64.

    Returns:
        One row: layers, factors (γ_l), sizes and sizes_after (lists of ‖W_l‖_2); decay and least_decay; log10_energy and
        complexity, each also with _after; points, logit_change (the largest at random test points, over the largest logit).

    Raises:
        ModelError: the network is no such chain, or a layer is all zeros.

    Source: Liu et al. 2020, Eqs. 5, 9 to 13.
    """
    check_sample(points, seed)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = sample(model, data, points, seed)
        shifted, x = in_double(model), x.double()
        (before,), logits = weight_energy()(shifted, data), _logits(shifted, x)
        factors = balance(shifted, x[:1])
        (after,), moved = weight_energy()(shifted, data), _logits(shifted, x)
        row: Row = {"layers": before["layers"], "factors": list(factors)}
        for key in ("sizes", "log10_energy", "complexity"):
            row |= {key: before[key], f"{key}_after": after[key]}
        for key, found in (("decay", before), ("least_decay", after)):
            row[key] = math.fsum(size**2 for size in found["sizes"])
        change = (logits - moved).abs().max() / logits.abs().max().clamp(min=1e-300)
        return [row | {"points": len(x), "logit_change": float(change)}]

    return Analysis(rows, sentence, columns, chart)


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    with evaluating(model):
        return output_of(model, x)


def sentence(rows: Rows) -> str:
    (row,) = rows
    return (
        f"A shift of scale between its {len(row['layers'])} layers lowers the weight decay Σ‖W‖² from {row['decay']:.4g} to "
        f"{row['least_decay']:.4g} at the least, and changes the logits of {row['points']} test images by "
        f"{row['logit_change']:.1e} of the largest; the weight complexity is {row['complexity']:.4g} before and "
        f"{row['complexity_after']:.4g} after it."
    )


def columns(rows: Rows) -> Cells:
    (row,) = rows
    help = (
        "Sum of the squared weights over the least value that a shift of scale between the layers can reach."
    )
    column = Column("decay_ratio", "weight decay over its least", "number", None, help)
    return [(column, row["decay"] / row["least_decay"])]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "scale-shift",
        "Shift of scale between the layers",
        "The Frobenius norm of every layer's weight as trained, and after the shift to equal norms, which leaves the "
        "function of the network, its weight energy and its weight complexity as they are, and makes weight decay as small "
        "as it can be.",
    )
    panels = {"sizes": Panel("Norm as trained"), "sizes_after": Panel("Norm after the shift")}
    points, places = [], []
    for row in rows:
        for place, name in enumerate(row["layers"]):
            label = name or "(model)"
            places.append((label, place))
            points += [Point(method_of(row), key, label, row[key][place]) for key in panels]
    return draw_curves(
        points, methods, heading, panels, Axis(quantity="layer", names=names_in_order(places)), columns=1
    )
