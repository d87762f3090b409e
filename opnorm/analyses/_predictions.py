"""The probability of the true class, and the loss, of every point."""

from collections.abc import Sequence

import torch
from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import choose_split, cross_entropy, logits_of, six_digits, split_name
from opnorm.data import Dataset
from opnorm.report import (
    Axis,
    Chart,
    Heading,
    Panel,
    Sample,
    draw_curves,
    histogram_points,
    method_of,
    one_sentence,
)


@register("confidence", "predictions('train')", "predictions()")
def predictions(split: str = "test") -> Analysis:
    """The probability that the network gives to the true class of each point, and its cross-entropy.

    Returns:
        One row: split, points, probabilities, losses (lists, in the order of the data).

    Raises:
        SpecError: a split other than "train" or "test".

    Source: Wen, Li & Jia 2020, Figs. 5a and 5b.
    """
    choose = choose_split(split)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        losses = torch.cat([cross_entropy(logits, y) for logits, y in logits_of(model, choose(data))])
        probabilities = six_digits((-losses).exp())
        row = {"split": split, "points": len(losses), "probabilities": probabilities}
        return [row | {"losses": six_digits(losses)}]

    return Analysis(rows, sentence, chart=chart)


def sentence(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        confident = sum(p > 0.99 for p in row["probabilities"]) / row["points"]
        between = sum(0.1 <= p <= 0.9 for p in row["probabilities"]) / row["points"]
        parts.append(
            f"to {confident:.1%} of the {split_name(row)} images it gives the right class a probability above 0.99, to "
            f"{between:.1%} one between 0.1 and 0.9"
        )
    return one_sentence(parts)


def chart(rows: Sequence[Row], methods: Sequence[str] = ()) -> Chart:
    """Histograms of the true class's probability and of the loss (Wen, Li & Jia 2020, Figs. 5a and 5b)."""
    heading = Heading(
        "predictions",
        "Confidence of the predictions",
        "The share of images (per bin, log scale, bins without images left out) at which the true class gets this "
        "probability, and at which the loss is this large. Less confident networks fill the middle. The last bin of the "
        "loss holds all losses beyond.",
    )
    panels, points = {}, []
    for split in ("train", "test"):
        images = f"{split_name({'split': split})} images (log scale)"
        own = [row for row in rows if row["split"] == split]
        for key, title, quantity in (
            ("probabilities", "Probability", "probability of the true class"),
            ("losses", "Loss", "loss"),
        ):
            panel = f"{key} {split}"
            panels[panel] = Panel(f"{title}, {images}", log=True, percent=True, x=Axis(quantity))
            ends = (0.0, 1.0) if key == "probabilities" else None
            points += histogram_points([Sample(method_of(r), panel, r[key]) for r in own], ends=ends)
    return draw_curves(points, methods, heading, panels, dots=False)
