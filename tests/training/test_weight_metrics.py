"""Norms, energy and complexity of the weights: by their formulae, on networks where they are known."""

import math

import pytest
import torch
from torch import nn

from opnorm import operator_norm
from opnorm.analyses import weight_energy
from opnorm.data import digits
from opnorm.models import cnn, resnet
from opnorm.training import TrainingSettings, train, weight_metrics


def test_by_hand():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False), nn.ReLU(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 0, 0, 0], [0, 4.0, 0, 0]]))
        model[3].weight.copy_(torch.tensor([[1.0, -1], [0, 2]]))
    found = weight_metrics(model, torch.rand(3, 1, 2, 2))
    assert found["layer_norms_1"] == {"1": 4.0, "3": 3.0}
    assert found["layer_norms"] == {"1": 4.0, "3": 2.0}
    assert found["layer_norms_2"]["1"] == pytest.approx(4)
    assert found["norm_1"] == pytest.approx(math.sqrt(12))
    assert found["weight_energy"] == pytest.approx(25 * 6)
    assert found["log10_weight_energy"] == pytest.approx(math.log10(150))
    assert found["weight_complexity"] == pytest.approx(7 / 5 + 4 / math.sqrt(6))


def test_a_layer_of_zeros_and_an_energy_out_of_range():
    model = resnet(depth=8, in_shape=(1, 8, 8), width=2, norm="fixup")
    found = weight_metrics(model, torch.rand(1, 1, 8, 8))
    assert found["weight_energy"] == 0
    assert found["log10_weight_energy"] == -math.inf
    assert math.isfinite(found["weight_complexity"])
    wide = nn.Sequential(nn.Flatten(), *(nn.Linear(64, 64) for _ in range(3))).double()
    with torch.no_grad():
        for layer in wide[1:]:
            layer.weight.fill_(1e60)
    found = weight_metrics(wide, torch.rand(1, 1, 8, 8))
    assert found["weight_energy"] == math.inf
    assert found["log10_weight_energy"] == pytest.approx(3 * (2 * 60 + 2 * math.log10(64)))


def test_a_layer_that_is_called_twice_and_one_of_unknown_norm():
    class Own(nn.Linear):
        def forward(self, x):
            return super().forward(x).abs()

    shared = nn.Conv2d(1, 1, 3, padding=1)
    model = nn.Sequential(shared, nn.AvgPool2d(4), shared, nn.Flatten(), Own(4, 2))
    found = weight_metrics(model, torch.rand(1, 1, 8, 8))
    assert found["layer_norms"]["0"] == pytest.approx(float(operator_norm(shared, math.inf, (1, 8, 8)).upper))
    assert found["layer_norms_1"]["4"] is None
    weights = [shared.weight.detach(), model[4].weight.detach()]
    assert found["weight_energy"] == pytest.approx(
        float(torch.stack([w.norm() ** 2 for w in weights]).prod())
    )


def test_computed_weights_count_each():
    model = nn.Sequential(
        nn.Flatten(), *(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(6))
    )
    found = weight_metrics(model, torch.rand(1, 1, 2, 2))
    energy = math.prod(float(layer.weight.detach().norm() ** 2) for layer in model[1:])
    assert found["weight_energy"] == pytest.approx(energy)


def test_they_are_those_of_the_analysis_and_of_the_epoch():
    data = digits().limit(100)
    torch.manual_seed(0)
    model, x = cnn(in_shape=(1, 8, 8), width=3), torch.rand(2, 1, 8, 8)
    history = train(model, data, TrainingSettings(epochs=2), probe=lambda m: weight_metrics(m, x))
    (row,) = weight_energy()(model, data)
    last = weight_metrics(model, x)
    assert {k: history[-1][k] for k in last} == last
    assert history[0]["weight_energy"] != last["weight_energy"]
    assert last["log10_weight_energy"] == pytest.approx(row["log10_energy"])
    assert last["weight_complexity"] == pytest.approx(row["complexity"])
