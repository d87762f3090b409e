"""Robust accuracy of Wen, Li & Jia, against the same by hand."""

import math

import torch
from torch import nn

from opnorm.analyses import wen_robust_accuracy
from opnorm.attacks import pgd
from tests.analyses.toys import after, data, pixels, trained

NETWORK = trained


def test_wen_counts_only_points_that_are_classified_correctly(model):
    x, y = pixels(data().test)
    (row,) = wen_robust_accuracy(points=None)(model, data())
    right = model(x).argmax(1) == y
    held = int(after(model, pgd(math.inf, 8 / 255, 10, 2 / 255), x[right], y[right]).sum())
    assert row == {
        "eps": 8 / 255, "accuracy": held / int(right.sum()), "correct": held, "points": int(right.sum()), "of": len(y),
        "attack": "pgd(norm=inf, eps=8/255, steps=10, step=2/255, bf16=False)",
    }  # fmt: skip
    assert held < int(right.sum()) < len(y)


def test_wen_without_a_correct_point(model):
    opposite = nn.Sequential(model, nn.Linear(3, 3))
    nn.init.zeros_(opposite[1].weight)
    with torch.no_grad():
        opposite[1].bias.copy_(
            torch.tensor([0.0, 0.0, 1.0])
        )  # says 2, and the first 70 points are left out here
    toy = data()
    toy.test.labels[:70] = 0
    assert wen_robust_accuracy(points=None)(opposite, toy)[0]["accuracy"] is None
