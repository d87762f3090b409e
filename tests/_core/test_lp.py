"""ℓp norms, dual vectors and the power iteration, against brute force and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm._core.lp import conjugate, dual, lp_norm, on_sphere, power_iteration, random_start
from opnorm.errors import NormError
from opnorm.jacobian import Matrices, linearized
from tests.jacobian.maps import CELLS, INF, brute, gauss, nets, points, truth

SCALES = [1e-300, 1e-160, 1e-138, 1.0, 1e153, 1e300]  # squares leave float64 beyond 1e-162 and 1e154


@pytest.mark.parametrize(
    ("dtype", "scales"), [(torch.float32, (1e-36, 1e-30, 1, 1e30)), (torch.float64, (1e-200, 1e200))]
)
@pytest.mark.parametrize("r", [1, 1.5, 2, 7, 1000, INF])
def test_norms_of_any_scale(dtype, scales, r):
    unit = gauss(3, 2, 50)
    unit[1] = 0
    for scale in scales:
        z = (unit * scale).to(dtype)
        want = lp_norm((z.double() / scale), r)  # the scales are far from the limits of float64
        got = lp_norm(z, r)
        assert got.dtype == dtype
        assert torch.allclose(got.double() / scale, want, rtol=100 * torch.finfo(dtype).eps)
        assert torch.allclose(lp_norm(z.flatten(1).T, r, 0), got, rtol=1e-6, atol=0)


@pytest.mark.parametrize("r", [1, 1.5, 2, INF])
def test_norms_of_what_is_not_finite_and_of_nothing(r):
    z = torch.tensor([[1.0, INF], [math.nan, 1.0], [0.0, 0.0]])
    got = lp_norm(z, r)
    assert got[0] == INF
    assert got[1].isnan()
    assert got[2] == 0
    assert lp_norm(torch.zeros(2, 0), r).tolist() == [0, 0]


@pytest.mark.parametrize("r", [1, 1.5, 2, INF])
def test_norms_have_gradients(r):
    z = gauss(3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: lp_norm(z, r), z)


@given(st.integers(0, 10**6), st.sampled_from([1, 2, INF]), st.sampled_from(SCALES))
def test_dual_attains_hoelder(seed, r, scale):
    z = gauss(3, 2, 4, seed=seed) * scale
    d = dual(z, r)
    assert torch.allclose((d * (z / scale)).flatten(1).sum(1), lp_norm(z / scale, r), rtol=1e-12)
    assert torch.allclose(lp_norm(d, conjugate(r)), torch.ones(3).double(), rtol=1e-12)


def test_dual_of_rows_of_different_scales():
    z = gauss(6, 7, seed=1)
    scales = torch.tensor(SCALES, dtype=torch.float64)[:, None]
    assert torch.allclose(dual(z * scales, 2), z / z.norm(dim=1, keepdim=True), rtol=1e-12)


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


@pytest.mark.each_value
@pytest.mark.parametrize(("p", "q"), CELLS)
@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (4, 6), (6, 4)])
def test_every_cell_from_below_and_reached_from_some_start(p, q, shape):
    A = gauss(1, *shape, seed=3)
    best = brute(A[0], p, q)
    many = Matrices(A.expand(64, -1, -1))
    start = random_start(gauss(64, shape[1]), p)
    assert torch.allclose(lp_norm(start, p), torch.ones(64).double(), rtol=1e-12)
    found = power_iteration(many, start, p, q, steps=300)
    assert (found.value <= best * (1 + 1e-12)).all()
    assert torch.isclose(found.value.max(), best, rtol=1e-9)
    assert torch.allclose(lp_norm(found.v, p), torch.ones(64).double(), rtol=1e-12)
    assert torch.allclose(lp_norm(many @ found.v, q), found.value, rtol=1e-12)
    assert torch.allclose((found.u * (many @ found.v)).sum(1), found.value, rtol=1e-12)


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_the_power_method_never_goes_down_and_is_the_limit_of_alpha(p, q):
    J = Matrices(gauss(20, 4, 6, seed=5))
    v = random_start(gauss(20, 6), p)
    last = power_iteration(J, v, p, q, steps=0).value
    for steps in range(1, 8):
        found = power_iteration(J, v, p, q, steps=steps)
        assert (found.value >= last * (1 - 1e-12)).all()
        last = found.value
        near = power_iteration(J, v, p, q, steps=steps, alpha=1e9)
        assert torch.allclose(near.v, found.v, atol=1e-6)


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_a_step_of_finite_length_is_that_of_equation_11(p, q):
    A = gauss(3, 4, 6, seed=7)
    v = random_start(gauss(3, 6), p)
    want = v.clone().requires_grad_()
    (ascent,) = torch.autograd.grad(lp_norm((A @ want[:, :, None]).squeeze(2), q).sum(), want)
    found = power_iteration(Matrices(A), v, p, q, steps=1, alpha=0.3)
    assert torch.allclose(found.v, on_sphere(v + 0.3 * ascent, p), rtol=1e-12)


def test_a_network_at_many_points_at_once():
    model, x = nets()["residual"].double(), points(6)
    with linearized(model, x) as J:
        found = power_iteration(J, random_start(x, 2), 2, 2, steps=200)
        alone = power_iteration(J, random_start(x, 2), 2, 2, steps=3)
    assert torch.allclose(found.value, torch.linalg.svdvals(truth(model, x))[:, 0], rtol=1e-6)
    with linearized(model, x[2:4]) as J:
        again = power_iteration(J, random_start(x[2:4], 2), 2, 2, steps=3)
    assert torch.allclose(again.v, alone.v[2:4], rtol=1e-10, atol=1e-12)


def test_a_zero_jacobian_keeps_the_start():
    v = random_start(gauss(2, 6), 2)
    for p, q in CELLS:
        found = power_iteration(Matrices(torch.zeros(2, 4, 6).double()), v, p, q, steps=3)
        assert torch.equal(found.v, v)
        assert torch.equal(found.value, torch.zeros(2).double())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 0.5}, "p=0.5: expected a number of at least 1"),
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
