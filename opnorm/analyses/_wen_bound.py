"""The generalization bound of Wen's Theorem 3.1, term by term."""

import math
from dataclasses import replace

from torch import nn

from opnorm._core.settings import check_number, check_optional_amount, check_positive
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import names_in_order
from opnorm.analyses._shared.points import batches
from opnorm.certificates import lipschitz_radius
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, method_of
from opnorm.theory import Covering, GeneralizationBound, generalization_bound


@register("confidence")
def wen_bound(
    gamma: float = 1.0,
    cover_eps: float = 0.1,
    cover_constant: float = 1.0,
    cover_dimension: float = 10.0,
    eta: float = 0.05,
    v_min: float | None = None,
) -> Analysis:
    """The bound on the generalization error of the ramp risk, with every term; see :mod:`opnorm.theory.wen`.

        max{0, 1 - u_min/γ} + sqrt(2 log(2) (C_X/ε)^k / m + 2 log(1/η) / m),
        u_min = min_{y≠ŷ} ‖w_y - w_ŷ‖_2 · ∏_{i<L} σ_min^i · v_min.

    The covering numbers of the data, at most (C_X/ε)^k, are a claim of the caller: the defaults are an example. With
    ``v_min=None`` the distance to the decision boundary is bounded from below: the smallest certified ℓ2 radius of all
    training points (:func:`opnorm.certificates.lipschitz_radius`; 0 if one is misclassified) less 2ε, at least 0. For
    networks of linear and convolutional layers, batch norm and average pooling, with ReLU and max pooling, without branches.

    Args:
        gamma: γ > 0 of the ramp loss, in units of the logits.
        cover_eps: ε, the radius of the covering balls.
        cover_constant: C_X.
        cover_dimension: k.
        eta: η: the bound holds with probability 1 - η over the training points.
        v_min: the smallest distance of a point in covering balls with training points to the decision boundary.

    Returns:
        One row: layers and smallest (the lower bounds of σ_min), row_gap, v_min, u_min, gamma, margin_term; cover_eps,
        cover_constant, cover_dimension, samples, covering_term; eta, confidence_term; value (None where it or a term is
        infinite) and vacuous.

    Raises:
        ModelError: another network.

    Source: Wen, Li & Jia 2020, Theorem 3.1, Eqs. 4 and 5.
    """
    check_positive(
        gamma=gamma, cover_eps=cover_eps, cover_constant=cover_constant, cover_dimension=cover_dimension
    )
    check_number("eta", eta, "a probability in (0, 1)", above=0, below=1)
    check_optional_amount("v_min", v_min, "a finite distance of at least 0, or None")
    covering = Covering(cover_eps, cover_constant, cover_dimension)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = next(batches(data.test, model))
        samples, least = len(data.train.labels), 0.0 if v_min is None else v_min
        bound = generalization_bound(
            model, x[:1], v_min=least, gamma=gamma, covering=covering, samples=samples, eta=eta
        )
        return [_row(replace(bound, v_min=_distance(model, data, cover_eps)) if v_min is None else bound)]

    return Analysis(rows, sentence, columns, chart)


def _row(bound: GeneralizationBound) -> Row:
    row: Row = {"layers": [name for name, _ in bound.smallest], "smallest": [s for _, s in bound.smallest]}
    for key in (
        "row_gap",
        "v_min",
        "u_min",
        "gamma",
        "margin_term",
        "samples",
        "eta",
        "confidence_term",
        "vacuous",
    ):
        row[key] = getattr(bound, key)
    row |= {f"cover_{key}": value for key, value in bound.covering._asdict().items()}
    return row | {key: _finite(getattr(bound, key)) for key in ("covering_term", "value")}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _distance(model: nn.Module, data: Dataset, eps: float) -> float:
    """A lower bound of v_min: covering balls that hold a training point reach 2 ε from it."""
    smallest = math.inf
    for x, y in batches(data.train, model):
        smallest = min(smallest, float(lipschitz_radius(model, x, y, 2).min()))
        if smallest <= 2 * eps:
            return 0.0
    return smallest - 2 * eps


def sentence(rows: Rows) -> str:
    (row,) = rows
    value = "infinite" if row["value"] is None else f"{row['value']:.4g}"
    verdict = " (vacuous: at least 1)" if row["vacuous"] else ""
    balls = f"({row['cover_constant']:g}/{row['cover_eps']:g})^{row['cover_dimension']:g}"
    return (
        f"If the data have at most {balls} covering balls, its generalization error is at most {value}{verdict}: "
        f"{row['margin_term']:.4g} by the smallest margin, {row['u_min']:.3g} against γ = {row['gamma']:g}, and the rest by "
        f"{row['samples']:,} training points."
    )


def columns(rows: Rows) -> Cells:
    (row,) = rows
    help = "Upper bound on the generalization error of the ramp risk by Theorem 3.1 of Wen et al., under its assumptions."
    column = Column("wen_bound", "Wen's bound", "number", "low", help)
    return [(column, "infinite" if row["value"] is None else row["value"])]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "wen-bound",
        "Smallest singular values in Wen's bound",
        "The smallest singular value of every layer before the last, from below: the smallest margin of the theorem is "
        "their product, times the smallest distance of two rows of the last layer and that of the data to the decision "
        "boundary. A layer that is missing has a value of 0, or none above 0 is proved.",
    )
    places = [(name or "(model)", place) for row in rows for place, name in enumerate(row["layers"])]
    points = [
        Point(method_of(row), "smallest", name or "(model)", value or None)
        for row in rows
        for name, value in zip(row["layers"], row["smallest"], strict=True)
    ]
    panels = {"smallest": Panel("Smallest singular value (log scale)", log=True)}
    return draw_curves(points, methods, heading, panels, Axis(quantity="layer", names=names_in_order(places)))
