"""Loss and error on training and test points."""

import torch
from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Cells, Methods, Row, Rows, register
from opnorm.analyses._shared.points import SPLITS, cross_entropy, logits_of
from opnorm.data import Dataset
from opnorm.report import Axis, Chart, Column, Heading, Panel, Point, draw_curves, method_of


@register("accuracy and robustness")
def generalization_gap() -> Analysis:
    """Loss and error on the training and on the test points, and the gaps between them.

    The loss is the mean cross-entropy, the error the share of misclassified points; a gap is test minus training. All
    training points count, without augmentation, in eval mode.

    Returns:
        One row: train_loss, test_loss, loss_gap, train_error, test_error, error_gap, train_points, test_points.

    Source: Wen, Li & Jia 2020, Fig. 3 and Tables 3 to 5. (The paper gives the gaps' absolute values.)
    """

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        row: Row = {}
        for name in SPLITS:
            losses, wrong = [], 0
            for _, y, logits in logits_of(model, getattr(data, name)):
                losses.append(cross_entropy(logits, y))
                wrong += int((logits.argmax(1) != y).sum())
            loss = torch.cat(losses)
            row |= {f"{name}_loss": float(loss.mean()), f"{name}_error": wrong / len(loss)}
            row[f"{name}_points"] = len(loss)
        gaps = {f"{key}_gap": row[f"test_{key}"] - row[f"train_{key}"] for key in ("loss", "error")}
        return [row | gaps]

    return Analysis(rows, sentence, columns, chart)


def sentence(rows: Rows) -> str:
    row = rows[0]
    return (
        f"Its error is {row['train_error']:.1%} on the training images and {row['test_error']:.1%} on the test images "
        f"(gap {100 * row['error_gap']:+.1f} points); the mean loss is {row['train_loss']:.3g} and {row['test_loss']:.3g} "
        f"(gap {row['loss_gap']:+.3g})."
    )


def columns(rows: Rows) -> Cells:
    help = "Test error minus training error."
    return [(Column("error_gap", "error gap", "percent", "low", help), rows[0]["error_gap"])]


def chart(rows: Rows, methods: Methods = ()) -> Chart:
    heading = Heading(
        "generalization-gap",
        "Generalization gap",
        "Mean cross-entropy and share of misclassified images on the training images, on the test images, and the "
        "difference of the two.",
    )
    panels = {"loss": Panel("Loss"), "error": Panel("Error", percent=True)}
    names = {"training": "train_{}", "test": "test_{}", "gap": "{}_gap"}
    points = [
        Point(method_of(row), panel, name, row[key.format(panel)])
        for row in rows
        for panel in panels
        for name, key in names.items()
    ]
    return draw_curves(points, methods, heading, panels, Axis(quantity="images", names=tuple(names)))
