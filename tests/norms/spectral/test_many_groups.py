"""Of a convolution of many groups, only those whose norm can be the largest are diagonalized or factorized."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.norms import spectral_norm
from opnorm.norms.spectral import explicit_matrix, frequency_response, group_selection
from opnorm.norms.spectral.frequency_response import gram
from opnorm.norms.spectral.group_selection import leading_groups
from opnorm.norms.spectral.interval import polyphase_of
from tests.norms.cases import matrix
from tests.property_tests import examples

CHANNELS = 18


@pytest.mark.each_value
@pytest.mark.parametrize("scales", ["equal", "1e-20 to 1"])
@pytest.mark.parametrize(("kernel", "size", "stride"), [(3, 14, 1), (7, 16, 1), (5, 18, 2)])
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
        one = type(layer)(weight.shape[1], len(weight), *settings, bias=False, dtype=torch.float64)
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


@given(
    st.integers(1, 2), st.integers(4, 9), st.integers(1, 3), st.sampled_from([1, 3, 5, 7]), st.integers(1, 2),
    st.sampled_from(["zeros", "circular"]), st.sampled_from([0.0, 1e-9, 1e-4, 1e-2]),
    st.sampled_from([0.0, 1e-7, 3e-3, 0.02]), st.sampled_from([1e-30, 1.0, 1e30]), st.integers(0, 2**31),
)  # fmt: skip
@examples(40)
def test_the_largest_of_nearly_equal_groups(
    axes, groups, channels, kernel, stride, mode, noise, more, unit, seed
):
    torch.manual_seed(seed)
    weights = torch.randn(1, channels, channels, *[kernel] * axes, dtype=torch.float64)
    weights = weights + noise * torch.randn(groups, *weights.shape[1:], dtype=torch.float64)
    weights[groups // 2] *= 1 + more
    width, size = groups * channels, (8, 40)[axes == 1]
    kind = (nn.Conv1d, nn.Conv2d)[axes - 1]
    layer = kind(width, width, kernel, stride, kernel // 2, groups=groups, padding_mode=mode, bias=False)
    layer = layer.double()
    layer.weight.data = unit * weights.flatten(0, 1)
    in_shape = width, *[size] * axes
    found, truth = spectral_norm(layer, in_shape), 0.0
    for weight in layer.weight.detach().chunk(groups):
        one = kind(channels, channels, kernel, stride, kernel // 2, padding_mode=mode, bias=False).double()
        one.weight.data = weight
        truth = max(truth, float(torch.linalg.svdvals(matrix(one, (channels, *in_shape[1:])))[0]))
    assert float(found.lower) <= truth * (1 + 1e-9)
    assert float(found.upper) >= truth * (1 - 1e-9)
    assert found.relative_width <= 5e-3


@pytest.mark.parametrize(("channels", "kernel", "size"), [(4, 3, 56), (16, 3, 56), (8, 5, 40), (2, 7, 40)])
def test_a_coarse_grid_leaves_few_groups(channels, kernel, size, monkeypatch):
    """Of 80 groups, on average two grids see a group, and one or two groups are left."""
    torch.manual_seed(0)
    groups, made, real = 80, [], torch.linalg.cholesky_ex
    layer = nn.Conv2d(
        groups * channels, groups * channels, kernel, padding=kernel // 2, groups=groups, bias=False
    )
    monkeypatch.setattr(torch.linalg, "cholesky_ex", lambda M: made.append(M.shape[:-2].numel()) or real(M))
    t = polyphase_of(layer, (groups * channels, size, size))
    kept, _, _ = leading_groups(t, 5e-3)
    assert len(kept.matrices) <= 2
    first, second = (math.prod(grid[0]) // 2 + 1 for grid in list(group_selection._grids(t))[:2])
    assert sum(made) <= groups * (first + 0.9 * second) + 3 * 1741


@pytest.mark.parametrize(
    ("channels", "groups", "size", "kernel", "noise", "few"),
    [pytest.param(3, 24, 14, 7, 1.0, 4, marks=pytest.mark.slow), (4, 40, 12, 5, 1.0, 5)],
)
def test_phases_of_the_circle_leave_few_groups_of_small_maps(
    channels, groups, size, kernel, noise, few, monkeypatch
):
    """Where one phase leaves many; and none that is the largest is left out: θ² I - G is positive definite for others."""
    torch.manual_seed(0)
    shape, width = (channels, channels, kernel, kernel), groups * channels
    layer = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
    layer.weight.data = (torch.randn(1, *shape) + noise * torch.randn(groups, *shape)).flatten(0, 1)
    t = polyphase_of(layer, (width, size, size))
    kept, lower, rest = leading_groups(t, 5e-3)
    assert 1 <= len(kept.matrices) <= few
    assert lower**2 <= float(torch.linalg.eigvalsh(explicit_matrix.gram_matrices(kept)).max()) * (1 + 1e-9)
    assert rest <= lower * (1 + 5e-3)
    out = [not any(torch.equal(A, B) for B in kept.matrices) for A in t.matrices]
    others = explicit_matrix.gram_matrices(replace(t, matrices=t.matrices[out])).neg_()
    others.diagonal(dim1=1, dim2=2).add_(rest**2 * (1 + 1e-9))
    assert not torch.linalg.cholesky_ex(others).info.any()
    monkeypatch.setattr(group_selection, "_other_phases", lambda s, left, leader, size, rest: (left, rest))
    assert len(leading_groups(t, 5e-3)[0].matrices) > len(kept.matrices)


@pytest.mark.parametrize("rough", [0.0, 1.0])
def test_either_precision_selects_the_same_groups(rough, monkeypatch):
    torch.manual_seed(0)
    t = polyphase_of(nn.Conv2d(120, 160, 3, padding=1, groups=40, bias=False), (120, 30, 30))
    kept = leading_groups(t, 5e-3)[0].matrices
    monkeypatch.setattr(group_selection, "ROUGH", rough)
    assert torch.equal(leading_groups(t, 5e-3)[0].matrices, kept)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(3, 1, 1), (5, 1, 2), (7, 2, 1), (2, 1, 1)])
def test_gram_symbols_are_made_in_parts_and_read_in_any_order(kernel, stride, dilation, monkeypatch):
    torch.manual_seed(0)
    layer = nn.Conv2d(20, 30, kernel, stride, kernel // 2, dilation, groups=10, bias=False)
    t = polyphase_of(layer, (20, 24, 24))
    whole = gram(t)
    omega, groups = torch.rand(50, 2).double().numpy(), torch.randint(10, (50,)).numpy()
    A = t.symbol(omega)[torch.from_numpy(groups), torch.arange(50)]
    truth = A.mH @ A if A.shape[-1] <= A.shape[-2] else (A @ A.mH).conj()
    for chunk, gathered in ((4e6, 0.0), (1.0, 1e9)):
        monkeypatch.setattr(frequency_response, "CHUNK_BYTES", chunk)
        monkeypatch.setattr(frequency_response, "GATHERED", gathered)
        g = gram(t)
        torch.testing.assert_close(g.even, whole.even, rtol=0, atol=1e-13)
        torch.testing.assert_close(g.odd, whole.odd, rtol=0, atol=1e-13)
        torch.testing.assert_close(g.at(omega, groups), truth, rtol=0, atol=1e-12)


def test_channels_with_the_same_filter_cost_what_one_does():
    layer = nn.Conv2d(300, 300, 7, padding=3, groups=300, bias=False)
    layer.weight.data = torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0)).repeat(
        300, 1, 1, 1
    )
    kept, _, _ = leading_groups(polyphase_of(layer, (300, 28, 28)), 5e-3)
    assert len(kept.matrices) == 1


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
