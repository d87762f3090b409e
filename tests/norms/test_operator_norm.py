"""The norm from RMS to RMS by name."""

import math

import pytest
import torch
from torch import nn

import opnorm
from opnorm.errors import NormError
from opnorm.norms import NormTable

LAYERS = {
    "linear": (nn.Linear(6, 3), (6,)),
    "conv": (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 8, 8)),
    "pool": (nn.AvgPool2d(2), (2, 8, 8)),
    "flatten": (nn.Flatten(), (2, 4, 4)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_rms_norm_is_that_of_the_dense_matrix(name):
    layer, shape = LAYERS[name]
    M = opnorm.norms.linear_map(layer, shape).to_dense()
    truth = float(torch.linalg.matrix_norm(M, 2)) * math.sqrt(M.shape[1] / M.shape[0])
    norm = opnorm.operator_norm(layer, "rms", shape)
    assert norm.lower <= truth * (1 + 1e-13)
    assert norm.upper >= truth * (1 - 1e-13)
    assert norm.relative_width < 6e-3


def test_the_table_has_it_and_comes_back_from_json():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2))
    table = opnorm.measure(model, torch.zeros(1, 1, 8, 8), ords=("rms",))
    conv, relu, pool = table.rows
    assert conv.norms["rms"].upper > 0
    assert relu.lipschitz["rms"] == 1
    assert pool.lipschitz["rms"] == 2, "a quarter as many outputs"
    assert NormTable.from_json(table.to_json()).rows[0].norms["rms"].upper == conv.norms["rms"].upper
    assert "RMS" in str(table)


def test_other_words_are_no_norm():
    with pytest.raises(NormError, match="rms"):
        opnorm.operator_norm(nn.Linear(2, 2), "rsm")
    with pytest.raises(NormError, match="along the graph"):
        opnorm.lipschitz_bound(nn.Linear(2, 2), torch.zeros(1, 2), "rms")
