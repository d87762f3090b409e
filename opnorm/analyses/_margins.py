"""Margins of the points."""

import math
import statistics
from collections.abc import Sequence

from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import choose_split, logits_of, six_digits, split_name
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Heading, Panel, Sample, draw_curves, histogram_points, known, method_of


@register("confidence", "margins('train')", "margins()")
def margins(split: str = "test") -> Analysis:
    """The margin of every point, f_y - max_{i≠y} f_i: above 0 where the point is classified correctly.

    Returns:
        One row: split, points, margins (a list, in the order of the data).

    Raises:
        SpecError: a split other than "train" or "test".

    Source: Wen, Li & Jia 2020, Figs. 4 and 5.
    """
    choose = choose_split(split)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        values: list[float] = []
        for logits, y in logits_of(model, choose(data)):
            others = logits.scatter(1, y[:, None], -math.inf).amax(1)
            values += six_digits(logits.gather(1, y[:, None]).squeeze(1) - others)
        return [{"split": split, "points": len(values), "margins": values}]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        values = row["margins"]
        near = sum(0 < m < 1 for m in values) / len(values)
        wrong = sum(m < 0 for m in values) / len(values)
        parts.append(
            f"of the {split_name(row)} images {wrong:.1%} lie below 0 and {near:.1%} between 0 and 1 (median "
            f"{statistics.median(values):.3g}, standard deviation {statistics.pstdev(values):.3g})"
        )
    return f"Margins: {'; '.join(parts)}."


def chart(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """The distribution of the margins on both splits (Wen, Li & Jia 2020, Fig. 4)."""
    heading = Heading(
        "margins",
        "Margins",
        "The right class's score less the largest other: the share of images (per bin) at each margin. Left of 0: "
        "misclassified. A hump close to 0 is a network that is less confident, and whose images are easier to attack. The "
        "first and the last bin hold all margins beyond.",
    )
    panels = {
        split: Panel(
            f"Share of the {split_name({'split': split})} images",
            percent=True,
            quantity="images here",
            note="below 0: misclassified",
        )
        for split in ("train", "test")
    }
    wrong: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        share = sum(known(m) and m < 0 for m in row["margins"]) / max(len(row["margins"]), 1)
        wrong.setdefault((method_of(row), row["split"]), []).append(share)
    samples = [
        Sample(
            method_of(row),
            row["split"],
            row["margins"],
            f"{statistics.fmean(wrong[method_of(row), row['split']]):.1%}",
        )
        for row in rows
    ]
    x = Axis("margin", mark=(0, "misclassified ←"))
    return draw_curves(histogram_points(samples, edge=0.0), methods, heading, panels, x, dots=False)
