"""Accuracy, against the same by hand."""

import math

import pytest
import torch
from torch import nn

from opnorm.analyses import accuracy, margins, robust_accuracy
from opnorm.analyses._shared.by_point import unpack
from opnorm.errors import OpnormError
from opnorm.models import mlp
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


@pytest.mark.parametrize("split", ["train", "test"])
def test_accuracy_by_hand(model, split):
    toy = data()
    x, y = pixels(getattr(toy, split))
    right = int((model(x).argmax(1) == y).sum())
    (row,) = accuracy(split)(model, toy)
    chance = max(y.tolist().count(c) for c in range(3)) / len(y)
    assert unpack(row.pop("by_point"), row["points"]).tolist() == (model(x).argmax(1) == y).tolist()
    assert row == {
        "split": split, "accuracy": right / len(y), "correct": right, "points": len(y), "chance": chance
    }  # fmt: skip
    assert 0 < right < len(y) or split == "train"
    ((_, cell),) = accuracy().columns([row])
    assert (cell.mean, cell.points) == (row["accuracy"], row["points"])


def test_a_network_that_is_no_better_than_one_class_for_all_is_named():
    toy = data()
    torch.manual_seed(0)
    untrained = mlp((1, 4, 4), 3, 4, 1).eval()
    text = accuracy().caution(accuracy()(untrained, toy))
    assert "hardly above that of naming the most frequent class" in text
    assert accuracy().caution(accuracy()(trained().eval(), toy)) == ""


@pytest.mark.parametrize("analysis", [accuracy(), margins(), robust_accuracy(steps=2)])
def test_a_model_of_nan_is_an_error_and_not_an_accuracy(analysis):
    model = mlp((1, 4, 4), 3, 4, 1)
    nn.init.constant_(model[-1].weight, math.nan)
    with pytest.raises(OpnormError, match="the model returns NaN or infinity"):
        analysis(model, data())


@pytest.mark.parametrize("analysis", [accuracy(), margins(), robust_accuracy(steps=2)])
def test_a_model_with_too_few_classes(analysis):
    with pytest.raises(OpnormError, match=r"labels range from 0 to 2, but the model has 2 classes"):
        analysis(mlp((1, 4, 4), 2, 4, 1), data())
