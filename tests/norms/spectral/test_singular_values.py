"""Singular values against the decomposition of the explicit matrix: exact ones, and intervals for estimates."""

import copy
import math

import pytest
import torch
from hypothesis import given
from torch import nn

import opnorm.norms.spectral.singular_values as spectrum
import opnorm.norms.spectral.smallest_singular_value as smallest
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms import singular_value_spread, singular_values, smallest_singular_value
from opnorm.norms.spectral.convolution_matrix import as_convolution
from tests.norms.cases import convolutions
from tests.property_tests import examples


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
        (nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"), (1, 1)),  # the kernel meets itself
        (nn.Conv2d(2, 3, 3, stride=2, padding=1, padding_mode="circular"), (2, 2, 2)),
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


@pytest.mark.parametrize(
    ("layer", "in_shape"),
    [
        (nn.Conv2d(3, 4, 3, padding=1), (3, 5, 4)),
        (nn.Conv2d(3, 4, 3), (3, 5, 4)),
        (nn.Conv2d(2, 6, 3, stride=2, padding=1), (2, 6, 4)),
        (nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="reflect"), (4, 4, 4)),
    ],
)
def test_circular_values_are_those_of_the_layer_with_circular_padding(layer, in_shape):
    found = singular_values(layer, in_shape, circular=True)
    around = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        3,
        layer.stride,
        padding=1,
        groups=layer.groups,
        padding_mode="circular",
    )
    around.weight = layer.weight
    assert found.exact
    assert torch.allclose(found.values, truth(around, in_shape), atol=1e-9)


def test_circular_values_of_other_sizes_and_layers():
    """An odd input is rounded up to a whole number of strides; a transposed convolution is a convolution's adjoint."""
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    odd, even = (singular_values(layer, (2, n, n), circular=True).values for n in (5, 6))
    assert torch.equal(odd, even)
    transposed = nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1)
    transposed.weight = layer.weight
    assert torch.allclose(singular_values(transposed, (3, 3, 3), circular=True).values, even)
    linear = nn.Linear(4, 3)
    assert torch.equal(
        singular_values(linear, (4,), circular=True).values, singular_values(linear, (4,)).values
    )
    with pytest.raises(NormError, match="circular form is defined for"):
        singular_values(nn.BatchNorm2d(3).eval(), (3, 2, 2), circular=True)


@examples(100)
@given(convolutions())
def test_frobenius_norms_and_sparse_matrices(case):
    """In closed form, for every padding, against the matrix."""
    layer, in_shape = case
    M, convolution = linear_map(layer, in_shape).to_dense(), as_convolution(layer, in_shape)
    mode = convolution.geometry.mode
    assert convolution.inner_product(mode, mode) == pytest.approx(float(M.square().sum()), rel=1e-12)
    sparse = torch.from_numpy(convolution.to_sparse().toarray())
    assert torch.allclose(
        torch.linalg.svdvals(sparse), torch.linalg.svdvals(M), atol=1e-12 * float(M.norm() + 1)
    )


LARGE = [
    (nn.Conv2d(8, 8, 3, padding=1), (8, 9, 9)),
    (nn.Conv2d(3, 16, 3, padding=1), (3, 10, 10)),
    (nn.Conv2d(3, 16, 5, stride=2, padding=2), (3, 15, 14)),
    (nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=2), (8, 8, 8)),
    (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (6, 9, 9)),
    (nn.Conv2d(4, 4, 3, stride=2, padding=1, padding_mode="circular"), (4, 13, 13)),
    (nn.Conv2d(16, 8, 1, stride=2, padding=1), (16, 9, 9)),
    (nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1), (8, 6, 6)),
    (nn.Conv1d(8, 8, 3, padding=1), (8, 40)),
    (nn.Conv3d(3, 4, 3, padding=1), (3, 4, 5, 4)),
]


@pytest.mark.each_value
@pytest.mark.parametrize(("layer", "in_shape"), LARGE)
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_spread_without_a_decomposition(layer, in_shape, scale, monkeypatch):
    values = truth(layer, in_shape)
    std, mean = float(values.std(correction=0)), float(values.mean())
    monkeypatch.setattr(spectrum, "DENSE", 10)
    scaled = copy.deepcopy(layer)
    scaled.weight.data *= scale
    found = singular_value_spread(scaled, in_shape, failure_probability=1e-6)
    assert found.count == len(values)
    assert found.lower <= scale * std <= found.upper
    assert found.lower <= found.std <= found.upper
    assert found.error <= 0.01 * found.std
    assert found.mean == pytest.approx(scale * mean, rel=0.01)


@pytest.mark.slow
def test_spread_intervals_fail_as_rarely_as_they_say(monkeypatch):
    """More than 35 failures of 100, at 0.2 each, have a probability below 1e-3."""
    torch.manual_seed(0)
    layer, in_shape = nn.Conv2d(4, 4, 3, padding=1), (4, 8, 8)
    std = float(truth(layer, in_shape).std(correction=0))
    monkeypatch.setattr(spectrum, "DENSE", 10)
    found = [
        singular_value_spread(layer, in_shape, relative_error=0.03, failure_probability=0.2, seed=seed)
        for seed in range(100)
    ]
    failures = sum(not one.lower <= std <= one.upper for one in found)
    assert failures <= 35
    errors = torch.tensor([one.std / std - 1 for one in found])
    assert abs(float(errors.mean())) <= 4 * float(errors.std()) / 10, "no bias"
    assert len({one.std for one in found}) == 100


def test_spread_of_values_that_coincide(monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE", 10)
    layer = nn.Conv2d(3, 3, 3, padding=2)
    nn.init.dirac_(layer.weight)
    found = singular_value_spread(layer, (3, 6, 6))
    assert found.lower == 0
    assert found.upper <= 1e-4
    assert found.mean == pytest.approx(1)
    nn.init.zeros_(layer.weight)
    assert singular_value_spread(layer, (3, 6, 6)).upper == 0


def test_spread_refuses_what_it_cannot_know(monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE", 10)
    with pytest.raises(NormError, match="it is no convolution"):
        singular_value_spread(nn.BatchNorm2d(3).eval(), (3, 9, 9))
    layer = nn.Conv2d(2, 2, 3, padding=1)
    with pytest.raises(NormError, match="failure_probability=1"):
        singular_value_spread(layer, (2, 9, 9), failure_probability=1)
    layer.weight.data[0, 0] = math.nan
    for function in (singular_value_spread, singular_values, smallest_singular_value):
        with pytest.raises(NormError, match="NaN or infinite"):
            function(layer, (2, 9, 9))


@pytest.mark.parametrize(
    ("layer", "in_shape"), [*LARGE, (nn.Linear(9, 14), (9,)), (nn.Linear(14, 9), (2, 14))]
)
def test_smallest_singular_value(layer, in_shape, monkeypatch):
    """Decomposed, by blocks, and by bidiagonalization alone, which has no lower end."""
    value = float(truth(layer, in_shape)[-1])
    exact = smallest_singular_value(layer, in_shape)
    monkeypatch.setattr(spectrum, "DENSE", 10)
    blocks = smallest_singular_value(layer, in_shape)
    monkeypatch.setattr(smallest, "SIDE", 0)
    loose = smallest_singular_value(layer, in_shape)
    for norm in (exact, blocks, loose):
        assert float(norm.lower) <= value * (1 + 1e-12) + 1e-14
        assert value <= float(norm.upper) * (1 + 1e-12) + 1e-14
    assert float(exact.upper) - float(exact.lower) <= 1e-10
    assert float(blocks.lower) >= 0.8 * value - 1e-4
    assert float(blocks.upper) <= 1.1 * value + 1e-4
    assert ("not known" in loose.method) == (loose.method != exact.method)


@pytest.mark.parametrize("scale", [1.0, 1e-20])
def test_smallest_singular_value_without_full_rank(scale, monkeypatch):
    monkeypatch.setattr(spectrum, "DENSE", 10)
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    layer.weight.data[1] = layer.weight.data[0]
    layer.weight.data *= scale
    norm = smallest_singular_value(layer, (4, 8, 8))
    assert float(norm.lower) == 0
    assert float(norm.upper) <= 1e-6 * scale
    assert "not known" in norm.method
    nn.init.zeros_(layer.weight)
    assert float(smallest_singular_value(layer, (4, 8, 8)).upper) == 0
