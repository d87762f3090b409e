"""How each analysis is shown on a page: its charts, its words and its columns of the table. One entry an analysis.

A page of an analysis that is not listed here, such as the user's own, leaves its rows to the JSON beside it.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from opnorm.report import charts_attacks, charts_predictions, charts_roth, charts_weights, words, words_roth
from opnorm.report.model import Cell, Chart, Column
from opnorm.report.vega import ORDS, Row

__all__ = ["SHOWN", "Shown"]


class Draw(Protocol):
    """Rows of one analysis, each with ``method`` and ``seed``, as a chart."""

    def __call__(self, rows: Sequence[Row], methods: Sequence[str], *, baseline: str) -> Chart: ...


class Shown(NamedTuple):
    """How an analysis is shown.

    Attributes:
        says: the rows of one network, as one or two sentences.
        charts: of the rows of all networks.
        cells: the rows of one network, as columns of the table, each with its cell.
    """

    says: Callable[[Sequence[Row]], str]
    charts: tuple[Draw, ...] = ()
    cells: Callable[[Sequence[Row]], list[tuple[Column, Cell]]] = lambda rows: []


def _accuracy(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    return [
        (
            Column(
                f"accuracy_{row['split']}",
                "clean" if row["split"] == "test" else "training",
                "percent",
                "high" if row["split"] == "test" else None,
                f"Share of the {'test' if row['split'] == 'test' else 'training'} images classified rightly.",
            ),
            row["accuracy"],
        )
        for row in rows
    ]


def _gap(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    help = "Test error minus training error."
    return [(Column("error_gap", "error gap", "percent", "low", help), rows[0]["error_gap"])]


def _robust(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    """The largest radius of each norm; the chart shows all."""
    largest = {row["norm"]: row for row in sorted(rows, key=lambda row: row["eps"])}
    return [
        (
            Column(
                f"robust_{norm}",
                f"{row['attack'].replace('-', ' ').split()[0]} {ORDS.get(norm, norm)} {row['eps']:.3g}",
                "percent",
                "high",
                f"Share of {row['points']} test images still right after {row['attack']} of that size, from above.",
            ),
            row["accuracy"],
        )
        for norm, row in largest.items()
    ]


def _autoattack(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    return [
        (
            Column(
                f"autoattack_{row['norm']}",
                f"AutoAttack {ORDS.get(row['norm'], row['norm'])} {row['eps']:.3g}",
                "percent",
                "high",
                f"Share of {row['points']} test images that stand against AutoAttack of that size.",
            ),
            row["accuracy"],
        )
        for row in rows
    ]


def _wen(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    row = rows[0]
    attack = f"{row['attack']} at ℓ∞ ε = {row['eps']:.3g}"
    help = f"Of the {row['points']} test images that are right at first, the share that is so after {attack}."
    return [(Column("wen", f"{row['attack']}, of the right ones", "percent", "high", help), row["accuracy"])]


def _norms(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    help = "Geometric mean of the norm over the linear and convolutional layers."
    found: list[tuple[Column, Cell]] = [
        (Column(f"norm_{p}", f"{ORDS[p]} norm", "number", None, help), words.typical_norm(rows, p))
        for p in ORDS
        if any(p in row["norms"] for row in rows)
    ]
    help = "Power of ten of the product of the layers' ℓ₂ norms, from above."
    complexity = words.log10_complexity(rows)
    return [*found, (Column("complexity", "log₁₀ spectral complexity", "number", None, help), complexity)]


def _spread(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    known = [row["std"] for row in rows if "std" in row]
    help = "Standard deviation of a layer's singular values, mean over the layers."
    return [
        (
            Column("spread", "singular spread", "number", None, help),
            statistics.fmean(known) if known else None,
        )
    ]


def _energy(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    help = "Power of ten of the product of the squared sizes of the layers' weights."
    return [(Column("energy", "log₁₀ weight energy", "number", None, help), rows[0]["log10_energy"])]


def _gradients(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    help = "Median over the test images of the Euclidean length of the loss's input gradient."
    return [
        (Column("gradient", "input gradient", "number", None, help), statistics.median(rows[0]["lengths"]))
    ]


SHOWN: dict[str, Shown] = {
    "accuracy": Shown(words.WORDS["accuracy"], (), _accuracy),
    "generalization_gap": Shown(
        words.WORDS["generalization_gap"], (charts_predictions.generalization_gap,), _gap
    ),
    "robust_accuracy": Shown(words.WORDS["robust_accuracy"], (charts_attacks.robust_accuracy,), _robust),
    "autoattack_accuracy": Shown(words.WORDS["autoattack_accuracy"], (), _autoattack),
    "wen_robust_accuracy": Shown(words.WORDS["wen_robust_accuracy"], (), _wen),
    "liu_robust_accuracy": Shown(words.WORDS["liu_robust_accuracy"], (charts_attacks.liu_robust_accuracy,)),
    "robustness_curve": Shown(words.WORDS["robustness_curve"], (charts_attacks.robustness_curve,)),
    "robust_radius": Shown(words_roth.WORDS["robust_radius"], (charts_roth.robust_radius,)),
    "loss_variation": Shown(words.WORDS["loss_variation"], (charts_attacks.loss_variation,)),
    "norm_table": Shown(
        words.WORDS["norm_table"], (charts_weights.layer_norms, charts_weights.norm_density), _norms
    ),
    "singular_spread": Shown(words.WORDS["singular_spread"], (charts_weights.singular_spread,), _spread),
    "weight_energy": Shown(words.WORDS["weight_energy"], (charts_weights.weight_energy,), _energy),
    "margins": Shown(words.WORDS["margins"], (charts_predictions.margins,)),
    "predictions": Shown(words.WORDS["predictions"], (charts_predictions.predictions,)),
    "input_gradients": Shown(
        words.WORDS["input_gradients"], (charts_predictions.input_gradients,), _gradients
    ),
    "lipschitz_bracket": Shown(words_roth.WORDS["lipschitz_bracket"], (charts_roth.lipschitz_bracket,)),
    "jacobian_spectrum": Shown(words_roth.WORDS["jacobian_spectrum"], (charts_roth.jacobian_spectrum,)),
    "singular_alignment": Shown(words_roth.WORDS["singular_alignment"], (charts_roth.singular_alignment,)),
    "local_linearity": Shown(words_roth.WORDS["local_linearity"], (charts_roth.local_linearity,)),
    "relu_cells": Shown(words_roth.WORDS["relu_cells"], (charts_roth.relu_cells,)),
    "power_method_agreement": Shown(
        words_roth.WORDS["power_method_agreement"], (charts_roth.power_method_agreement,)
    ),
}
"""By the analysis's name, in the order of a page."""
