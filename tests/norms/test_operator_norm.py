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


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_short_types_have_the_norm_of_their_values(dtype, ord):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3).to(dtype)
    values = nn.Conv2d(2, 3, 3)
    values.load_state_dict({name: tensor.float() for name, tensor in layer.state_dict().items()})
    found, true = (opnorm.operator_norm(one, ord, (2, 6, 6)) for one in (layer, values))
    assert float(found.upper) == pytest.approx(float(true.upper), rel=1e-6)
    layer.weight.data[0, 0, 0, 0] = math.nan
    with pytest.raises(NormError, match="weight has 1 of 54 entries that are NaN or infinite"):
        opnorm.operator_norm(layer, ord, (2, 6, 6))
