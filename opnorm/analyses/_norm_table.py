"""The operator norms of every layer."""

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
from torch import nn

from opnorm._core.orders import check_ords
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.layer_rows import BATCH_NORM_KINDS, KINDS, names_in_order, numbered
from opnorm.analyses._shared.points import batches
from opnorm.data import Dataset
from opnorm.norms import measure
from opnorm.report import NORMS, Axis, Chart, Column, Heading, Panel, Point, draw_curves, known, method_of

GRID = 81  # points on a line of the density


@register("weights")
def norm_table(ords: Sequence[float] = (1, 2, math.inf), batch_norm: bool = True) -> Analysis:
    """The operator norms of every layer, and their density over the layers.

    Typical norms are of linear and convolutional layers; the density counts batch norm, too, unless ``batch_norm`` is False.

    Returns:
        One row a layer, in the order of the forward pass; see :class:`opnorm.norms.LayerNorms`.

    Source: Liang & Huang 2021, Fig. 2 and supplement.
    """
    check_ords(ords)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        x, _ = next(batches(data.test, model))
        return [row.as_dict() for row in measure(model, x[:1], tuple(ords)).rows]

    return Analysis(rows, sentence, columns, partial(chart, batch_norm=batch_norm), compare)


def _log10_norms(rows: Rows, ord: str, end: str) -> list[float]:
    """log10 of a norm's end for every linear and convolutional layer; none where one is not known or 0."""
    norms = [row["norms"].get(ord, {}).get(end) for row in rows if row["kind"] in KINDS]
    return [math.log10(norm) for norm in norms] if all(known(n) and n > 0 for n in norms) else []


def typical_norm(rows: Rows, ord: str) -> float | None:
    """The geometric mean of a norm over the linear and convolutional layers; None where one is not known."""
    logs = _log10_norms(rows, ord, "lower")
    return 10 ** (math.fsum(logs) / len(logs)) if logs else None


def log10_complexity(rows: Rows) -> float | None:
    """log10 of the spectral complexity ∏ ‖W‖_2, from above; None where a norm has no known upper bound.

    Source: Wen, Li & Jia 2020, Definition 7.
    """
    logs = _log10_norms(rows, "2", "upper")
    return math.fsum(logs) if logs else None


def sentence(rows: Rows) -> str:
    typical = {name: typical_norm(rows, ord) for ord, name in NORMS.items()}
    parts = ", ".join(f"{value:.3g} ({name})" for name, value in typical.items() if value is not None)
    text = f"The typical norm of a layer is {parts}." if parts else "The norms of its layers are not known."
    product = log10_complexity(rows)
    if product is None:
        return text
    size = f"{10**product:.3g}" if abs(product) < 6 else f"10^{product:.1f}"
    return f"{text} The product of the ℓ₂ norms, its spectral complexity, is at most {size}."


def compare(first: Rows, other: Rows, first_name: str, other_name: str) -> str:
    """The ratios of the typical norms."""
    pairs = {name: (typical_norm(first, ord), typical_norm(other, ord)) for ord, name in NORMS.items()}
    ratios = [f"×{b / a:.3g} ({name})" for name, (a, b) in pairs.items() if a is not None and b is not None]
    if not ratios:
        return ""
    return f"The typical norms of the layers of {other_name} are {', '.join(ratios)} those of {first_name}."


def columns(rows: Rows) -> Cells:
    help = "Geometric mean of the norm over the linear and convolutional layers."
    found: Cells = [
        (Column(f"norm_{ord}", f"{name} norm", "number", None, help), typical_norm(rows, ord))
        for ord, name in NORMS.items()
        if any(ord in row["norms"] for row in rows)
    ]
    help = "Power of ten of the product of the layers' ℓ₂ norms, from above."
    complexity = Column("complexity", "log₁₀ spectral complexity", "number", None, help)
    return [*found, (complexity, log10_complexity(rows))]


def chart(rows: Rows, methods: Methods = (), *, batch_norm: bool = True) -> Chart:
    heading = Heading(
        "layer-norms",
        "Norms of the layers",
        "The most that each layer, from the first to the last, can lengthen a change of its input, measured in three ways. "
        "Bars reach over all seeds and, for ℓ₂, over the certified interval. Below: the share of layers"
        f"{', batch norm included,' if batch_norm else ''} at each size of the norm (Gaussian kernel density of its "
        "logarithm); the ticks are the layers.",
    )
    in_density = (*KINDS, *BATCH_NORM_KINDS) if batch_norm else KINDS
    layers = [layer for layer in numbered(rows) if layer[2]["kind"] in KINDS and layer[2]["norms"]]
    points, sizes = [], dict[tuple[str, str], list[float]]()
    for name, _, row in numbered(rows):
        for ord, norm in row["norms"].items():
            if row["kind"] in in_density and known(norm["lower"]) and norm["lower"] > 0:
                ends = (norm["lower"], norm["lower"], norm["upper"])
                if row["kind"] in KINDS:
                    points.append(Point(method_of(row), ord, name, *ends))
                sizes.setdefault((ord, method_of(row)), []).append(norm["lower"])
    for (ord, method), norms in sizes.items():
        points += [Point(method, f"density {ord}", norm, rug=True) for norm in sorted(norms)]
        points += [Point(method, f"density {ord}", *pair) for pair in _density(norms)]
    by_layer = Axis(quantity="layer", names=names_in_order((name, place) for name, place, _ in layers))
    panels = {
        ord: Panel(f"{name} norm (log scale)", log=True, quantity="norm", note="all seeds within", x=by_layer)
        for ord, name in NORMS.items()
    }
    for ord, name in NORMS.items():
        by_size = Axis(f"{name} norm (log scale)", log=True)
        title = f"Density of the {name} norms"
        panels[f"density {ord}"] = Panel(title, quantity="density", dots=False, x=by_size)
    return draw_curves(points, methods, heading, panels, columns=3)


def _density(norms: Sequence[float]) -> list[tuple[float, float]]:
    """(norm, density of log10 norm) from end to end; the bandwidth by Scott's rule, never below 0.02."""
    logs = np.log10(norms)
    spread = logs.std(ddof=1) if len(logs) > 1 else 0.0
    bandwidth = max(spread * len(logs) ** -0.2, 0.02)
    grid = np.linspace(logs.min() - 3 * bandwidth, logs.max() + 3 * bandwidth, GRID)
    # not scipy's gaussian_kde, which takes no sample of one value or of equal values, and a second to load
    deviations = (grid[:, None] - logs) / bandwidth
    density = np.exp(-(deviations**2) / 2).mean(1) / (bandwidth * math.sqrt(2 * math.pi))
    return list(zip((10**grid).tolist(), density.tolist(), strict=True))
