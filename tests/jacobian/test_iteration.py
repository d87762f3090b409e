"""The power iteration and its parts, against brute force and closed forms."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.errors import NormError
from opnorm.jacobian import Matrices, dual, linearized, lp_norm, on_sphere, power_iteration, random_start
from opnorm.jacobian.iteration import conjugate
from tests.jacobian.maps import CELLS, INF, nets, points, truth


def gauss(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, INF]), st.sampled_from([1e-200, 1.0, 1e200]))
def test_dual_attains_hoelder(seed, r, scale):
    z = gauss(3, 2, 4, seed=seed) * scale
    d = dual(z, r)
    assert torch.allclose((d * (z / scale)).flatten(1).sum(1), lp_norm(z / scale, r), rtol=1e-12)
    assert torch.allclose(lp_norm(d, conjugate(r)), torch.ones(3).double(), rtol=1e-12)


def test_dual_of_ties_and_zeros():
    z = torch.tensor([[2.0, -2.0, 1.0], [0.0, 0.0, 0.0]])
    assert dual(z, INF).tolist() == [[0.5, -0.5, 0], [0, 0, 0]]
    assert dual(z, 1).tolist() == [[1, -1, 1], [0, 0, 0]]
    kept = torch.tensor([[7.0, 7, 7], [0, 1, 0]])
    for r in (1, 2, INF):
        found = dual(z, r, kept)
        assert found[1].tolist() == [0, 1, 0]
        assert 7 not in found[0]


@given(st.integers(0, 10**6), st.sampled_from([1, 2, INF]), st.sampled_from([0.01, 0.3, 1.0, 3.0]))
def test_on_sphere_is_the_closest_point_of_the_sphere(seed, p, scale):
    w = gauss(1, 3, seed=seed) * scale
    v = on_sphere(w, p)
    assert torch.allclose(lp_norm(v, p), torch.ones(1).double(), rtol=1e-12)
    others = gauss(4000, 3, seed=seed + 1)
    others = others / lp_norm(others, p)[:, None]
    near = v + 1e-3 * gauss(4000, 3, seed=seed + 2)
    others = torch.cat([others, near / lp_norm(near, p)[:, None]])
    assert (others - w).norm(dim=1).min() >= (v - w).norm() - 1e-9


def test_on_sphere_by_hand():
    w = torch.tensor([[0.2, -0.2, 0.0], [3.0, 0.5, -1.0], [0.0, 0.0, 0.0]])
    assert torch.allclose(on_sphere(w, 1), torch.tensor([[0.4, -0.4, 0.2], [1, 0, 0], [1 / 3, 1 / 3, 1 / 3]]))
    assert on_sphere(w, INF).tolist() == [[1, pytest.approx(-0.2), 0], [1, 0.5, -1], [1, 0, 0]]
    assert on_sphere(w, 2)[2].tolist() == [1, 0, 0]


def brute(A, p, q):
    """‖A‖_{p→q}: columns, singular values, rows, or all sign vectors of either side."""
    if p == 1:
        return torch.linalg.vector_norm(A, q, 0).max()
    if q == INF:
        return torch.linalg.vector_norm(A, conjugate(p), 1).max()
    if p == q == 2:
        return torch.linalg.svdvals(A)[0]
    if q == 1:
        A, p, q = A.T, INF, conjugate(p)
    assert p == INF
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=A.shape[1]))).to(A.dtype)
    return torch.linalg.vector_norm(signs @ A.T, q, 1).max()


@pytest.mark.parametrize(("p", "q"), CELLS)
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 6), (6, 4)])
def test_every_cell_from_below_and_reached_from_some_start(p, q, shape):
    A = gauss(1, *shape, seed=3)
    best = brute(A[0], p, q)
    many = Matrices(A.expand(64, -1, -1))
    start = random_start(gauss(64, shape[1]), p)
    assert torch.allclose(lp_norm(start, p), torch.ones(64).double(), rtol=1e-12)
    found = power_iteration(many, start, p, q, 300)
    assert (found.value <= best * (1 + 1e-12)).all()
    assert torch.isclose(found.value.max(), best, rtol=1e-9)
    assert torch.allclose(lp_norm(found.v, p), torch.ones(64).double(), rtol=1e-12)
    assert torch.allclose(lp_norm(many.apply(found.v), q), found.value, rtol=1e-12)
    assert torch.allclose((found.u * many.apply(found.v)).sum(1), found.value, rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_the_power_method_never_goes_down_and_is_the_limit_of_alpha(p, q):
    J = Matrices(gauss(20, 4, 6, seed=5))
    v = random_start(gauss(20, 6), p)
    last = power_iteration(J, v, p, q, 0).value
    for steps in range(1, 8):
        found = power_iteration(J, v, p, q, steps)
        assert (found.value >= last * (1 - 1e-12)).all()
        last = found.value
        near = power_iteration(J, v, p, q, steps, alpha=1e9)
        assert torch.allclose(near.v, found.v, atol=1e-6)


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_a_step_of_finite_length_is_that_of_equation_11(p, q):
    A = gauss(3, 4, 6, seed=7)
    v = random_start(gauss(3, 6), p)
    want = v.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(lp_norm((A @ want[:, :, None]).squeeze(2), q).sum(), want)
    found = power_iteration(Matrices(A), v, p, q, 1, alpha=0.3)
    assert torch.allclose(found.v, on_sphere(v + 0.3 * ascent, p), rtol=1e-12)


def test_a_network_at_many_points_at_once():
    model, x = nets()["residual"].double(), points(6)
    with linearized(model, x) as J:
        found = power_iteration(J, random_start(x, 2), 2, 2, 500)
        alone = power_iteration(J, random_start(x, 2), 2, 2, 3)
    assert torch.allclose(found.value, torch.linalg.svdvals(truth(model, x))[:, 0], rtol=1e-9)
    with linearized(model, x[2:4]) as J:
        again = power_iteration(J, random_start(x[2:4], 2), 2, 2, 3)
    assert torch.allclose(again.v, alone.v[2:4], rtol=1e-10, atol=1e-12)


def test_a_zero_jacobian_keeps_the_start():
    v = random_start(gauss(2, 6), 2)
    for p, q in CELLS:
        found = power_iteration(Matrices(torch.zeros(2, 4, 6).double()), v, p, q, 3)
        assert torch.equal(found.v, v)
        assert torch.equal(found.value, torch.zeros(2).double())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0.5}, "p=0.5: expected a number from 1 on, or inf"),
        ({"p": 3, "alpha": 1.0}, "p=3: the closest point of the sphere is known for 1, 2 and inf"),
        ({"q": True}, "q=True"),
        ({"q": math.nan}, "q=nan"),
        ({"steps": -1}, "steps=-1"),
        ({"steps": True}, "steps=True"),
        ({"alpha": 0}, "alpha=0: expected a step length above 0"),
        ({"alpha": math.nan}, "alpha=nan"),
    ],
)
def test_bad_settings(settings, message):
    J = Matrices(gauss(1, 2, 2))
    with pytest.raises(NormError, match=message):
        power_iteration(J, gauss(1, 2), **({"p": 2, "q": 2} | settings))
