"""Convolutions whose padding copies the input, and large maps, have ℓ2 intervals as narrow as the others."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from opnorm.norms import operator_norm, spectral_norm
from opnorm.norms.spectral import block_gram as module
from opnorm.norms.spectral import upper_bound
from opnorm.norms.spectral.convolution_matrix import as_convolution
from opnorm.norms.spectral.interval import polyphase_of
from opnorm.norms.spectral.padded_convolution import circular_interval, inner_bound
from opnorm.norms.spectral.upper_bound import certify
from tests.norms.cases import convolutions, matrix
from tests.property_tests import examples

MODES = ("circular", "reflect", "replicate")


def truth(layer, shape):
    return float(torch.linalg.matrix_norm(matrix(layer, shape), 2))


@st.composite
def circles(draw):
    """A convolution whose circular padding closes the circle, also with kernels that reach around, and an input's shape."""
    axes, groups, stride = draw(st.integers(1, 2)), draw(st.integers(1, 6)), draw(st.integers(1, 2))
    c_in, c_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 2))
    size = [stride * draw(st.integers(1, 6)) for _ in range(axes)]
    total = dilation * (kernel - 1) + 1 - stride  # of the padding
    assume(total >= 0 and total % 2 == 0 and total // 2 <= min(size))
    conv = (nn.Conv1d, nn.Conv2d)[axes - 1]
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layer = conv(
        groups * c_in, groups * c_out, kernel, stride, total // 2, dilation, groups, False, "circular", dtype=torch.float64
    )  # fmt: skip
    return layer, (groups * c_in, *size)


@pytest.mark.parametrize("held", [1, 1e6])
@examples(60)
@given(case=convolutions(max_size=8, max_kernel=4, modes=(*MODES, "zeros")))
def test_the_band_factorization_finds_the_norm(held, case):
    """Of two numbers closely around the norm, the first is no bound and the second is."""
    layer, shape = case
    true = truth(layer, shape)
    assume(true > 0)
    around = [true * (1 - 1e-6), true * (1 + 1e-6)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HELD", held)
        assert as_convolution(layer, shape).block_gram().first_upper_bound(around) == around[1]


@pytest.mark.each_value
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ((4, 5, 3, 1, 1), (4, 14, 13)),
        ((3, 12, 3, 2, 1), (3, 25, 15)),
        ((6, 6, 3, 1, 2, 2, 3), (6, 11, 10)),
        ((5, 5, 4, 1, 2), (5, 110)),
        ((2, 3, (3, 1, 2), 1, 1), (2, 7, 7, 6)),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-120])
def test_intervals_are_narrow(arguments, shape, mode, scale):
    torch.manual_seed(0)
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 2]
    layer = conv(*arguments, padding_mode=mode).double()
    true = truth(layer, shape) * scale
    layer.weight.data.mul_(scale)
    norm = operator_norm(layer, 2, shape)
    assert min(matrix(layer, shape).shape) > 512  # beyond what is diagonalized
    assert true * (1 - 1e-12) <= float(norm.upper)
    assert float(norm.lower) <= true * (1 + 1e-12)
    assert norm.relative_width <= 5e-3


def test_a_long_line_has_few_rows_in_a_block():
    torch.manual_seed(1)
    layer = nn.Conv1d(8, 8, 5, padding=2, padding_mode="replicate")
    norm = operator_norm(layer, 2, (8, 4000))
    assert norm.relative_width <= 5e-3
    assert float(norm.upper) >= truth(layer, (8, 100))  # the ends of the line are the same


def test_too_much_work_is_said():
    torch.manual_seed(2)
    layer = nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect")
    wide, narrow = (spectral_norm(layer, (8, 24, 24), effort=effort) for effort in (100, 8192))
    assert "relative width" in wide.method
    assert narrow.relative_width <= 5e-3
    assert float(wide.lower) <= float(narrow.upper)
    assert float(narrow.upper) <= float(wide.upper)


@examples(40)
@given(case=convolutions(max_size=40, max_kernel=3), width=st.sampled_from([0.5, 2.0, 10.0]))
def test_lower_ends_from_a_part_of_the_map_are_attained(case, width):
    layer, shape = case
    assume(torch.Size(shape).numel() < 1500)
    found, true = certify(polyphase_of(layer, shape), width), truth(layer, shape)
    assert found.lower <= true * (1 + 1e-9)
    assert found.upper >= true * (1 - 1e-9)


def test_large_maps_take_the_work_of_small_ones():
    torch.manual_seed(3)
    layer = nn.Conv2d(3, 8, 3, padding=1)
    small, large = (spectral_norm(layer, (3, n, n)) for n in (200, 4096))
    assert float(large.upper) >= float(small.lower)
    assert large.relative_width <= 5e-3
    assert float(large.lower) >= float(small.lower) * (1 - 1e-3)


@examples(40)
@given(case=convolutions(max_size=8, max_kernel=4, modes=MODES))
def test_the_outputs_without_padding_are_a_lower_bound(case):
    layer, shape = case
    assert inner_bound(layer, shape, 5e-3) <= truth(layer, shape) * (1 + 1e-12)


@examples(150)
@given(
    case=circles(), spread=st.sampled_from([0.0, 0.05, 30.0]), unit=st.sampled_from([1e-30, 1.0, 1e30]),
    width=st.sampled_from([1e-9, 5e-3, 0.3]), cells=st.booleans(),
)  # fmt: skip
def test_on_a_circle_the_interval_holds_the_norm(case, spread, unit, width, cells):
    layer, shape = case
    scales = unit * 10 ** (-spread * torch.rand(layer.groups, dtype=torch.float64))
    layer.weight.data *= scales.repeat_interleave(len(layer.weight) // layer.groups).view(
        -1, *[1] * len(shape)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(upper_bound, "FINE", 0 if cells else 4)
        found, true = circular_interval(layer, shape, width), truth(layer, shape)
    assert found.lower <= true * (1 + 1e-12)
    assert found.upper >= true * (1 - 1e-12)
    assert found.upper <= found.lower * (1 + width)


def test_many_channels_around_a_circle_take_little_more_than_one():
    """The matrices that are factorized or diagonalized are counted."""
    counts = []
    for groups in (1, 240):
        torch.manual_seed(0)
        layer = nn.Conv2d(groups, groups, 3, padding=1, groups=groups, padding_mode="circular")
        counts.append(circular_interval(layer, (groups, 28, 28), 5e-3).factorizations)
    assert counts[1] <= 5 * counts[0]


@pytest.mark.parametrize(("arguments", "length"), [((2, 3, 5, 1, 2), 250_001), ((2, 4, 4, 2, 1), 400_000)])
def test_a_circle_is_as_quick_as_it_is_large(arguments, length):
    """The truth from the frequency response at every frequency of the circle, of 2 inputs: a quadratic equation."""
    torch.manual_seed(0)
    layer = nn.Conv1d(*arguments, padding_mode="circular").double()
    stride, kernel = layer.stride[0], layer.weight.detach()
    phases = [torch.fft.fft(kernel[:, :, k::stride], n=length // stride) for k in range(stride)]
    A = torch.cat(phases, 1).permute(2, 0, 1)
    true = float(torch.linalg.eigvalsh(A.mH @ A)[:, -1].max().sqrt())
    norm = operator_norm(layer, 2, (2, length))
    assert float(norm.lower) <= true * (1 + 1e-12)
    assert true * (1 - 1e-12) <= float(norm.upper) <= 1.006 * true
    assert "Lanczos" not in norm.method  # which keeps a hundred arrays of the size of the map
