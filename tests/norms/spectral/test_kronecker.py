"""ℓ2 norms of Kronecker products of one matrix an axis: pooling, padding, resizing, unfolding and folding."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.errors import NormError
from opnorm.norms import lipschitz_bound, operator_norm, spectral_norm
from tests.norms.cases import WEIGHTLESS_CASES, foldings, matrix, on_cases, paddings, poolings, pq, resizings
from tests.property_tests import examples


def check(layer, shape):
    """Within rounding of the dense matrix, and never beyond it but for the rounding of that matrix's own values."""
    M = matrix(layer, shape)
    true, rounding = float(torch.linalg.matrix_norm(M, 2)), 2.0**-52 * sum(M.shape)
    for norm in (operator_norm(layer, 2, shape), spectral_norm(layer, shape)):
        assert float(norm.lower) <= true * (1 + rounding)
        assert float(norm.upper) >= true * (1 - rounding)
        assert norm.relative_width < 1e-11


@on_cases(WEIGHTLESS_CASES)
def test_equals_the_matrix(layer, shape):
    check(layer, shape)


@given(st.one_of(poolings(), resizings(), paddings(), foldings()))
@examples(200)
def test_any_layer(case):
    check(*case)


def test_one_long_line_in_closed_form():
    """Means of neighbors: the Gram matrix has 1/2 on its diagonal and 1/4 beside it, so σ = cos(π / (2 n))."""
    n = 100_000
    norm = operator_norm(nn.AvgPool1d(2, 1), 2, (1, n))
    assert float(norm.lower) <= math.cos(math.pi / (2 * n)) <= float(norm.upper)
    assert norm.relative_width < 1e-11


def test_windows_far_wider_than_the_first_probes():
    layer = nn.AvgPool1d(37, 2, 18, count_include_pad=False)
    check(layer, (1, 150))
    check(nn.AdaptiveAvgPool1d(3), (2, 1000))
    check(nn.Upsample(2, mode="area"), (1, 301))


def test_copies_are_exact_numbers():
    assert float(operator_norm(nn.Unfold(3, padding=1), 2, (64, 224, 224))) == 3
    assert float(operator_norm(nn.Fold((224, 224), 3, padding=1), 2, (9, 224 * 224))) == 3
    assert float(spectral_norm(nn.ReplicationPad2d(3), (16, 32, 32))) == 4
    assert float(spectral_norm(nn.ZeroPad2d(-1), (3, 8, 8))) == 1
    assert float(operator_norm(nn.Unfold(1, padding=2, stride=5), 2, (1, 2, 2))) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_modes_of_the_caller_do_not_matter(dtype):
    layer, shape = nn.Upsample(scale_factor=1.7, mode="bicubic"), (2, 5, 4)
    want = [float(operator_norm(layer, p, shape).upper) for p in (1, 2, math.inf)]
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        for mode in (torch.inference_mode, torch.no_grad):
            with mode():
                assert [float(operator_norm(layer, p, shape).upper) for p in (1, 2, math.inf)] == want
    finally:
        torch.set_default_dtype(before)


def test_a_forward_of_its_own_is_measured():
    class Halved(nn.AvgPool2d):
        def forward(self, x):
            return super().forward(x) / 2

    norm = spectral_norm(Halved(3, 2, 1), (1, 8, 8))
    whole = spectral_norm(nn.AvgPool2d(3, 2, 1), (1, 8, 8))
    assert float(norm.lower) == pytest.approx(float(whole.lower) / 2, rel=1e-8)


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda x: F.avg_pool2d(x, 3, 2, 1, True, False), (2, 5, 6)),
        (lambda x: F.avg_pool3d(x, 2, 1, divisor_override=3), (1, 3, 3, 2)),
        (lambda x: F.adaptive_avg_pool1d(x, 3), (2, 7)),
        (lambda x: F.interpolate(x, (3, 4), mode="bilinear", antialias=True), (2, 9, 7)),
        (lambda x: F.interpolate(x, scale_factor=(0.4, 1.3), mode="bicubic", antialias=True), (1, 9, 7)),
        (lambda x: F.interpolate(x, None, 1.7, "bicubic", True), (1, 5, 4)),
        (lambda x: F.interpolate(x, scale_factor=0.6, mode="area"), (1, 5, 4)),
        (lambda x: F.interpolate(x, 7, mode="trilinear"), (1, 2, 3, 2)),
        (lambda x: F.unfold(x, 3, padding=1, stride=2), (2, 5, 6)),
        (lambda x: F.fold(x, (5, 6), 3, padding=1, stride=2), (18, 9)),
        (lambda x: x.unfold(-1, 3, 2), (2, 5, 6)),
        (lambda x: x.unfold(dimension=2, size=2, step=1), (3, 5)),
        (lambda x: F.pad(x, (2, 1, 0, 3), "replicate"), (1, 3, 4)),
    ],
)
def test_functions_in_a_network(function, shape, ord):
    model = Function(function)
    M = matrix(model, shape)
    true = float(torch.linalg.matrix_norm(M, 2)) if ord == 2 else pq(M, ord)
    bound = lipschitz_bound(model, torch.zeros(1, *shape), ord)
    assert bound.reason == ""
    assert true * (1 - 1e-13) <= bound.value <= true * (1 + 1e-9)


def test_refusals_name_the_shape():
    for layer, shape in (
        (nn.AvgPool2d(3), (1, 2, 2)),
        (nn.Unfold(3), (1, 2, 5)),
        (nn.Fold((3, 3), 2), (4, 3)),
    ):
        with pytest.raises(NormError, match="input of shape"):
            operator_norm(layer, 2, shape)
