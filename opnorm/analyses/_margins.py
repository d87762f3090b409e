"""Margins of the points."""

import math
import statistics
from typing import Any

from torch import nn

from opnorm._core.settings import check_choice
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import SPLITS, logits_of, six_digits
from opnorm.attacks._checks import are_probabilities
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Heading, Panel, Sample, draw_curves, histogram_points, known, method_of


@register("confidence", "margins('train')", "margins()")
def margins(split: str = "test") -> Analysis:
    """The margin of every point, f_y - max_{i≠y} f_i: above 0 where the point is classified correctly.

    Returns:
        One row: split, points, margins (a list, in the order of the data), outputs ("logits", or "probabilities" where all
        outputs of a point are from 0 on and have the sum 1).

    Source: Wen, Li & Jia 2020, Figs. 4 and 5.
    """
    check_choice("split", split, ("train", "test"))

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        values, probabilities = list[float](), True
        for _, y, logits in logits_of(model, getattr(data, split)):
            probabilities &= are_probabilities(logits)
            others = logits.scatter(1, y[:, None], -math.inf).amax(1)
            values += six_digits(logits.gather(1, y[:, None]).squeeze(1) - others)
        outputs = "probabilities" if probabilities else "logits"
        return [{"split": split, "points": len(values), "margins": values, "outputs": outputs}]

    return Analysis(rows, sentence, chart=chart, caution=caution)


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        values = row["margins"]
        near = sum(0 < m < 1 for m in values) / len(values)
        wrong = sum(m < 0 for m in values) / len(values)
        parts.append(
            f"of the {row['points']} {SPLITS[row['split']]} images {wrong:.1%} lie below 0 and {near:.1%} between 0 and 1 "
            f"(median {statistics.median(values):.3g}, standard deviation {statistics.pstdev(values):.3g})"
        )
    return f"Margins: {'; '.join(parts)}."


def caution(rows: Rows) -> str:
    if not any(row["outputs"] == "probabilities" for row in rows):
        return ""
    return "its outputs are probabilities, not logits, so its margins end at 1 and are no measure beside those of logits."


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "margins",
        "Margins",
        "The right class's score less the largest other: the share of images (per bin) at each margin. Left of 0: "
        "misclassified. A hump close to 0 is a network that is less confident, and whose images are easier to attack. The "
        "first and the last bin hold all margins beyond.",
    )
    look: dict[str, Any] = {"percent": True, "quantity": "images here", "note": "below 0: misclassified"}
    panels = {split: Panel(f"Share of the {name} images", **look) for split, name in SPLITS.items()}
    wrong: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        share = sum(known(m) and m < 0 for m in row["margins"]) / max(len(row["margins"]), 1)
        wrong.setdefault((method_of(row), row["split"]), []).append(share)
    samples = []
    for row in rows:
        note = f"{statistics.fmean(wrong[method_of(row), row['split']]):.1%}"
        samples.append(Sample(method_of(row), row["split"], row["margins"], note))
    x = Axis("margin", mark=(0, "← misclassified"))
    return draw_curves(histogram_points(samples, edge=0.0), methods, heading, panels, x, dots=False)
