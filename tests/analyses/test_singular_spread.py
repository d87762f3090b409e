"""The spread of singular values, against dense matrices."""

import pytest
import torch
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.analyses import singular_spread
from opnorm.data import Dataset, Split
from opnorm.models import cnn
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
        assert row["largest"] == pytest.approx(float(values.max()), rel=1e-9)
        assert (row["count"], row["error"], row["note"]) == (min(matrix.shape), 0, "")


def test_a_layer_of_unknown_singular_values_hides_no_other():
    net = nn.Sequential(nn.Conv2d(1, 130, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(130 * 61 * 61, 3))
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
        return [{"layer": name, "std": std, "error": error} for name, std in stds.items()]

    before = [*rows({"a": 1.0, "b": 2.0, "c": 3.0}), {"layer": "d", "note": "not known"}]
    after = {"a": 1.5, "b": 1.0, "c": 3.0, "e": 9.0}
    text = singular_spread().compare(before, rows(after), "x", "y")
    assert text.startswith("Of 3 layers, ")
    assert "in y against x, larger in 1 (by 0.5 in sum" in text
    assert "smaller in 1 (by 1 in sum" in text
    within = singular_spread().compare(before, rows(after, error=0.7), "x", "y")
    assert "larger in 0" in within, "errors may make up a difference"
    assert singular_spread().compare(before, [], "x", "y") == ""
