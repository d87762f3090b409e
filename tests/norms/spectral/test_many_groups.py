"""Of a convolution of many groups, only those whose norm can be the largest are diagonalized or factorized."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.norms import spectral_norm
from opnorm.norms.spectral import explicit_matrix
from opnorm.norms.spectral.group_selection import leading_groups
from opnorm.norms.spectral.interval import polyphase_of
from tests.norms.cases import matrix
from tests.property_tests import examples

CHANNELS = 18


@pytest.mark.parametrize("scales", ["equal", "1e-20 to 1"])
@pytest.mark.parametrize(("kernel", "size", "stride"), [(3, 14, 1), (7, 22, 1), (5, 30, 2)])
def test_the_interval_is_that_of_the_largest_channel(kernel, size, stride, scales, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(CHANNELS, CHANNELS, kernel, stride, kernel // 2, groups=CHANNELS, bias=False)
    if scales != "equal":
        factors = torch.logspace(-20, 0, CHANNELS)[torch.randperm(CHANNELS)]
        layer.weight.data *= factors.view(-1, 1, 1, 1)
    made, real = [], explicit_matrix.gram_matrices

    def counted(t):
        made.append(len(t.matrices))
        return real(t)

    monkeypatch.setattr(explicit_matrix, "gram_matrices", counted)
    found = spectral_norm(layer, (CHANNELS, size, size))
    assert sum(made) <= CHANNELS // 3
    truth = 0.0
    for channel in range(CHANNELS):
        one = nn.Conv2d(1, 1, kernel, stride, kernel // 2, bias=False)
        one.weight.data = layer.weight.data[channel : channel + 1]
        truth = max(truth, float(spectral_norm(one, (1, size, size), 1e-9).upper))
    assert found.lower <= truth
    assert found.upper >= truth * (1 - 1e-8)
    assert found.relative_width <= 5e-3


def one_by_one(layer, in_shape):
    """The norm of each group by its explicit matrix."""
    groups, truth = layer.groups, []
    for weight in layer.weight.detach().double().chunk(groups):
        settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation
        one = nn.Conv2d(weight.shape[1], len(weight), *settings, bias=False, dtype=torch.float64)
        one.weight.data = weight
        truth.append(float(torch.linalg.svdvals(matrix(one, (weight.shape[1], *in_shape[1:])))[0]))
    return truth


@given(
    st.integers(4, 12), st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 3, (2, 3)]), st.integers(1, 2),
    st.integers(3, 6), st.sampled_from([0.0, 1.0, 30.0]), st.sampled_from([1e-30, 1.0, 1e30]), st.integers(0, 2**31),
)  # fmt: skip
@examples(40)
def test_groups_that_are_left_out_are_not_the_largest(
    groups, c_in, c_out, kernel, stride, size, spread, unit, seed
):
    torch.manual_seed(seed)
    layer = nn.Conv2d(groups * c_in, groups * c_out, kernel, stride, 1, groups=groups, bias=False)
    scales = unit * 10 ** (-spread * torch.rand(groups))
    layer.weight.data *= scales.repeat_interleave(c_out).view(-1, 1, 1, 1)
    in_shape = (groups * c_in, size, size)
    t = polyphase_of(layer, in_shape)
    kept, lower, rest = leading_groups(t, 5e-3)
    truth = one_by_one(layer, in_shape)
    left = {i for i, A in enumerate(t.matrices) if any(torch.equal(A, B) for B in kept.matrices)}
    assert len(left) >= 1
    assert lower <= max(truth) * (1 + 1e-9)
    assert all(truth[i] <= rest * (1 + 1e-9) for i in range(groups) if i not in left)
    assert rest <= lower * (1 + 5e-3)
    found = spectral_norm(layer, in_shape)
    assert float(found.lower) <= max(truth) * (1 + 1e-9)
    assert float(found.upper) >= max(truth) * (1 - 1e-9)


@pytest.mark.parametrize(("channels", "size"), [(2, 8), (2, 20), (4, 8), (4, 14)])
def test_few_of_many_groups_are_factorized(channels, size, monkeypatch):
    """What is made or diagonalized for 60 groups is at most that of a tenth of them, and the interval as narrow."""
    torch.manual_seed(0)
    layer = nn.Conv2d(60 * channels, 60 * channels, 3, padding=1, groups=60, bias=False)
    made, real = [], explicit_matrix.gram_matrices
    monkeypatch.setattr(explicit_matrix, "gram_matrices", lambda t: made.append(len(t.matrices)) or real(t))
    found = spectral_norm(layer, (60 * channels, size, size))
    assert sum(made) <= 6
    assert found.relative_width <= 5e-3
    kept, _, _ = leading_groups(polyphase_of(layer, (60 * channels, size, size)), 5e-3)
    assert len(kept.matrices) <= 6
    if size < 10:
        truth = max(one_by_one(layer, (60 * channels, size, size)))
        assert float(found.lower) <= truth * (1 + 1e-9)
        assert float(found.upper) >= truth * (1 - 1e-9)


def test_equal_groups_and_zero_groups():
    layer = nn.Conv2d(24, 24, 3, padding=1, groups=8, bias=False)
    one = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.weight.data = one.repeat(8, 1, 1, 1)
    alone = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    alone.weight.data = one
    found, truth = spectral_norm(layer, (24, 9, 9)), spectral_norm(alone, (3, 9, 9), 1e-9)
    assert found.lower <= truth.upper
    assert found.upper >= truth.lower
    layer.weight.data[:12] = 0
    assert spectral_norm(layer, (24, 9, 9)).upper >= truth.lower
    layer.weight.data.zero_()
    nothing = spectral_norm(layer, (24, 9, 9))
    assert (float(nothing.lower), float(nothing.upper)) == (0.0, 0.0)
    assert not math.isnan(nothing.relative_width)
