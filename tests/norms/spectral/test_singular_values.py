"""Singular values against the decomposition of the explicit matrix, and the estimate's error against the truth."""

import math

import pytest
import torch
from torch import nn

import opnorm.norms.spectral.singular_values as spectrum
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms.spectral.singular_values import singular_values


def truth(layer, in_shape):
    return torch.linalg.svdvals(linear_map(layer, in_shape).to_dense())


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (nn.Linear(7, 4), (7,)),
        (nn.Linear(3, 5), (2, 3)),
        (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
        (nn.ConvTranspose2d(2, 3, 3, 2), (2, 4, 4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular"), (4, 6, 6)),
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 4)),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"), (2, 6, 8)),
        (nn.Conv2d(2, 9, 1, stride=2, padding_mode="circular"), (2, 6, 8)),
        (nn.Conv1d(3, 2, 5, padding=4, dilation=2, padding_mode="circular"), (3, 9)),
        (nn.BatchNorm2d(3), (3, 2, 2)),
    ],
)
def test_exact(layer, in_shape):
    found = singular_values(layer.eval(), in_shape)
    expected = truth(layer, in_shape)
    assert found.exact
    assert len(found.values) == len(expected)
    assert torch.allclose(found.values, expected, atol=1e-9)
    assert math.isclose(found.std, float(expected.std(correction=0)), rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 9, 9)),
        (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 10, 10)),
        (nn.Conv2d(4, 6, 5, padding=2, groups=2), (4, 8, 11)),
    ],
)
def test_estimate_is_as_good_as_it_says(layer, in_shape, monkeypatch):
    expected = truth(layer, in_shape)
    monkeypatch.setattr(spectrum, "DENSE", 10)
    found = singular_values(layer, in_shape)
    assert not found.exact
    assert len(found.values) == len(expected)
    rms = float((found.values - expected).square().mean().sqrt())
    assert 0 < rms <= found.error
    assert abs(found.std - float(expected.std(correction=0))) <= found.error
    assert math.isnan(found.condition)


def test_condition_and_plot(tmp_path):
    layer = nn.Linear(2, 2)
    layer.weight.data = torch.tensor([[3.0, 0.0], [0.0, 0.5]])
    found = singular_values(layer, (2,))
    assert math.isclose(found.condition, 6)
    layer.weight.data[1, 1] = 0
    assert singular_values(layer, (2,)).condition == math.inf
    assert found.plot(tmp_path / "values.svg").read_text().startswith("<svg")
    with pytest.raises(NormError, match="expected a name ending"):
        found.plot(tmp_path / "values.bmp")


def test_what_has_no_circular_form(monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE", 10)
    with pytest.raises(NormError, match="not known"):
        singular_values(nn.Conv2d(2, 2, 3), (2, 9, 9))
