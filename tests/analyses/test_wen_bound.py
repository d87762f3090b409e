"""Wen's bound by hand, and what it is given by itself."""

import math

import pytest
import torch
from torch import nn

from opnorm.analyses import wen_bound
from opnorm.certificates import lipschitz_radius
from opnorm.data import Dataset, Split
from opnorm.errors import ModelError, SpecError
from tests.analyses.toys import data


def network():
    """On one pixel: logits ±4 (x - 1/2), so that the boundary is at 1/2; ‖w_0 - w_1‖_2 = 4 after a layer of norm 2."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2))
    with torch.no_grad():
        net[1].weight.fill_(2)
        net[3].weight.copy_(torch.tensor([[-2.0], [2.0]]))
        net[3].bias.copy_(torch.tensor([2.0, -2.0]))
    return net


def points():
    images = torch.tensor([0, 10, 245, 255], dtype=torch.uint8).view(4, 1, 1, 1)
    split = Split(images, torch.tensor([0, 0, 1, 1]))
    return Dataset("toy", split, split, ("dark", "bright"))


def test_every_term_by_hand():
    (row,) = wen_bound(gamma=10.0, cover_eps=0.05, cover_constant=0.5, cover_dimension=1.0)(
        network(), points()
    )
    assert row["smallest"] == [pytest.approx(2)]
    assert row["row_gap"] == pytest.approx(4)
    radius = 0.5 - 10 / 255  # the certified one; the bound is exact here
    x = points().train.images.float() / 255
    assert float(lipschitz_radius(network(), x, points().train.labels, 2).min()) == pytest.approx(
        radius, rel=1e-5
    )
    assert row["v_min"] == pytest.approx(radius - 0.1, rel=1e-4)
    assert row["u_min"] == pytest.approx(4 * 2 * (radius - 0.1), rel=1e-4)
    assert row["margin_term"] == pytest.approx(1 - row["u_min"] / 10)
    assert row["covering_term"] == pytest.approx(2 * math.log(2) * 10 / 4)
    assert row["confidence_term"] == pytest.approx(2 * math.log(20) / 4)
    root = math.sqrt(row["covering_term"] + row["confidence_term"])
    assert row["value"] == pytest.approx(row["margin_term"] + root)
    assert "(vacuous: at least 1)" in wen_bound().sentence([row])


def test_a_misclassified_training_point_leaves_no_distance():
    wrong = points()
    split = Split(wrong.train.images, torch.tensor([1, 0, 1, 1]))
    (row,) = wen_bound(cover_eps=0.01)(network(), Dataset("toy", split, wrong.test, ("dark", "bright")))
    assert (row["v_min"], row["margin_term"]) == (0, 1)
    (given,) = wen_bound(v_min=1e3)(network(), wrong)
    assert given["margin_term"] == 0


def test_an_infinite_term_and_what_is_refused():
    (row,) = wen_bound(cover_eps=1e-9, cover_dimension=1e4)(network(), points())
    assert (row["value"], row["covering_term"], row["vacuous"]) == (None, None, True)
    assert "is at most infinite" in wen_bound().sentence([row])
    with pytest.raises(SpecError, match="cover_eps=0"):
        wen_bound(cover_eps=0)
    with pytest.raises(SpecError, match="v_min=-1"):
        wen_bound(v_min=-1)
    with pytest.raises(ModelError, match="is a Tanh"):
        wen_bound()(nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3)), data())
