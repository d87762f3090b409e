"""Input gradients and their bounds, against the same by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.analyses import input_gradients
from opnorm.theory import input_gradient_bound
from tests.analyses.toys import pixels, random_labels, random_network

NETWORK = random_network


def test_input_gradients_by_hand_and_within_their_bounds(model):
    toy = random_labels()
    (row,) = input_gradients(points=20)(model, toy)
    x, y = (t[:20] for t in pixels(toy.test))
    for i in range(20):
        z = x[i : i + 1].clone().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(z), y[i : i + 1]), z)
        assert row["lengths"][i] == pytest.approx(float(g.norm()), rel=1e-4)
    assert row["bounds"] == pytest.approx(input_gradient_bound(model, x, y).loss.tolist(), rel=1e-4)
    assert all(g <= b for g, b in zip(row["lengths"], row["bounds"], strict=True))
    assert (row["points"], row["reason"]) == (20, "")
    assert all(p.grad is None for p in model.parameters())


def test_gradients_without_a_known_bound_say_why():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = nn.Linear(16, 3)

        def forward(self, x):
            return self.inside(x.flatten(1))

    (row,) = input_gradients()(Own().eval(), random_labels())
    assert row["bounds"] is None
    assert "Own" in row["reason"]
    assert len(row["lengths"]) == 30


def test_a_gradient_of_0_counts_to_the_first_bin():
    row = {"lengths": [0.0, 1e-3, 1.0, 1.0], "bounds": None}
    rows = input_gradients().chart([row]).spec["datasets"]["rows"]
    shares = {v["x"]: v["value"] for v in rows if v["panel"] == "lengths"}
    assert shares[min(shares)] == 0.5
