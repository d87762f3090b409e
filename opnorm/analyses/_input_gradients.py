"""The length of the loss's gradient at every point, and its bound from the weights."""

import statistics
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.kept_parts import in_parts
from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_sample
from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.points import batches, first, six_digits
from opnorm.attacks._checks import check_logits
from opnorm.data import Dataset
from opnorm.errors import ModelError, NormError
from opnorm.report import (
    Axis,
    Chart,
    Column,
    Heading,
    Panel,
    Sample,
    draw_curves,
    histogram_points,
    method_of,
)
from opnorm.theory import input_gradient_bound

BATCH = 500


@register("confidence")
def input_gradients(points: int | None = None) -> Analysis:
    """‖∇_x ℓ_ce‖_2 at each test point, and its upper bound from the norms of the weights.

    At the first ``points``.
    The bound of a point is Σ_j |p_j - 1[j = y]| times the bound on ‖∂ŷ_j/∂x‖_2 of Eq. 15 (chains) or Eq. 24 (residual
    blocks); see :func:`opnorm.theory.input_gradient_bound`. A gradient of 0 is one below the precision of the numbers.

    Returns:
        One row: points, lengths and bounds (lists in the order of the data; bounds is None where no bound is known, for the
        given ``reason``).

    Source: Liu et al. 2020, Fig. 3, Eqs. 14, 15 and 24.
    """
    check_sample(points)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        split = first(data, points)
        found = [
            in_parts(partial(_lengths_and_weights, model), x, y, size=BATCH) for x, y in batches(split, model)
        ]
        lengths, weights = torch.cat(found).tensor_split([1], 1)
        x, y = next(batches(split, model))
        bounds, reason = None, ""
        try:  # the bound on the logits is the same at every point
            of_logits = input_gradient_bound(model, x[:1], y[:1]).logits
            bounds = six_digits(weights @ of_logits)
        except (ModelError, NormError) as e:  # the gradients themselves need no bound
            reason = str(e)
        row = {"points": len(split.labels), "lengths": six_digits(lengths[:, 0])}
        return [row | {"bounds": bounds, "reason": reason}]

    return Analysis(rows, sentence, columns, chart)


def _lengths_and_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The length of the loss's gradient, and |p_j - 1[j = y]| for all j, (B, 1 + K)."""
    with model_state_preserved(model), torch.enable_grad():
        z = x.detach().requires_grad_()
        logits = output_of(model, z)
        check_logits(logits, y)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), z)
    weights = (logits.detach().double().softmax(1) - F.one_hot(y, logits.shape[1])).abs()
    return torch.cat([gradient.flatten(1).double().norm(dim=1)[:, None], weights], 1)


def sentence(rows: Rows) -> str:
    row = rows[0]
    median, largest = statistics.median(row["lengths"]), max(row["lengths"])
    text = f"At half of the test images the loss has an input gradient of at most {median:.3g} (the largest: {largest:.3g})"
    if row["bounds"] is None:
        return f"{text}; a bound from the weights is not known: {row['reason'].rstrip('.')}."
    return f"{text}; the sizes of the weights allow {statistics.median(row['bounds']):.3g} at half of them."


def columns(rows: Rows) -> Cells:
    help = "Median over the test images of the Euclidean length of the loss's input gradient."
    column = Column("gradient", "input gradient", "number", None, help)
    return [(column, statistics.median(rows[0]["lengths"]))]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "input-gradients",
        "Input gradients of the loss",
        "The share of test images (per bin) whose loss has an input gradient of this Euclidean length, and the upper bound "
        "from the sizes of the weights. Further left is harder to attack by small steps; a gradient that underflows to 0 "
        "counts to the first bin.",
    )
    panels = {
        "lengths": Panel("Gradient of the loss", percent=True),
        "bounds": Panel("Bound from the weights", percent=True),
    }
    points = []
    for key in panels:
        samples = [Sample(method_of(row), key, row[key]) for row in rows if row[key]]
        points += histogram_points(samples, log=True)
    x = Axis("length of the gradient (log scale)", log=True)
    return draw_curves(points, methods, heading, panels, x, dots=False)
