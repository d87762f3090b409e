"""The probability of the true class, and the loss, of every point."""

import torch
from torch import nn

from opnorm._core.settings import check_choice
from opnorm.analyses._shared.analysis import Analysis, Methods, Row, Rows, register
from opnorm.analyses._shared.points import SPLITS, cross_entropy, logits_of, six_digits
from opnorm.attacks._checks import are_probabilities
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
        One row: split, points, probabilities, losses (lists, in the order of the data), outputs ("logits", or
        "probabilities" where all outputs of a point are from 0 on and have the sum 1; these are taken as they are, without
        another softmax).

    Source: Wen, Li & Jia 2020, Figs. 5a and 5b.
    """
    check_choice("split", split, ("train", "test"))

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        batches = [(logits, y) for _, y, logits in logits_of(model, getattr(data, split))]
        logits, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
        outputs = "probabilities" if are_probabilities(logits) else "logits"
        if outputs == "probabilities":
            logits = logits.double().clamp(min=torch.finfo(torch.double).tiny).log()
        losses = cross_entropy(logits, y)
        row = {"split": split, "points": len(losses), "probabilities": six_digits((-losses).exp())}
        return [row | {"losses": six_digits(losses), "outputs": outputs}]

    return Analysis(rows, sentence, chart=chart, caution=caution)


def sentence(rows: Rows) -> str:
    parts = []
    for row in rows:
        confident = sum(p > 0.99 for p in row["probabilities"]) / row["points"]
        between = sum(0.1 <= p <= 0.9 for p in row["probabilities"]) / row["points"]
        parts.append(
            f"to {confident:.1%} of the {row['points']} {SPLITS[row['split']]} images it gives the right class a "
            f"probability above 0.99, to {between:.1%} one between 0.1 and 0.9"
        )
    return one_sentence(parts)


def caution(rows: Rows) -> str:
    if not any(row["outputs"] == "probabilities" for row in rows):
        return ""
    return "its outputs are probabilities, not logits, and are taken as they are for the confidence of its predictions."


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "predictions",
        "Confidence of the predictions",
        "The share of images (per bin, log scale, bins without images left out) at which the true class gets this "
        "probability, and at which the loss is this large. Less confident networks fill the middle. The last bin of the "
        "loss holds all losses beyond.",
    )
    panels, points = {}, []
    quantities = {
        "probabilities": ("Probability", "probability of the true class", (0.0, 1.0)),
        "losses": ("Loss", "loss", None),
    }
    for split, name in SPLITS.items():
        for key, (title, quantity, ends) in quantities.items():
            panel, text = f"{key} {split}", f"{title}, {name} images (log scale)"
            panels[panel] = Panel(text, log=True, percent=True, x=Axis(quantity))
            samples = [Sample(method_of(row), panel, row[key]) for row in rows if row["split"] == split]
            points += histogram_points(samples, ends=ends)
    return draw_curves(points, methods, heading, panels, dots=False)
