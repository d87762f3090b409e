"""A shift of scale changes weight decay and nothing else."""

import math

import pytest
import torch
from torch import nn

from opnorm.analyses import scale_shift
from opnorm.errors import ModelError
from opnorm.theory.weight_scale import least_weight_decay
from tests.analyses.toys import data, trained

NETWORK = trained


def test_decay_falls_to_its_least_and_nothing_else_moves(model):
    toy = data()
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).weight.mul_(4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    (row,) = scale_shift(points=20)(model, toy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert row["decay"] == pytest.approx(math.fsum(size**2 for size in row["sizes"]))
    assert row["least_decay"] == pytest.approx(least_weight_decay(model, toy.test.images[:1].float() / 255))
    assert row["least_decay"] < 0.9 * row["decay"]
    assert row["sizes_after"] == pytest.approx([row["sizes_after"][0]] * len(row["layers"]))
    assert math.prod(row["factors"]) == pytest.approx(1)
    assert row["complexity_after"] == pytest.approx(row["complexity"])
    assert row["log10_energy_after"] == pytest.approx(row["log10_energy"])
    assert row["logit_change"] < 1e-12
    ((_, ratio),) = scale_shift().columns([row])
    assert ratio == pytest.approx(row["decay"] / row["least_decay"])


def test_other_networks_are_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.raises(ModelError, match="scale cannot be shifted"):
        scale_shift(points=5)(model, data())
