"""Accuracy, against the same by hand."""

import math

import pytest
from torch import nn

from opnorm.analyses import accuracy, margins, robust_accuracy
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
    assert row == {"split": split, "accuracy": right / len(y), "correct": right, "points": len(y)}
    assert 0 < right < len(y) or split == "train"


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
