"""Accuracy on clean images."""

from collections.abc import Sequence

from torch import nn

from opnorm.analyses._shared.analysis import Analysis, Row, register
from opnorm.analyses._shared.points import choose_split, logits_of, split_name
from opnorm.data import Dataset
from opnorm.report import Cell, Column


@register("accuracy and robustness")
def accuracy(split: str = "test") -> Analysis:
    """The share of points whose largest logit is that of the right class.

    Returns:
        One row: split, accuracy, correct, points.

    Raises:
        SpecError: a split other than "train" or "test".
    """
    choose = choose_split(split)

    def rows(model: nn.Module, data: Dataset) -> list[Row]:
        correct = sum(int((logits.argmax(1) == y).sum()) for logits, y in logits_of(model, choose(data)))
        points = len(choose(data).labels)
        return [{"split": split, "accuracy": correct / points, "correct": correct, "points": points}]

    return Analysis(rows, sentence, columns)


def sentence(rows: Sequence[Row]) -> str:
    parts = [f"{row['accuracy']:.1%} of the {row['points']} {split_name(row)} images" for row in rows]
    return f"It classifies {' and '.join(parts)} correctly."


def columns(rows: Sequence[Row]) -> list[tuple[Column, Cell]]:
    found: list[tuple[Column, Cell]] = []
    for row in rows:
        help = f"Share of the {split_name(row)} images classified correctly."
        clean = Column("accuracy_test", "clean", "percent", "high", help)
        training = Column("accuracy_train", "training", "percent", None, help)
        found.append((clean if row["split"] == "test" else training, row["accuracy"]))
    return found
