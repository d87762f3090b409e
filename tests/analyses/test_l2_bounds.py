"""Bounds of ℓ2 norms hold on either side of the explicit matrix's norm."""

import pytest
import torch
from torch import nn

from opnorm.analyses import l2_bounds
from opnorm.data import Dataset, Split
from opnorm.norms import linear_map


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 4, 3, 2, 1), nn.Flatten(), nn.Linear(16, 3)
    )


def test_upper_bounds_are_above_and_lower_ones_below():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    split = Split(images, torch.tensor([0, 1]))
    model = network()
    rows = l2_bounds()(model, Dataset("toy", split, split, ("a", "b", "c")))
    assert [row["kind"] for row in rows] == ["Conv2d", "Conv2d", "Linear"]
    for row, layer in zip(rows, (model[0], model[2], model[4]), strict=True):
        want = float(torch.linalg.matrix_norm(linear_map(layer, tuple(row["in_shape"])).to_dense(), 2))
        assert row["lower"] <= want <= row["upper"]
        assert row["vs"] == pytest.approx(want, rel=1e-2)
        assert row["vs"] <= want * (1 + 1e-6)
        assert all(row[name] >= want for name in ("thm1", "schur", "gram", "sgl") if row[name] is not None)
    weight = model[0].weight.detach()
    assert rows[0]["thm1"] == pytest.approx(float(16 * weight.square().sum()) ** 0.5)
    assert rows[1]["sgl"] is None
    assert "stride 1" in rows[1]["notes"]["sgl"]
    assert "by Theorem 1 of Liang & Huang (3 of 3 layers); " in l2_bounds().sentence(rows)
