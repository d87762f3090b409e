"""The spread of singular values, against dense matrices."""

import pytest
import torch
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.analyses import singular_spread
from opnorm.data import Dataset, Split
from opnorm.models import cnn
from opnorm.norms import singular_values
from tests.analyses.toys import SHAPE, random_labels


def test_singular_spread_is_that_of_the_matrices():
    torch.manual_seed(1)
    net = cnn(in_shape=SHAPE, classes=3, width=2).eval()
    rows = singular_spread()(net, random_labels())
    modules = dict(net.named_modules())
    assert len(rows) == sum(isinstance(m, nn.Linear | nn.Conv2d) for m in net.modules())
    for row in rows:
        matrix = linear_map(modules[row["layer"]], tuple(row["in_shape"])).to_dense()
        values = torch.linalg.svdvals(matrix)
        assert row["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-9)
        assert row["mean"] == pytest.approx(float(values.mean()), rel=1e-9)
        assert row["circular_std"] == pytest.approx(
            singular_values(modules[row["layer"]], tuple(row["in_shape"]), circular=True).std
        )
        assert (row["count"], row["error"], row["note"]) == (min(matrix.shape), 0, "")


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own, whose matrix is no convolution's for all that is known."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_of_unknown_singular_values_hides_no_other():
    net = nn.Sequential(Scaled(1, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 61 * 61, 3))
    wide = Dataset(
        "wide", *(Split(torch.zeros(3, 1, 60, 60, dtype=torch.uint8), torch.arange(3)),) * 2, ("a", "b", "c")
    )
    unknown, known = singular_spread()(net, wide)
    assert "not known" in unknown["note"]
    assert "std" not in unknown
    assert known["std"] > 0
    assert known["note"] == ""


def test_changes_between_two_networks_by_hand():
    def rows(stds, error=0.0):
        return [
            {"layer": name, "std": std, "circular_std": 2 * std, "error": error} for name, std in stds.items()
        ]

    before = [*rows({"a": 1.0, "b": 2.0, "c": 3.0}), {"layer": "d", "note": "not known"}]
    after = {"a": 1.5, "b": 1.0, "c": 3.0, "e": 9.0}
    circular, own = singular_spread().compare(before, rows(after), "x", "y").split("; ")
    assert "y against x" in circular
    assert "larger in 1 (by 1 in sum" in circular
    assert "smaller in 1 (by 2 in sum" in circular
    assert "of 3 layers" in circular
    assert "larger in 1 (by 0.5 in sum" in own
    assert "smaller in 1 (by 1 in sum" in own
    within, estimates = singular_spread().compare(before, rows(after, error=0.7), "x", "y").split("; ")
    assert within == circular, "the circular values are exact"
    assert "larger in 0" in estimates, "errors may make up a difference"
    assert "smaller in 1" in estimates
    assert singular_spread().compare(before, [], "x", "y") == ""


def test_halved_weights_halve_the_spread_of_every_layer():
    """Zero-padded layers too large for a decomposition: each change is half of the spread, in both quantities."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(), nn.Conv2d(8, 12, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 17 * 17, 3),
    )  # fmt: skip
    images = Split(torch.zeros(3, 1, 34, 34, dtype=torch.uint8), torch.arange(3))
    data = Dataset("zeros", images, images, ("a", "b", "c"))
    before = singular_spread()(net, data)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter /= 2
    after = singular_spread()(net, data)
    text = singular_spread().compare(before, after, "x", "y")
    for key, part in zip(("circular_std", "std"), text.split("; "), strict=True):
        half = sum(row[key] for row in before) / 2
        assert f"smaller in 4 (by {half:.3g} in sum" in part
        assert "larger in 0" in part
    estimated = [row for row in before if row["failure_probability"]]
    assert estimated
    assert all(row["error"] <= 0.01 * row["std"] for row in estimated)
