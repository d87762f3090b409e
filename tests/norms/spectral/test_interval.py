"""The ℓ2 interval holds the largest singular value of the explicit matrix."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.lanczos import lanczos
from opnorm._core.linear_map import linear_map
from opnorm.norms import Norm, operator_norm, power_iteration, spectral_norm
from opnorm.norms.exact.kernel_sums import conv_l2_bound
from opnorm.norms.spectral import lower_bound
from tests.norms.cases import convolutions, matrix, on_all_cases
from tests.property_tests import examples


def check(layer, shape, close=0.0):
    truth = float(torch.linalg.svdvals(matrix(layer, shape))[0])
    norm = operator_norm(layer, 2, shape)
    assert norm.lower <= truth * (1 + 1e-14)
    assert norm.upper >= truth * (1 - 1e-14)
    assert norm.lower >= close * truth
    assert norm.lower.dtype == norm.upper.dtype == torch.float64
    assert norm.lower.ndim == norm.upper.ndim == 0


@on_all_cases(pytest.mark.parametrize)
def test_interval(layer, shape):
    check(layer, shape, close=0.98)


@given(convolutions())
@examples(80)
def test_interval_of_any_convolution(case):
    check(*case, close=0.9)


@given(convolutions(max_size=4), st.sampled_from([0.01, 1e-8, 1e8]))
@examples(15)
def test_scale_does_not_matter(case, factor):
    """FastClip's shifted iteration loses a quarter of the norm when the kernel is multiplied by 0.01."""
    layer, shape = case
    before = operator_norm(layer, 2, shape)
    layer.weight.data.mul_(factor)
    after = operator_norm(layer, 2, shape)
    assert float(after.lower) == pytest.approx(factor * float(before.lower), rel=1e-6)
    assert float(after.upper) == pytest.approx(factor * float(before.upper), rel=1e-9)


@given(convolutions())
@examples(50)
def test_cheap_bound(case):
    layer, shape = case
    out_shape = linear_map(layer, shape).out_shape
    truth = float(torch.linalg.svdvals(matrix(layer, shape))[0])
    assert conv_l2_bound(layer.weight, out_shape[1:]) >= truth * (1 - 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_every_seed_and_every_number_of_steps_gives_a_lower_bound(seed):
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, padding=1)
    linear = linear_map(layer, (2, 5, 5))
    truth = float(torch.linalg.svdvals(matrix(layer, (2, 5, 5)))[0])
    values = [power_iteration(linear, n, seed) for n in (1, 2, 5, 20, 500)]
    assert values == sorted(values)
    assert values[-1] == pytest.approx(truth, rel=1e-3)
    assert max(values) <= truth


def test_a_zero_layer_is_zero_exactly():
    layer = nn.Conv2d(1, 1, 3)
    nn.init.zeros_(layer.weight)
    norm = operator_norm(layer, 2, (1, 5, 5))
    assert (float(norm.lower), float(norm.upper), norm.exact) == (0, 0, True)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.AvgPool2d(2), (2, 4, 4)), (nn.ConvTranspose2d(2, 2, 3, 2), (2, 3, 3)), (nn.Flatten(), (2, 3))],
)
def test_affine_layers_without_an_entry_have_a_lower_bound(layer, shape):
    check(layer, shape, close=0.9)


@pytest.mark.parametrize("layer", [nn.Linear(3, 5), nn.Conv2d(3, 5, 3)])
def test_the_order_of_a_weight_in_memory_does_not_matter(layer):
    shape = (3,) if isinstance(layer, nn.Linear) else (3, 6, 6)
    before = spectral_norm(layer, shape)
    layer.weight.data = layer.weight.data.transpose(0, 1).contiguous().transpose(0, 1)
    assert not layer.weight.is_contiguous()
    after = spectral_norm(layer, shape)
    assert float(after.upper) == pytest.approx(float(before.upper), rel=1e-2)
    assert float(after.lower) == pytest.approx(float(before.lower), rel=1e-2)


def test_seed_and_state_of_the_caller_do_not_matter():
    layer = nn.Conv2d(2, 3, 3)
    torch.manual_seed(1)
    first = spectral_norm(layer, (2, 5, 5))
    before = torch.get_rng_state()
    second = spectral_norm(layer, (2, 5, 5))
    assert torch.equal(torch.get_rng_state(), before)
    assert first == second
    with torch.enable_grad():
        assert not operator_norm(layer, 2, (2, 5, 5)).lower.requires_grad


def test_norm_is_exact_only_when_its_ends_meet():
    assert Norm.of(1, torch.tensor(1.0), "").exact
    assert not Norm.of(1, math.inf, "").exact


@pytest.mark.parametrize(("channels", "kernel"), [((3, 8), 3), ((8, 3), 3), ((16, 16), 5)])
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_large_map_costs_no_pass_over_it(channels, kernel, scale, monkeypatch):
    """The best wave reaches the peak of the frequency response there, which nothing on the map exceeds."""
    torch.manual_seed(0)
    layer, (c_in, _), passes = nn.Conv2d(*channels, kernel, padding=kernel // 2), channels, []
    layer.weight.data *= scale
    monkeypatch.setattr(lower_bound, "lanczos", lambda *args, **_: passes.append(1) or lanczos(*args, **_))
    operator_norm(layer, 2, (c_in, 24, 24))  # where no wave does
    assert passes
    middle = operator_norm(layer, 2, (c_in, 128, 128))
    passes.clear()
    norm = operator_norm(layer, 2, (c_in, 2048, 2048))
    assert not passes
    assert middle.lower <= norm.upper
    assert norm.upper <= 1.006 * norm.lower
    assert norm.upper <= 1.006 * middle.upper
