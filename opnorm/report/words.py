"""What one network's rows of an analysis say, in a line of plain words; see :mod:`opnorm.report.words_roth` for more."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from opnorm.report.charts_weights import WEIGHTED
from opnorm.report.model import known
from opnorm.report.vega import ORDS, Row

__all__ = ["WORDS", "Changes", "log10_complexity", "spread_changes", "typical_norm"]


def typical_norm(rows: Sequence[Row], ord: str) -> float | None:
    """The geometric mean of a norm over the linear and convolutional layers; None where one is not known."""
    norms = [row["norms"].get(ord) for row in rows if row["kind"] in WEIGHTED]
    if not norms or any(norm is None or norm["lower"] <= 0 for norm in norms):
        return None
    return 10 ** (math.fsum(math.log10(norm["lower"]) for norm in norms) / len(norms))


def log10_complexity(rows: Sequence[Row]) -> float | None:
    """log10 of the spectral complexity ∏ ‖W‖_2, from above; None where a norm has no known upper bound.

    Source: Wen, Li & Jia 2020, Definition 7.
    """
    norms = [row["norms"].get("2") for row in rows if row["kind"] in WEIGHTED]
    if not norms or any(norm is None or not known(norm["upper"]) or norm["upper"] <= 0 for norm in norms):
        return None
    return math.fsum(math.log10(norm["upper"]) for norm in norms)


class Changes(NamedTuple):
    """How the spread of the layers' singular values differs from one network to another.

    Attributes:
        up: by how much it is larger, of each layer where it is.
        down: by how much it is smaller, of each layer where it is.
        layers: how many layers both networks have, with known values.
    """

    up: list[float]
    down: list[float]
    layers: int


def spread_changes(before: Sequence[Row], after: Sequence[Row]) -> Changes:
    """Increases and decreases of the standard deviations of singular values, over layers of the same name.

    A difference that the errors of the two values may make up counts as none.

    Source: Wen, Li & Jia 2020, B.2.
    """
    others = {row["layer"]: row for row in after if known(row.get("std"))}
    pairs = [
        (row, others[row["layer"]]) for row in before if known(row.get("std")) and row["layer"] in others
    ]
    found = [b["std"] - a["std"] for a, b in pairs if abs(b["std"] - a["std"]) > a["error"] + b["error"]]
    return Changes([d for d in found if d > 0], [-d for d in found if d < 0], len(pairs))


def _accuracy(rows: Sequence[Row]) -> str:
    parts = [f"{row['accuracy']:.1%} of the {row['points']} {_split(row)} images" for row in rows]
    return f"It classifies {' and '.join(parts)} rightly."


def _gap(rows: Sequence[Row]) -> str:
    row = rows[0]
    return (
        f"Its error is {row['train_error']:.1%} on the training images and {row['test_error']:.1%} on the test images "
        f"(gap {100 * row['error_gap']:+.1f} points); the mean loss is {row['train_loss']:.3g} and {row['test_loss']:.3g} "
        f"(gap {row['loss_gap']:+.3g})."
    )


def _norms(rows: Sequence[Row]) -> str:
    parts = [f"{value:.3g} ({ORDS[p]})" for p in ORDS if (value := typical_norm(rows, p)) is not None]
    text = (
        f"The typical norm of a layer is {', '.join(parts)}."
        if parts
        else "The norms of its layers are not known."
    )
    product = log10_complexity(rows)
    if product is None:
        return text
    size = f"{10**product:.3g}" if abs(product) < 6 else f"10^{product:.1f}"
    return f"{text} The product of the ℓ₂ norms, its spectral complexity, is at most {size}."


def _spread(rows: Sequence[Row]) -> str:
    found = [row for row in rows if known(row.get("std"))]
    if not found:
        return f"The singular values of no layer are known: {rows[0]['note']}."
    top = max(found, key=lambda row: row["std"])
    missing = f"; of {len(rows) - len(found)} layers they are not known" if len(found) < len(rows) else ""
    mean = statistics.fmean(row["std"] for row in found)
    return (
        f"The singular values of a layer have a standard deviation of {mean:.3g} on average, and the largest, "
        f"{top['std']:.3g}, in layer {top['layer'] or '(model)'}{missing}."
    )


def _energy(rows: Sequence[Row]) -> str:
    row = rows[0]
    energy = "0 (a weight is all zeros)" if row["log10_energy"] is None else f"10^{row['log10_energy']:.1f}"
    return f"Its weight energy is {energy}, its weight complexity {row['complexity']:.4g}, over {len(row['layers'])} layers."


def _margins(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        values = row["margins"]
        near = sum(0 < m < 1 for m in values) / len(values)
        wrong = sum(m < 0 for m in values) / len(values)
        parts.append(
            f"of the {_split(row)} images {wrong:.1%} lie below 0 and {near:.1%} between 0 and 1 ("
            f"median {statistics.median(values):.3g}, standard deviation {statistics.pstdev(values):.3g})"
        )
    return f"Margins: {'; '.join(parts)}."


def _predictions(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        sure = sum(p > 0.99 for p in row["probabilities"]) / row["points"]
        between = sum(0.1 <= p <= 0.9 for p in row["probabilities"]) / row["points"]
        parts.append(
            f"to {sure:.1%} of the {_split(row)} images it gives the right class a probability above 0.99, to "
            f"{between:.1%} one between 0.1 and 0.9"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _gradients(rows: Sequence[Row]) -> str:
    row = rows[0]
    median, largest = statistics.median(row["lengths"]), max(row["lengths"])
    text = f"At half of the test images the loss has an input gradient of at most {median:.3g} (the largest: {largest:.3g})"
    if row["bounds"] is None:
        return f"{text}; a bound from the weights is not known: {row['reason'].rstrip('.')}."
    return f"{text}; the sizes of the weights allow {statistics.median(row['bounds']):.3g} at half of them."


def _robust(rows: Sequence[Row]) -> str:
    parts = [
        f"{row['accuracy']:.1%} at {ORDS.get(row['norm'], row['norm'])} ε = {row['eps']:.3g}" for row in rows
    ]
    return f"Still right after {rows[0]['attack']}: {', '.join(parts)}."


def _autoattack(rows: Sequence[Row]) -> str:
    row = rows[0]
    return (
        f"{row['accuracy']:.1%} of {row['points']} test images stand against {row['attack']} at "
        f"{ORDS.get(row['norm'], row['norm'])} ε = {row['eps']:.3g} (95 % interval {row['low']:.1%} to {row['high']:.1%}); "
        f"{row['masking']}".rstrip(".")
        + "."
    )


def _wen(rows: Sequence[Row]) -> str:
    row = rows[0]
    if row["accuracy"] is None:
        return f"None of {row['of']} test images is classified rightly, so there is nothing to attack."
    return (
        f"Of the {row['points']} test images that it classifies rightly, {row['accuracy']:.1%} stay right after "
        f"{row['attack']} at ℓ∞ ε = {row['eps']:.3g}."
    )


def _liu(rows: Sequence[Row]) -> str:
    parts = [f"{row['accuracy']:.1%} after {row['attack']} at ε = {row['eps']:.3g}" for row in rows]
    return f"Still right: {', '.join(parts)}."


def _variation(rows: Sequence[Row]) -> str:
    row = max(rows, key=lambda row: row["eps"])
    return (
        f"Within ε = {row['eps']:.3g} the loss of a test image changes by up to {row['mean']:.3g} on average (standard "
        f"deviation {row['std']:.3g})."
    )


def _curve(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        half = statistics.median(math.inf if d is None else d for d in row["minimal_eps"])
        reach = (
            f"half of them at {half:.3g}" if known(half) else f"fewer than half up to {row['eps'][-1]:.3g}"
        )
        parts.append(f"in {ORDS.get(row['norm'], row['norm'])} {reach}")
    found = "; ".join(parts)
    return f"Test images that are fooled: {found} (smallest ε found by {rows[0]['attack']})."


def _split(row: Row) -> str:
    return "training" if row["split"] == "train" else "test"


WORDS: dict[str, Callable[[Sequence[Row]], str]] = {
    "accuracy": _accuracy,
    "autoattack_accuracy": _autoattack,
    "generalization_gap": _gap,
    "input_gradients": _gradients,
    "liu_robust_accuracy": _liu,
    "loss_variation": _variation,
    "margins": _margins,
    "norm_table": _norms,
    "predictions": _predictions,
    "robust_accuracy": _robust,
    "robustness_curve": _curve,
    "singular_spread": _spread,
    "weight_energy": _energy,
    "wen_robust_accuracy": _wen,
}
