"""The certified ℓ2 interval against the explicit float64 matrix: lower <= truth <= upper, always."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.convolution import conv_geometry
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms.spectral import interval
from opnorm.norms.spectral import lower_bound as module
from opnorm.norms.spectral.cheap_bounds import BOUNDS, bound, sgl_norm, vs_norm
from opnorm.norms.spectral.explicit_matrix import first_upper_bound, gram_matrices
from opnorm.norms.spectral.frequency_response import gram, polyphase
from opnorm.norms.spectral.interval import polyphase_of, spectral_norm
from opnorm.norms.spectral.iterations import lanczos, power_iteration
from opnorm.norms.spectral.padded_convolution import padding_bound
from opnorm.norms.spectral.positive_definite import DOUBLE, SINGLE, CholeskyTest
from opnorm.norms.spectral.symbol_search import SymbolSearch
from opnorm.norms.spectral.upper_bound import bound_by_cells, certify
from tests.property_tests import examples

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


@st.composite
def layers(draw, axes=(1, 2, 2, 3), transposed=(False, False, True)):
    """A convolution of any kind with a map it accepts, and its weights drawn from a few families."""
    d, back = draw(st.sampled_from(axes)), draw(st.sampled_from(transposed))
    few = 3 if d == 3 else 9
    groups = draw(st.sampled_from((1, 1, 2, 4)))
    ranges = ((1, 4), (1, 3), (0, 3), (1, 3), (1, few))
    per_axis = [tuple(draw(st.integers(*r)) for r in ranges) for _ in range(d)]
    kernel, stride, padding, dilation, size = (tuple(x) for x in zip(*per_axis, strict=True))
    c_in, c_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    if back:
        extra = tuple(draw(st.integers(0, s - 1)) for s in stride)
        size = tuple(min(n, 4) for n in size)
        layer = TRANSPOSED[d](c_in, c_out, kernel, stride, padding, extra, groups, dilation=dilation)
    else:
        layer = CONVS[d](c_in, c_out, kernel, stride, padding, dilation, groups)
    kind = draw(st.sampled_from(("normal", "positive", "sparse", "zero", "bfloat16", "tiny", "huge")))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    W = torch.randn(layer.weight.shape, generator=generator)
    W = {
        "normal": W, "positive": W.abs(), "sparse": W * (torch.rand(W.shape, generator=generator) < 0.3), "zero": 0 * W,
        "bfloat16": W.bfloat16(), "tiny": W * 1e-30, "huge": W * 1e30,
    }[kind]  # fmt: skip
    layer.weight = nn.Parameter(W)
    if kind == "bfloat16":
        layer = layer.bfloat16()
    return layer, (c_in, *size)


def truth(layer, in_shape):
    """The largest singular value of the dense matrix: a Gram matrix is quicker for large ones, and as exact at the top."""
    M = linear_map(layer, in_shape).to_dense()
    if min(M.shape) < 100:
        return float(torch.linalg.matrix_norm(M, 2))
    return float(torch.linalg.eigvalsh(M @ M.mT if len(M) <= M.shape[1] else M.mT @ M)[-1].sqrt())


def assume_fits(layer, in_shape):
    try:
        linear_map(layer, in_shape)
    except (NormError, RuntimeError):
        return False
    return True


def holds(layer, in_shape):
    t = polyphase_of(layer, in_shape)
    found, true = certify(t), truth(layer, in_shape)
    assert found.lower <= true * (1 + 1e-13), (layer, in_shape, found, true)
    assert found.upper >= true * (1 - 1e-13), (layer, in_shape, found, true)
    norm = spectral_norm(layer, in_shape)
    assert float(norm.lower) <= true * (1 + 1e-13) <= float(norm.upper) * (1 + 1e-9), (
        layer,
        in_shape,
        norm,
        true,
    )
    assert norm.relative_width <= 5e-3, (
        layer,
        in_shape,
        norm,
    )  # small maps: diagonalized where the symbol is too loose


@examples(150)
@given(layers())
def test_interval_holds_the_truth(case):
    if assume_fits(*case):
        holds(*case)


@pytest.mark.parametrize("dilation", [3, 5])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("kind", [nn.ConvTranspose1d, nn.ConvTranspose2d])
def test_transposed_kernels_wider_than_the_map(kind, padding, dilation):
    """Their adjoint pads one side by more than it leaves of the other."""
    layer = kind(1, 1, 3, padding=padding, dilation=dilation)
    for size in (1, 2):
        shape = (1, *(size,) * (layer.weight.ndim - 2))
        if assume_fits(layer, shape):
            holds(layer, shape)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@examples(10_000)
@given(layers())
def test_interval_holds_the_truth_ten_thousand_times(case):
    if assume_fits(*case):
        holds(*case)


@examples(60)
@given(layers(transposed=(False,)))
def test_reduction_to_stride_1_is_the_same_map(case):
    layer, in_shape = case
    if not assume_fits(layer, in_shape):
        return
    t = polyphase(layer.weight.detach(), conv_geometry(layer), in_shape[1:])
    if t.whole != t.reach:
        return  # the reduced map has a few inputs fewer
    M = linear_map(layer, in_shape).to_dense()
    top = 0.0
    for group in range(len(t.matrices)):
        n = t.matrices.shape[-1] * math.prod(t.whole)
        basis = torch.eye(n, dtype=torch.float64).reshape(n, t.matrices.shape[-1], *t.whole)
        A = t.as_map(group)
        image = A @ basis
        assert image.shape[2:] == t.out_size
        top = max(top, float(torch.linalg.matrix_norm(image.reshape(n, -1), 2)))
        y = torch.randn(2, *image.shape[1:], dtype=torch.float64)
        x = torch.randn(2, *basis.shape[1:], dtype=torch.float64)
        left, right = ((A @ x) * y).sum(), (x * (A.T @ y)).sum()
        assert torch.isclose(
            left, right, rtol=1e-10, atol=1e-9 * float(y.norm() * x.norm()) * float(M.abs().max() + 1e-300)
        )
    assert math.isclose(top, float(torch.linalg.matrix_norm(M, 2)), rel_tol=1e-10, abs_tol=1e-300)


@examples(60)
@given(layers(transposed=(False,)), st.integers(0, 2**31))
def test_gram_symbol_is_the_symbols_square(case, seed):
    layer, in_shape = case
    if not assume_fits(layer, in_shape):
        return
    t = polyphase(layer.weight.detach(), conv_geometry(layer), in_shape[1:])
    omega = (
        torch.rand(3, len(in_shape) - 1, generator=torch.Generator().manual_seed(seed)).double().numpy()
        * 6.28
    )
    phase = torch.exp(1j * torch.from_numpy(omega @ t.offsets.T))
    for group in range(len(t.matrices)):
        A = torch.einsum("ft,toi->foi", phase, t.matrices[group].to(phase.dtype))
        ours = torch.linalg.eigvalsh(gram(t).at(omega, group))[:, -1].clamp(min=0).sqrt()
        theirs = torch.linalg.svdvals(A)[:, 0]
        scale = float(t.matrices.abs().sum() + 1e-300)
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-7 * scale)


def lanczos_truth(layer, in_shape, steps=120):
    return lanczos(linear_map(layer, in_shape), steps)


LARGE = [(24, 24, 3, 1, 24), (48, 96, 1, 1, 20), (80, 40, 3, 1, 16)]


@pytest.mark.each_value
@pytest.mark.parametrize(
    ("c_in", "c_out", "kernel", "stride", "size"),
    [
        (16, 32, 3, 1, 16), (16, 8, 5, 1, 16), (3, 64, 7, 2, 32), (16, 16, 3, 2, 17), (8, 8, 3, 1, 40),
        (64, 8, 1, 2, 20), *(pytest.param(*large, marks=pytest.mark.slow) for large in LARGE),
    ],
)  # fmt: skip
@pytest.mark.parametrize("trained", [False, True])
def test_width_of_5e_3_on_maps_of_16_and_up(c_in, c_out, kernel, stride, size, trained):
    torch.manual_seed(0)
    layer = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2)
    if trained:  # a smooth, low-pass kernel, as trained nets have
        layer.weight.data = layer.weight.data.cumsum(-1).cumsum(-2).abs() / kernel**2
    norm = spectral_norm(layer, (c_in, size, size))
    assert norm.relative_width <= 5e-3, norm
    true = lanczos_truth(layer, (c_in, size, size))
    assert float(norm.lower) <= true * (1 + 1e-6)
    assert true <= float(norm.upper)


def test_cells_bound_every_size():
    """The frequency cells' bound has no size in it, so it must hold for small maps too."""
    torch.manual_seed(1)
    layer = nn.Conv2d(12, 9, 3, padding=1)
    big = certify(polyphase_of(layer, (12, 200, 200)))
    assert "cells" in big.method
    assert big.upper <= big.lower * (1 + 5.01e-3)
    for n in (1, 2, 5, 20):
        assert lanczos_truth(layer, (12, n, n), 60) <= big.upper


@pytest.mark.parametrize("seed", range(12))
def test_cells_cover_what_lies_between_their_centers(seed):
    """Without any help from below, the cells alone must find a θ that no frequency exceeds."""
    torch.manual_seed(seed)
    t = polyphase_of(nn.Conv1d(3, 3, 3, padding=1), (3, 500))
    fine = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)[:, None].numpy()
    top = float(torch.linalg.eigvalsh(gram(t).at(fine))[:, -1].max().sqrt())
    for lower in (
        1e-6,
        0.985 * top,
        0.99 * top,
    ):  # the last ones clear the first centers, not the peak between them
        theta = bound_by_cells(SymbolSearch(t, gram(t), 5e-3, fixed_lower=lower), (13,))
        assert top <= theta <= 1.01 * top


def test_depthwise_and_grouped():
    torch.manual_seed(2)
    for layer in (nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(8, 16, 3, padding=1, groups=2)):
        norm = spectral_norm(layer, (layer.in_channels, 24, 24))
        assert norm.relative_width <= 5e-3
        assert (
            float(norm.lower)
            <= lanczos_truth(layer, (layer.in_channels, 24, 24)) * (1 + 1e-9)
            <= float(norm.upper) * (1 + 1e-9)
        )


def test_same_digits_every_time():
    torch.manual_seed(3)
    layer = nn.Conv2d(20, 20, 3, padding=1)
    first = spectral_norm(layer, (20, 30, 30))
    torch.manual_seed(4)
    torch.rand(3)
    again = spectral_norm(layer, (20, 30, 30))
    assert (float(first.lower), float(first.upper)) == (float(again.lower), float(again.upper))


def test_narrow_on_request():
    torch.manual_seed(5)
    layer = nn.Conv2d(6, 6, 3, padding=1)
    assert spectral_norm(layer, (6, 12, 12), relative_width=1e-8).relative_width <= 1e-8
    sure = spectral_norm(layer, (6, 40, 40), relative_width=1e-3, failure_probability=1e-9, effort=0)
    assert sure.relative_width <= 1e-3
    assert "probability" in sure.method
    wide = spectral_norm(nn.Conv2d(6, 6, 5, padding=2), (6, 32, 32), relative_width=1e-9, effort=0)
    assert "relative width" in wide.method


def test_peers_mistakes():
    """Named cases of the field: the reshaped kernel's norm, multiplied group norms, a bound below the truth."""
    torch.manual_seed(6)
    layer = nn.utils.parametrizations.spectral_norm(nn.Conv2d(16, 16, 3, padding=1), n_power_iterations=50)
    norm = spectral_norm(layer, (16, 16, 16))
    assert float(norm.lower) > 1.2  # "normalized", and yet not 1
    groups = nn.Conv2d(4, 4, 3, padding=1, groups=4)
    parts = []
    for g in range(4):
        part = nn.Conv2d(1, 1, 3, padding=1)
        part.weight.data = groups.weight.data[g : g + 1]
        parts.append(float(spectral_norm(part, (1, 9, 9)).upper))
    assert math.isclose(float(spectral_norm(groups, (4, 9, 9)).upper), max(parts), rel_tol=1e-6)
    tall = nn.Conv2d(5, 5, (3, 1), padding=(1, 0))
    assert float(spectral_norm(tall, (5, 8, 8)).upper) >= truth(tall, (5, 8, 8)) * (1 - 1e-12)


def test_scale_does_not_matter():
    torch.manual_seed(7)
    layer = nn.Conv2d(12, 12, 3, padding=1)
    one = spectral_norm(layer, (12, 20, 20))
    layer.weight.data *= 2.0**-20
    small = spectral_norm(layer, (12, 20, 20))
    assert math.isclose(float(one.lower), float(small.lower) * 2**20, rel_tol=1e-5)


def test_linear_layers():
    torch.manual_seed(8)
    for shape in ((30, 50), (700, 600), (3, 2000)):
        layer = nn.Linear(*shape)
        norm, true = (
            spectral_norm(layer, (shape[0],)),
            float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2)),
        )
        assert float(norm.lower) <= true * (1 + 1e-12) <= float(norm.upper) * (1 + 1e-9)
        assert norm.relative_width <= 5e-3


def test_named_bounds():
    torch.manual_seed(9)
    layer, shape = nn.Conv2d(6, 8, 3, padding=1), (6, 10, 10)
    true = truth(layer, shape)
    assert set(BOUNDS) == {"certified", "coarse", "thm1", "schur", "gram", "vs", "sgl"}
    for name in BOUNDS:
        norm = bound(layer, shape, name)
        assert float(norm.lower) <= true * (1 + 1e-12)
        assert float(norm.upper) >= true
    assert float(bound(layer, shape, "gram").upper) <= 1.2 * true
    small = nn.Linear(40, 30)  # of norm below 1, whose logarithm is negative
    assert truth(small, (40,)) <= float(bound(small, (40,), "gram").upper) <= 1.2 * truth(small, (40,)) < 1.2
    with pytest.raises(NormError, match="not known; expected one of certified"):
        bound(layer, shape, "svd")
    with pytest.raises(NormError, match="defined for"):
        bound(nn.BatchNorm2d(3), (3, 4, 4), "thm1")


@examples(300)
@given(layers())
def test_coarse_bounds_hold_for_any_layer(case):
    layer, in_shape = case
    if not assume_fits(layer, in_shape):
        return
    true = truth(layer, in_shape)
    norm = bound(layer, in_shape, "coarse")
    assert true * (1 - 1e-12) <= float(norm.upper) < math.inf
    plain = isinstance(layer, nn.Conv2d) and layer.groups == 1 and max(*layer.stride, *layer.dilation) == 1
    if plain and all(k <= n for k, n in zip(layer.kernel_size, in_shape[1:], strict=True)):
        assert true * (1 - 1e-12) <= float(bound(layer, in_shape, "sgl").upper) < math.inf


@pytest.mark.parametrize("channels", [(32, 32), (70, 20)])
@pytest.mark.parametrize("kernel", [3, (1, 5)])
def test_coarse_bounds_are_near(channels, kernel):
    """(2 / √3)^2 between the points, and less than a tenth for the trace."""
    torch.manual_seed(3)
    layer, shape = nn.Conv2d(*channels, kernel, bias=False), (channels[0], 32, 32)
    assert float(bound(layer, shape, "coarse").upper) <= 4 / 3 * 1.1 * float(
        spectral_norm(layer, shape).upper
    )


def test_power_iteration_and_circular_padding_as_published():
    torch.manual_seed(4)
    layer, shape = nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), (3, 6, 7)
    exact = truth(layer, shape)
    assert sgl_norm(layer.weight, (6, 7)) == pytest.approx(exact, rel=1e-12)
    assert vs_norm(layer, shape) == pytest.approx(exact, rel=1e-2)
    assert vs_norm(layer, shape) <= exact * (1 + 1e-5)
    assert layer.weight.grad is None
    assert f"{exact:.6g} with circular padding" in bound(layer, shape, "sgl").method
    with pytest.raises(NormError, match="at least as large as the kernel"):
        sgl_norm(layer.weight, (2, 7))
    for other in (
        nn.Conv2d(3, 4, 3, stride=2),
        nn.Linear(3, 4),
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
    ):
        with pytest.raises(NormError, match="SGL is"):
            bound(other, shape, "sgl")


def test_iterations_are_lower_bounds():
    torch.manual_seed(10)
    layer, shape = nn.Conv2d(3, 5, 3, stride=2, padding=1), (3, 9, 9)
    linear, true = linear_map(layer, shape), truth(layer, shape)
    assert power_iteration(linear, 30) <= true
    assert lanczos(linear, 30) <= true
    assert math.isclose(lanczos(linear, 200), true, rel_tol=1e-9)


@examples(200)
@given(layers())
def test_gram_matrices(case):
    """The top eigenvalue is that of the layer, also where phases differ in length."""
    layer, in_shape = case
    if not assume_fits(layer, in_shape):
        return
    t = polyphase_of(layer, in_shape)
    G = gram_matrices(t)
    assert G.shape == (len(t.matrices), min(t.shape), min(t.shape))
    tops = torch.linalg.eigvalsh(G.tril() + G.tril(-1).mT)
    top, true = math.sqrt(max(0.0, float(tops.max()))), truth(layer, in_shape)
    assert top == pytest.approx(true, rel=1e-9)


@pytest.mark.parametrize("channels", [(1, 9), (4, 3)])  # MᵀM is smaller, and M Mᵀ
def test_places_that_a_short_phase_does_not_have(channels):
    """Of 5 places in steps of 2 the odd ones are 2, and the third of them, which a tap reads, is padding."""
    torch.manual_seed(0)
    layer = nn.Conv2d(*channels, 3, stride=2, padding=1)
    nn.init.ones_(layer.weight)  # so that what is read in vain would count
    G = gram_matrices(polyphase_of(layer, (channels[0], 5, 5)))[0]
    top = float(torch.linalg.eigvalsh(G.tril() + G.tril(-1).mT)[-1])
    assert math.sqrt(top) == pytest.approx(truth(layer, (channels[0], 5, 5)), rel=1e-12)


@pytest.mark.parametrize("groups", [1, 3])
def test_one_factorization_shows_the_norm_and_no_less(groups):
    torch.manual_seed(6)
    layer, shape = nn.Conv2d(6, 9, 3, padding=1, groups=groups), (6, 5, 4)
    true, t = truth(layer, shape), polyphase_of(layer, shape)
    for M in (t, linear_map(layer, shape)):
        assert first_upper_bound(M, [true * (1 - 1e-9)]) == math.inf
        assert first_upper_bound(M, []) == math.inf
        tries = [true * f for f in (0.5, 1 - 1e-7, 1 + 1e-7, 2)]
        assert first_upper_bound(M, tries) == tries[2]


@examples(60)
@given(layers())
def test_bands_of_the_polyphase_form_show_the_norm_and_no_less(case):
    """Where phases are short, as many places as in long ones are allowed for, so that more than the norm may be needed."""
    layer, shape = case
    assume(assume_fits(layer, shape))
    true, t = truth(layer, shape), polyphase_of(layer, shape)
    assume(true > 0)
    blocks = t.block_gram()
    assert blocks.first_upper_bound([true * (1 - 1e-6)]) == math.inf
    if t.short is None:
        assert blocks.first_upper_bound([true * (1 + 1e-6)]) == true * (1 + 1e-6)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(16, 16, 3, padding=1), (16, 8, 8)),
        (nn.Conv2d(10, 15, 3, stride=2, padding=1), (10, 12, 16)),
        (nn.Conv2d(24, 24, 3, padding=1, groups=2), (24, 9, 7)),
        (nn.Conv1d(90, 90, 3, padding=2, dilation=2), (90, 11)),
    ],
)
def test_bands_and_the_whole_matrix_give_the_same_interval(layer, shape, monkeypatch):
    bands, true = spectral_norm(layer, shape), truth(layer, shape)
    assert "one block factorization" in bands.method
    assert float(bands.lower) <= true * (1 + 1e-12) <= float(bands.upper)
    monkeypatch.setattr(interval, "WIDE_BANDS", 0)
    whole = spectral_norm(layer, shape)
    assert "block" not in whole.method
    assert (bands.lower, bands.upper) == (whole.lower, whole.upper)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(48, 48, 3, padding=1), (48, 4, 4)),
        (nn.Conv2d(40, 60, 3, stride=2, padding=1), (40, 5, 7)),
        (nn.Conv2d(72, 72, 3, padding=1, groups=2), (72, 4, 4)),
        (nn.ConvTranspose2d(60, 30, 4, stride=2, padding=1), (60, 4, 4)),
        (nn.Conv1d(70, 75, 9, padding=4), (70, 8)),
    ],
)
def test_small_maps_of_many_channels_are_factorized_as_a_whole(layer, shape):
    norm, true = spectral_norm(layer, shape), truth(layer, shape)
    assert float(norm.lower) <= true * (1 + 1e-12) <= float(norm.upper)
    assert norm.relative_width <= 5e-3
    assert "factorization of" in norm.method
    loose = spectral_norm(layer, shape, effort=0)
    assert loose.relative_width > 5e-3
    assert "relative width" in loose.method


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(20, 20, 5, padding=2, groups=20), (20, 7, 7)),
        (nn.Conv2d(20, 40, 3, stride=2, padding=1, groups=10), (20, 9, 7)),
        (nn.ConvTranspose2d(36, 36, 4, stride=2, padding=1, groups=18), (36, 4, 4)),
        (nn.Conv2d(1, 1, 13, padding=6), (1, 24, 24)),
        (nn.Conv1d(70, 70, 161, padding=80, groups=70), (70, 9)),
    ],
)
def test_small_groups_and_large_kernels(layer, shape):
    norm, true = spectral_norm(layer, shape, relative_width=1e-3), truth(layer, shape)
    assert float(norm.lower) <= true * (1 + 1e-12) <= float(norm.upper) * (1 + 1e-12)
    assert norm.relative_width <= 1e-3


def test_bad_settings():
    with pytest.raises(NormError, match="relative_width=-1"):
        spectral_norm(nn.Linear(2, 2), (2,), relative_width=-1)
    with pytest.raises(NormError, match="not linear"):
        spectral_norm(nn.GELU(), (3,))


@pytest.mark.parametrize("kernel", [1, (3, 1), 3, (4, 5)])
@pytest.mark.parametrize("channels", [(5, 7), (70, 90), (100, 65)])
def test_the_gram_symbol_is_that_of_the_symbol(channels, kernel):
    """On both sides of 64 channels, by pairs of taps and through values on a grid: A(ω)ᴴ A(ω) and its quadratic form."""
    torch.manual_seed(5)
    t = polyphase_of(nn.Conv2d(*channels, kernel, padding=2), (channels[0], 9, 9))
    g, tall = gram(t), channels[0] <= channels[1]
    omega = np.random.default_rng(2).uniform(0, 7, (4, 2))
    waves = torch.from_numpy(np.exp(1j * omega @ t.offsets.T))
    A = torch.einsum("ft,tij->fij", waves, t.matrices[0].to(waves.dtype))
    want = A.mH @ A if tall else (A @ A.mH).conj()
    assert torch.allclose(g.at(omega), want, rtol=0, atol=1e-12 * float(want.abs().max()))
    v = torch.randn(g.n, dtype=torch.complex128)
    angles = omega @ g.offsets.T
    p, q = g.form(v, 0)
    form = torch.einsum("i,fij,j->f", v.conj(), want, v)
    assert torch.allclose(form.real, torch.from_numpy(np.cos(angles) @ p - np.sin(angles) @ q), rtol=1e-11)


@pytest.mark.parametrize("channels", [(7, 9), (70, 90), (100, 65)])
def test_factorizations_against_the_eigenvalues(channels):
    torch.manual_seed(11)
    t = polyphase_of(nn.Conv2d(*channels, 3, padding=1), (channels[0], 9, 9))
    g = gram(t)
    omega, groups = np.random.default_rng(1).uniform(0, 7, (5, 2)), np.zeros(5, dtype=int)
    top = torch.linalg.eigvalsh(g.at(omega))[:, -1].numpy()
    tests = CholeskyTest(t, g)
    for dtype in (SINGLE, DOUBLE):
        assert tests.indefinite(omega, groups, top * (1 - 1e-3), dtype).all()
        assert not tests.indefinite(omega, groups, top * (1 + 1e-3), dtype).any()
    assert len(tests.exceeding(omega, groups, top * (1 - 1e-9))) == 5
    assert len(tests.exceeding(omega, groups, top * (1 + 1e-6))) == 0


@pytest.mark.parametrize("channels", [(40, 24), (24, 40)])
def test_lower_end_from_few_channels_is_attained(channels, monkeypatch):
    """Also when the search is held to a few channel vectors: below the truth, and close to it."""
    monkeypatch.setattr(module, "FULL_WORK", 0)
    torch.manual_seed(12)
    layer, shape = nn.Conv2d(*channels, 3, padding=1), (channels[0], 14, 14)
    found, true = certify(polyphase_of(layer, shape)), lanczos_truth(layer, shape)
    assert 0.998 * true <= found.lower <= true * (1 + 1e-9)


def test_wide_intervals_are_cheap():
    torch.manual_seed(13)
    layer, shape = nn.Conv2d(16, 16, 3, padding=1), (16, 32, 32)
    true, narrow = lanczos_truth(layer, shape), certify(polyphase_of(layer, shape))
    for width in (0.05, 0.2, 2.0):
        found = certify(polyphase_of(layer, shape), width)
        assert found.lower <= true * (1 + 1e-9) <= found.upper <= found.lower * (1 + width)
        assert found.factorizations < 0.5 * narrow.factorizations


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@examples(25)
@given(case=st.data())
def test_padding_that_copies_the_input(mode, case):
    d, k, p, s, dilation, n = (
        case.draw(st.integers(*ends)) for ends in ((1, 2), (1, 4), (0, 2), (1, 2), (1, 2), (3, 8))
    )
    if n + 2 * p < dilation * (k - 1) + 1:
        return
    torch.manual_seed(case.draw(st.integers(0, 99)))
    layer, shape = CONVS[d](2, 4, k, s, p, dilation, 2, padding_mode=mode), (2, *[n] * d)
    true = truth(layer, shape)
    upper = padding_bound(layer, shape, 5e-3)
    assert upper >= true * (1 - 1e-12)


def test_padding_that_closes_the_circle_costs_nothing():
    torch.manual_seed(14)
    layer = nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular")
    norm = spectral_norm(layer, (12, 24, 24), effort=0)
    assert "frequency response" in norm.method
    assert norm.relative_width <= 5e-3
    reflected = nn.Conv2d(48, 48, 3, padding=1, padding_mode="reflect")
    assert (
        spectral_norm(reflected, (48, 24, 24), effort=0).relative_width < 1.2
    )  # 2 at most; sqrt(ℓ1 · ℓ∞) is 6 times as large
