"""Weight energy and complexity, against the same by hand."""

import copy
import math

import pytest
import torch
from torch import nn

from opnorm.analyses import singular_spread, weight_energy
from opnorm.errors import ModelError
from tests.analyses.toys import random_labels, random_network

NETWORK = random_network


def test_weight_energy_features_by_hand(model):
    (row,) = weight_energy()(model, random_labels())
    weights = [m.weight.detach().double() for m in model.modules() if isinstance(m, nn.Linear)]
    energy = math.prod(float(w.square().sum()) for w in weights)
    assert 10 ** row["log10_energy"] == pytest.approx(energy, rel=1e-9)
    assert row["complexity"] == pytest.approx(sum(float(w.abs().sum() / w.norm()) for w in weights), rel=1e-9)
    assert row["complexity"] == pytest.approx(sum(row["complexities"]))
    assert row["sizes"] == pytest.approx([float(w.norm()) for w in weights])


def test_energy_and_complexity_stay_when_scale_is_shifted(model):
    shifted = copy.deepcopy(model)
    linears = [m for m in shifted.modules() if isinstance(m, nn.Linear)]
    with torch.no_grad():
        linears[0].weight.mul_(8)
        linears[1].weight.div_(8)
    (a,), (b,) = weight_energy()(model, random_labels()), weight_energy()(shifted, random_labels())
    assert a["sizes"] != b["sizes"]
    assert a["log10_energy"] == pytest.approx(b["log10_energy"])
    assert a["complexity"] == pytest.approx(b["complexity"])


def test_a_weight_of_zeros_has_no_energy_and_tied_weights_count_once():
    first = nn.Linear(16, 16)
    tied = nn.Sequential(nn.Flatten(), first, nn.ReLU(), first, nn.Linear(16, 3))
    (row,) = weight_energy()(tied, random_labels())
    assert row["layers"] == ["1", "4"]
    nn.init.zeros_(tied[4].weight)
    (row,) = weight_energy()(tied, random_labels())
    assert row["log10_energy"] is None
    assert row["complexities"][1] == 0


def test_a_parametrized_weight_counts_once_and_hides_no_other():
    layers = [nn.utils.parametrizations.orthogonal(nn.Linear(16, 16)) for _ in range(3)]
    model = nn.Sequential(nn.Flatten(), *layers, layers[0])
    (row,) = weight_energy()(model, random_labels())
    assert row["layers"] == ["1", "2", "3"]
    assert row["sizes"] == pytest.approx([4, 4, 4], rel=1e-5)


@pytest.mark.parametrize("analysis", [singular_spread, weight_energy])
def test_a_network_without_weights_is_refused(analysis):
    with pytest.raises(ModelError, match="no linear or convolutional layer"):
        analysis()(nn.Flatten(), random_labels())
