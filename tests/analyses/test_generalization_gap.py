"""The generalization gap, against the same by hand."""

import pytest
import torch.nn.functional as F

from opnorm.analyses import generalization_gap
from tests.analyses.toys import pixels, random_labels, random_network

NETWORK = random_network


def test_gaps_features_by_hand(model):
    toy = random_labels()
    (row,) = generalization_gap()(model, toy)
    for name in ("train", "test"):
        x, y = pixels(getattr(toy, name))
        logits = model(x).detach().double()
        assert row[f"{name}_loss"] == pytest.approx(float(F.cross_entropy(logits, y)))
        assert row[f"{name}_error"] == pytest.approx(float((logits.argmax(1) != y).double().mean()))
        assert row[f"{name}_points"] == len(y)
    assert row["loss_gap"] == pytest.approx(row["test_loss"] - row["train_loss"])
    assert row["error_gap"] == pytest.approx(row["test_error"] - row["train_error"])
