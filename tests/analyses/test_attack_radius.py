"""The radius of adversarial training by the paper's rule, against the distances to the boundary of a linear network."""

import math

import pytest
import torch
from torch import nn

from opnorm.analyses import attack_radius
from opnorm.data import Dataset
from opnorm.data.dataset import Split, as_pixels
from opnorm.errors import SpecError


def linear_model(w: torch.Tensor) -> nn.Module:
    """Two classes: the second where w · x > w · 1/2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-w / 2, w / 2]))
        model[1].bias.copy_(torch.stack([w.sum() / 4, -w.sum() / 4]))
    return model.eval()


@pytest.fixture
def linear() -> tuple[nn.Module, Dataset, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, generator=generator)
    images = torch.randint(
        100, 156, (60, 1, 4, 4), dtype=torch.uint8, generator=generator
    )  # far from 0 and 1
    model = linear_model(w)
    split = Split(images, model(as_pixels(images)).argmax(1))
    return model, Dataset("two", split, split, ("a", "b")), (as_pixels(images).flatten(1) - 0.5) @ w


@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (math.inf, 1)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_radius_is_the_quantile_of_the_distances(linear, norm, dual, share):
    model, data, margins = linear
    distances = (margins.abs() / margins.new_tensor(linear_weight_norm(model, dual))).sort().values
    wanted = float(distances[math.ceil(share * len(distances)) - 1])
    (row,) = attack_radius(norm, share, precision=0.02)(model, data)
    found = row["eps"]
    assert (row["points"], row["reason"]) == (60, "")
    assert wanted * (1 - 1e-4) <= found <= wanted * 1.03


def linear_weight_norm(model: nn.Module, order: float) -> float:
    w = model[1].weight[1] - model[1].weight[0]
    return float(torch.linalg.vector_norm(w, order))


@pytest.mark.parametrize("factor", [1 / 3000, 0.0])
def test_radii_far_below_a_gray_level(linear, factor):
    """The network of images that are ``factor`` times as far from the boundary; at 0 any radius is enough."""
    model, _, margins = linear
    w = model[1].weight[1] - model[1].weight[0]
    images = torch.full((8, 1, 4, 4), 128, dtype=torch.uint8)
    distance = factor * float(margins.abs().max()) / linear_weight_norm(model, 2)
    with torch.no_grad():  # all images are the same: the boundary is moved to this distance from them
        side = distance * float(torch.linalg.vector_norm(w)) / 2
        at = float(w @ as_pixels(images)[0].flatten()) / 2
        model[1].bias.copy_(torch.tensor([at, -at]) + torch.tensor([side, -side]))
    split = Split(images, model(as_pixels(images)).argmax(1))
    (row,) = attack_radius(2, 1.0, precision=0.02)(model, Dataset("one", split, split, ("a", "b")))
    if factor:
        assert distance < 1 / 255 / 4
        assert row["eps"] == pytest.approx(distance, rel=0.05)
    else:
        assert 0 < row["eps"] < 1e-6


def test_a_constant_model_has_no_such_radius():
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    data = Dataset("one", split, split, ("a", "b"))
    with pytest.warns(UserWarning, match="gradient is exactly zero"):
        (row,) = attack_radius()(model, data)
    assert row["eps"] is None
    assert "less than 99% of the points at any radius up to 2" in row["reason"]
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 1.0]))
    (row,) = attack_radius()(model, data)
    assert (row["eps"], row["points"]) == (None, 0)
    assert "no test point" in attack_radius().sentence([row])


@pytest.mark.parametrize("settings", [{"share": 0}, {"share": 1.1}, {"precision": 0}])
def test_settings_that_make_no_sense(settings):
    with pytest.raises(SpecError, match=f"{next(iter(settings))}="):
        attack_radius(**settings)


def test_no_correct_point_among_the_first_ones(linear):
    """More points than one batch has, those of the first all misclassified."""
    model, data, _ = linear
    images, labels = data.test
    many = Split(images.repeat(10, 1, 1, 1), torch.cat([1 - labels.repeat(9), labels]))
    (row,) = attack_radius(points=None)(model, Dataset("two", many, many, ("a", "b")))
    (alone,) = attack_radius()(model, data)
    assert (row["points"], row["eps"]) == (60, alone["eps"])
