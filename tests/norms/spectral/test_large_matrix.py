"""The largest and smallest singular values of matrices that are read in panels."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.norms.spectral.large_matrix import PanelMatrix, extreme_singular_values, largest_singular_value

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


def gaussian(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    """The flat top of whose spectrum is the worst case for Lanczos iteration."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outliers(rows: int, columns: int) -> torch.Tensor:
    """As of trained weights: a few values far above the others."""
    return gaussian(rows, columns) + 60 * gaussian(rows, 2, 1) @ gaussian(2, columns, 2) / rows


def found(W: torch.Tensor, **settings):
    return largest_singular_value(PanelMatrix.of(W), float(W.double().abs().max()), **settings)


def truth(W: torch.Tensor) -> torch.Tensor:
    return torch.linalg.svdvals(W.double())


@given(
    st.integers(1, 40), st.integers(1, 40), st.sampled_from(DTYPES), st.integers(-3, 3), st.integers(0, 99)
)
def test_small_matrices_are_known_to_rounding(rows, columns, dtype, exponent, seed):
    W = (gaussian(rows, columns, seed) * 2.0**exponent).to(dtype)
    values, size = truth(W), float(W.double().abs().max())
    slack = 1e-14 * float(values[0])  # of the SVD that is compared with
    for norm, value in zip(
        extreme_singular_values(PanelMatrix.of(W), size), (values[0], values[-1]), strict=True
    ):
        assert norm.lower - slack <= value <= norm.upper + slack
        assert norm.upper - norm.lower <= 1e-11 * values[0]


@pytest.mark.each_pair
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [gaussian, outliers])
@pytest.mark.parametrize("shape", [(530, 700), (900, 520)])
def test_large_matrices_of_every_type_are_in_their_interval(shape, make, dtype):
    W = make(*shape).to(dtype)
    norm = found(W)
    assert norm.lower <= truth(W)[0] <= norm.upper
    assert norm.relative_width <= 5e-3
    assert "probability 1 - 1e-09" in norm.method


@pytest.mark.parametrize("scale", [1e-200, 1e-40, 1e30, 1e200])
def test_the_scale_does_not_matter(scale):
    W = outliers(540, 600)
    norm, scaled = found(W), found(W * scale)
    assert scaled.lower == pytest.approx(float(norm.lower) * scale, rel=1e-6)
    assert scaled.lower <= truth(W)[0] * scale <= scaled.upper


def test_matrices_of_low_rank_and_of_zeros():
    one = gaussian(600, 1) @ gaussian(1, 700)
    norm = found(one.float())
    assert norm.lower <= truth(one.float())[0] <= norm.upper
    assert found(torch.zeros(600, 700)).upper == 0
    B, A = gaussian(700, 3), gaussian(3, 600)
    product = largest_singular_value(PanelMatrix.product(B, A), 1.0)
    assert product.lower <= truth(B @ A)[0] * (1 + 1e-14)
    assert product.upper >= truth(B @ A)[0] * (1 - 1e-14)
    assert product.relative_width < 1e-10


@pytest.mark.parametrize("settings", [{"relative_width": 1e-6}, {"failure_probability": 0.0}])
def test_narrow_or_certain_intervals_take_all_singular_values(settings):
    W = gaussian(520, 530).float()
    norm = found(W, **settings)
    assert norm.relative_width < 1e-9
    assert norm.lower <= truth(W)[0] * (1 + 1e-14)
    assert "probability" not in norm.method


@pytest.mark.slow
def test_the_upper_end_is_not_luck():
    """With few steps and a large failure probability the upper ends still hold in nearly all of many matrices."""
    failures = 0
    for seed in range(30):
        W = gaussian(513, 513, seed)
        norm = found(W, relative_width=0.05, failure_probability=0.1)
        failures += bool(norm.upper < torch.linalg.matrix_norm(W, 2))
    assert failures <= 8  # a binomial count of 30 with probability 0.1 is above 8 once in 500


def test_the_matrix_is_left_as_it_was():
    W = gaussian(600, 520)
    before = W.clone()
    found(W)
    extreme_singular_values(PanelMatrix.of(W), 5.0)
    assert torch.equal(W, before)
