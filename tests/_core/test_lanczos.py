"""Lanczos iteration against the singular values of dense float64 matrices, at every scale."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm._core.lanczos import lanczos, steps_for, upper_factor
from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import lp_norm
from opnorm.jacobian import Matrices
from tests.property_tests import examples

DTYPES = {torch.float32: (1e-30, 1e-10, 1.0, 1e10, 1e30), torch.float64: (1e-140, 1e-30, 1.0, 1e30, 1e140)}


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("dtype", "scale"), [(d, s) for d, scales in DTYPES.items() for s in scales])
@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (1, 5), (5, 1)])
def test_a_batch_of_maps_of_any_scale(dtype, scale, shape):
    """All columns as steps: the largest singular value, to the rounding of products in this type."""
    A = gauss(4, *shape, seed=1)
    A[1] *= 1e-4  # a batch of maps of different scales,
    A[2] = A[2, :, :1] * A[2, :1]  # of low rank,
    A[3] = 0  # and zero
    matrices = (A * scale).to(dtype)
    v = lanczos(Matrices(matrices), gauss(4, shape[1]).to(dtype), steps=shape[1])
    assert v.dtype == dtype
    rounding = 8 * sum(shape) * torch.finfo(dtype).eps
    assert torch.allclose(lp_norm(v.double(), 2), torch.ones(4).double(), rtol=rounding)
    reached = lp_norm((matrices.double() / scale @ v.double()[:, :, None]).squeeze(2), 2)
    want = torch.linalg.svdvals(matrices.double() / scale)[:, 0]
    assert (reached <= want * (1 + rounding)).all()
    assert torch.allclose(reached, want, rtol=rounding)


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))
@examples(100)
def test_the_best_vector_of_the_krylov_space(seed, rows, columns, steps):
    A, start = gauss(rows, columns, seed=seed), gauss(columns, seed=seed + 1)
    v = lanczos(Matrices(A[None]), start[None], steps=steps)[0]
    space = [start / start.norm()]
    for _ in range(min(steps, columns, rows) - 1):
        space.append(A.T @ (A @ space[-1]))
        space[-1] /= space[-1].norm()
    Q = torch.linalg.qr(torch.stack(space, 1))[0]
    assert float((A @ v).norm()) >= float(torch.linalg.matrix_norm(A @ Q, 2)) * (1 - 1e-8)


def test_rows_are_independent_and_one_map_takes_many_starts():
    A, starts = gauss(6, 9), gauss(3, 9, seed=2)
    one = LinearMap(lambda v: v @ A.T, lambda u: u @ A, (9,), (6,))
    together = lanczos(one, starts, steps=3)
    for i in range(3):
        assert torch.allclose(lanczos(one, starts[i : i + 1], steps=3), together[i : i + 1], atol=1e-12)


def test_a_start_of_zero_and_what_is_not_finite():
    A = gauss(3, 4, 5)
    A[1, 0, 0], A[2, 0, 0] = math.nan, math.inf
    starts = gauss(3, 5)
    starts[0] = 0
    v = lanczos(Matrices(A), starts, steps=5)
    assert float((A[0] @ v[0]).norm()) == pytest.approx(float(torch.linalg.matrix_norm(A[0], 2)))
    assert v[1:].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("share", [0.0, 1e-6, 1e-2])
def test_a_space_that_seems_exhausted_has_not_converged(dtype, share):
    """The start is an eigenvector but for a share below the rounding of its image; the largest value is elsewhere."""
    sigma = torch.ones(300, dtype=dtype)
    sigma[0] = 3
    A = LinearMap(lambda v: v * sigma, lambda u: u * sigma, (300,), (300,), dtype=dtype)
    start = torch.ones(1, 300, dtype=dtype)
    start[0, 0] = share
    v = lanczos(A, start, steps=40)
    assert v.dtype == dtype
    assert float((A @ v).norm() / v.norm()) == pytest.approx(3, rel=0.01)


def test_it_stops_where_nothing_is_gained():
    A, calls = gauss(200, 200).abs(), []  # one large singular value far above the others

    def apply(v):
        calls.append(1)
        return v @ A.T

    v = lanczos(LinearMap(apply, lambda u: u @ A, (200,), (200,)), gauss(1, 200), steps=200, tolerance=1e-6)
    assert len(calls) <= 40
    assert float((v @ A.T).norm()) == pytest.approx(float(torch.linalg.matrix_norm(A, 2)), rel=1e-9)


@pytest.mark.parametrize("width", [0.3, 1e-2, 1e-3])
def test_the_probability_bound(width):
    steps = steps_for(10**6, 1 + width, 1e-9)
    assert upper_factor(10**6, steps, 1e-9) <= 1 + width < upper_factor(10**6, steps - 1, 1e-9)
    assert upper_factor(10**6, 1, 1e-9) == math.inf
    assert steps_for(10, 1 + 1e-9, 1e-9) == 10


def test_the_upper_end_holds_on_a_hard_spectrum():
    """Singular values that lie close together: with failure probability 0.05, at most 5 % of starts fall short."""
    sigma = torch.linspace(0.5, 1, 400, dtype=torch.float64)
    A = LinearMap(lambda v: v * sigma, lambda u: u * sigma, (400,), (400,))
    for steps in (4, 8, 16):
        v = lanczos(A, gauss(400, 400, seed=steps), steps=steps)
        short = (lp_norm(A @ v, 2) * upper_factor(400, steps, 0.05) < 1).double().mean()
        assert short <= 0.05
