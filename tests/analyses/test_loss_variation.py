"""The variation of the loss, against a closed form."""

import pytest
import torch
from torch import nn

from opnorm.analyses import loss_variation
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


def test_loss_variation_of_a_linear_model():
    """Two classes, CE = softplus of the margin, whose largest change PGD reaches in a corner of the ball."""
    toy = data()
    w = torch.randn(16, generator=torch.Generator().manual_seed(1)) / 4
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        linear[1].weight.copy_(torch.stack([w, -w, 0 * w]))
        linear[1].bias.copy_(torch.tensor([-0.2, 0.2, -1e9]))
    toy.test.labels[:70] = 0
    toy.test.images.clamp_(10, 245)  # away from the box
    x, y = pixels(toy.test)
    rows = loss_variation(points=None)(linear, toy)
    assert [row["eps"] for row in rows] == [1 / 255, 2 / 255, 4 / 255]
    sign = torch.where(y == 0, -1.0, 1.0).double()
    margin = sign * (2 * x.flatten(1).double() @ w.double() - 0.4)
    for row in rows:
        higher = margin + 2 * row["eps"] * w.double().abs().sum()
        change = nn.functional.softplus(higher) - nn.functional.softplus(margin)
        assert row["mean"] == pytest.approx(float(change.mean()), rel=1e-3)
        assert row["std"] == pytest.approx(float(change.std(correction=0)), rel=1e-3)
        assert row["points"] == len(y)


def test_loss_variation_grows_with_the_radius(model):
    rows = loss_variation(eps=(4 / 255, 0, 1 / 255), points=90)(model, data())
    assert [r["eps"] for r in rows] == [0, 1 / 255, 4 / 255]
    assert rows[0]["mean"] == rows[0]["std"] == 0
    assert rows[0]["mean"] < rows[1]["mean"] < rows[2]["mean"]
    assert rows[0]["points"] == 90
