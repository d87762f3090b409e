"""Probabilities and losses, against the same by hand."""

import pytest
import torch

from opnorm.analyses import predictions
from opnorm.errors import SpecError
from tests.analyses.toys import pixels, random_labels, random_network

NETWORK = random_network


@pytest.mark.parametrize("split", ["train", "test"])
def test_predictions_by_hand(model, split):
    toy = random_labels()
    (row,) = predictions(split)(model, toy)
    x, y = pixels(getattr(toy, split))
    p = model(x).double().softmax(1)[torch.arange(len(y)), y]
    assert row["probabilities"] == pytest.approx(p.tolist(), rel=1e-4)
    assert row["losses"] == pytest.approx((-p.log()).tolist(), rel=1e-4)
    with pytest.raises(SpecError, match="'train' or 'test'"):
        predictions("all")


def test_probabilities_are_binned_between_0_and_1():
    row = {"split": "test", "probabilities": [0.0, 0.5, 1.0, 1.0], "losses": [700.0, 0.7, 0.0, 0.0]}
    rows = predictions().chart([row]).spec["datasets"]["rows"]
    found = {v["x"]: v["value"] for v in rows if v["panel"] == "probabilities test"}
    assert all(0 < x < 1 for x in found)
    assert found[max(found)] == 0.5
