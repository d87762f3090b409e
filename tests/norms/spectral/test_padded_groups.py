"""Of many groups whose padding copies the input, only those whose norm can be the largest are searched."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from opnorm.norms import spectral_norm
from opnorm.norms.spectral import border_regions, padded_groups
from opnorm.norms.spectral.block_gram import BlockGram
from opnorm.norms.spectral.border_regions import exceeding, regions
from opnorm.norms.spectral.convolution_matrix import as_convolution, plain_convolution
from opnorm.norms.spectral.frequency_response import polyphase
from opnorm.norms.spectral.padded_groups import leading_kernels
from tests.norms.cases import matrix
from tests.property_tests import examples

MODES = ("reflect", "replicate", "circular")


@st.composite
def grouped(draw, max_size=9):
    """A grouped convolution in float64 whose groups are of any or of nearly the same size, and an input's shape."""
    axes, groups, stride = draw(st.integers(1, 2)), draw(st.integers(4, 8)), draw(st.integers(1, 2))
    c_in, c_out = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    kernel, dilation = [draw(st.integers(1, 4)) for _ in range(axes)], draw(st.integers(1, 2))
    size = [draw(st.integers(2, max_size if axes == 2 else 4 * max_size)) for _ in range(axes)]
    padding = [draw(st.integers(0, min(n - 1, k))) for n, k in zip(size, kernel, strict=True)]
    assume(all(n + 2 * p > dilation * (k - 1) for n, p, k in zip(size, padding, kernel, strict=True)))
    assume(any(padding))
    kind, mode = (nn.Conv1d, nn.Conv2d)[axes - 1], draw(st.sampled_from(MODES))
    layer = kind(
        groups * c_in, groups * c_out, kernel, stride, padding, dilation, groups, False, mode, dtype=torch.float64
    )  # fmt: skip
    torch.manual_seed(draw(st.integers(0, 2**31)))
    shape = c_out, c_in, *kernel
    noise, spread = draw(st.sampled_from([(1.0, 0.0), (1.0, 25.0), (1e-2, 0.0), (1e-9, 0.0), (1e-3, 1e-3)]))
    weights = (1 - noise) * torch.randn(1, *shape) + noise * torch.randn(groups, *shape)
    scales = draw(st.sampled_from([1e-30, 1.0, 1e30])) * 10 ** (-spread * torch.rand(groups).double())
    layer.weight.data = (weights * scales.view(-1, *[1] * len(shape))).flatten(0, 1)
    return layer, (groups * c_in, *size)


def one_by_one(layer, shape):
    """The norm of each group by its explicit matrix."""
    truth = []
    for K in layer.weight.detach().chunk(layer.groups):
        one = plain_convolution(layer, K, 1)
        truth.append(float(torch.linalg.matrix_norm(matrix(one, (K.shape[1], *shape[1:])), 2)))
    return truth


@given(case=grouped(), little=st.sampled_from([0.0, 1e9]), effort=st.sampled_from([1, 8192]))
@examples(80)
def test_groups_that_are_left_out_are_not_the_largest(case, little, effort):
    layer, shape = case
    convolution, truth = as_convolution(layer, shape), one_by_one(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(padded_groups, "LITTLE_WORK", little)
        patch.setattr(padded_groups, "LESS", (0.1, 0.01))
        kept, lower, rest = leading_kernels(convolution, 5e-3, effort)
    each = layer.weight.detach().chunk(layer.groups)
    left = [any(torch.equal(K, few) for few in kept) for K in each]
    assert any(left)
    assert lower <= max(truth) * (1 + 1e-9)
    assert rest <= lower * (1 + 5e-3)
    assert all(norm <= rest * (1 + 1e-9) for norm, there in zip(truth, left, strict=True) if not there)


@given(case=grouped())
@examples(80)
def test_the_interval_holds_the_largest_norm(case):
    layer, shape = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opnorm.norms.spectral.interval.DENSE", 0)
        found = spectral_norm(layer, shape)
    truth = max(one_by_one(*case))
    assert float(found.lower) <= truth * (1 + 1e-9)
    assert float(found.upper) >= truth * (1 - 1e-9)
    assert found.relative_width <= 5e-3


@given(case=grouped(), above=st.sampled_from([1e-6, 0.1]))
@examples(80)
def test_a_factorization_tells_which_groups_exceed_a_number(case, above):
    """All that exceed it, and none that does not by a little."""
    layer, shape = case
    truth = np.array(one_by_one(*case))
    assume(truth.min() > 0)
    for theta in truth * (1 + above):
        bad = as_convolution(layer, shape).block_gram().exceeding(theta)
        assert np.all(bad[truth > theta])
        # the allowance for rounding is that of the largest group
        assert theta < 1e-3 * truth.max() or not np.any(bad[truth < theta * (1 - 1e-7)])


@given(case=grouped(16), steps=st.sampled_from([2, 3, 5]), part=st.sampled_from([0.5, 1.0, 1.2]))
@examples(80)
def test_parts_show_no_norm_to_be_smaller_than_it_is(case, steps, part):
    layer, shape = case
    convolution, truth = as_convolution(layer, shape), np.array(one_by_one(*case))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(border_regions, "STEPS", (steps,))
        cut = regions(convolution, math.inf)
    assume(cut)
    theta = part * np.median(truth)
    bad = exceeding(convolution, cut, theta)
    assert np.all(bad[truth > theta * (1 + 1e-9)])
    least = min(region.factor for region in cut)
    assert theta < 1e-3 * truth.max() or not np.any(bad[truth < theta * least**2 * 0.7])


@given(case=grouped(), steps=st.sampled_from([2, 3]))
@examples(40)
def test_parts_do_not_show_a_norm_to_be_below_itself(case, steps):
    layer, shape = case
    convolution, truth = as_convolution(layer, shape), one_by_one(*case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(border_regions, "STEPS", (steps,))
        cut = regions(convolution, math.inf)
    assume(cut)
    for group, norm in enumerate(truth):
        assume(norm > 0)
        assert exceeding(convolution, cut, norm * (1 - 1e-6))[group]


@pytest.mark.parametrize("seed", range(3))
def test_a_grid_of_frequencies_misses_no_peak(seed):
    torch.manual_seed(seed)
    layer = nn.Conv1d(16, 16, 5, padding=2, groups=8, bias=False, dtype=torch.float64)
    convolution = as_convolution(layer, (16, 5000))
    t = polyphase(convolution.K, convolution.geometry, convolution.in_size)
    omega = torch.linspace(0, math.pi, 5001, dtype=torch.float64)
    phases = torch.exp(1j * omega[:, None] * torch.from_numpy(t.offsets[:, 0]))
    responses = torch.einsum("wt,gtoi->wgoi", phases, t.matrices.to(phases))
    for group, peak in enumerate(torch.linalg.matrix_norm(responses, 2).amax(0).tolist()):
        assert border_regions._exceeding_on_grid(t, peak * (1 - 1e-6), 0.9)[group]
        assert not border_regions._exceeding_on_grid(t, peak * 1.1, 0.9)[group]


@pytest.mark.each_value
@pytest.mark.parametrize("mode", MODES[:2])
@pytest.mark.parametrize(
    ("kernel", "channels", "size", "stride"), [(3, 1, 40, 1), (5, 2, 56, 1), (3, 4, 48, 2)]
)
def test_few_of_many_groups_are_factorized(kernel, channels, size, stride, mode, monkeypatch):
    torch.manual_seed(0)
    width = 60 * channels
    layer = nn.Conv2d(width, width, kernel, stride, kernel // 2, groups=60, padding_mode=mode, bias=False)
    whole, real = [], BlockGram.exceeding
    least = 0.9 * channels * (size // stride) ** 2

    def counted(gram, theta):
        whole.append(len(gram.taps) * (gram.sizes[0] * gram.rows > least))
        return real(gram, theta)

    monkeypatch.setattr(BlockGram, "exceeding", counted)
    monkeypatch.setattr(padded_groups, "LITTLE_WORK", 0)
    found = spectral_norm(layer, (width, size, size))
    assert found.relative_width <= 5e-3
    assert sum(whole) <= 12


@pytest.mark.parametrize("mode", MODES)
def test_equal_groups_and_zero_groups(mode):
    layer = nn.Conv2d(24, 24, 3, padding=1, groups=8, bias=False, padding_mode=mode)
    one = torch.randn(3, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    layer.weight.data = one.repeat(8, 1, 1, 1)
    alone = spectral_norm(plain_convolution(layer, one.double(), 1), (3, 17, 17), 1e-9)
    found = spectral_norm(layer, (24, 17, 17))
    assert found.lower <= alone.upper
    assert found.upper >= alone.lower
    layer.weight.data[:12] = 0
    found = spectral_norm(layer, (24, 17, 17))
    assert found.lower <= alone.upper
    assert found.upper >= alone.lower
    layer.weight.data.zero_()
    nothing = spectral_norm(layer, (24, 17, 17))
    assert (float(nothing.lower), float(nothing.upper)) == (0.0, 0.0)
