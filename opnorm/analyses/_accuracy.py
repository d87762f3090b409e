"""Accuracy on clean images."""

import torch
from torch import nn

from opnorm._core.confidence import like_guessing
from opnorm._core.settings import check_choice
from opnorm.analyses._shared.analysis import Analysis, Cells, Row, Rows, register
from opnorm.analyses._shared.by_point import pack
from opnorm.analyses._shared.points import SPLITS, logits_of
from opnorm.data import Dataset
from opnorm.report import Column, Stat


@register("accuracy and robustness")
def accuracy(split: str = "test") -> Analysis:
    """The share of points whose largest logit is that of the right class.

    Returns:
        One row: split, accuracy, correct, points, chance (the share of the most frequent class), by_point (which points
        are correct, in hexadecimal: 8 points in 2 digits, the first one in the highest bit).
    """
    check_choice("split", split, ("train", "test"))

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        chosen = getattr(data, split)
        right = torch.cat([logits.argmax(1) == y for _, y, logits in logits_of(model, chosen)])
        correct, points = int(right.sum()), len(right)
        row = {"split": split, "accuracy": correct / points, "correct": correct, "points": points}
        chance = int(chosen.labels.bincount().max()) / points
        return [row | {"chance": chance, "by_point": pack(right)}]

    return Analysis(rows, sentence, columns, caution=caution)


def sentence(rows: Rows) -> str:
    parts = [f"{row['accuracy']:.1%} of the {row['points']} {SPLITS[row['split']]} images" for row in rows]
    return f"It classifies {' and '.join(parts)} correctly."


def caution(rows: Rows) -> str:
    for row in rows:
        if like_guessing(row["correct"], row["points"], row["chance"]):
            return (
                f"an accuracy of {row['accuracy']:.1%} on {row['points']} images is hardly above that of naming the most "
                f"frequent class for all ({row['chance']:.1%}); an untrained or diverged network has no robustness to "
                "measure."
            )
    return ""


def columns(rows: Rows) -> Cells:
    found: Cells = []
    for row in rows:
        help = f"Share of the {SPLITS[row['split']]} images classified correctly."
        clean = Column("accuracy_test", "clean", "percent", "high", help)
        training = Column("accuracy_train", "training", "percent", None, help)
        column = clean if row["split"] == "test" else training
        found.append((column, Stat.share(row["correct"], row["points"])))
    return found
