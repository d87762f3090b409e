"""Balls cut with the box against an independent solver, and random starts against the uniform distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm._core.random import normal, point_keys, uniform
from opnorm.attacks._rows import select
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError
from tests.property_tests import examples


def project_by_bisection(x, z, eps):
    """min ‖p - z‖ over the ball cut with the box: p = clip(x + (z - x) / (1 + μ)), μ by bisection (KKT)."""

    def at(mu):
        return np.clip(x + (z - x) / (1 + mu), 0, 1)

    if np.linalg.norm(at(0.0) - x) <= eps:
        return at(0.0)
    low, high = 0.0, 1e12
    for _ in range(300):
        mu = (low + high) / 2 if high < 1 else math.sqrt(max(low, 1e-12) * high)
        low, high = (mu, high) if np.linalg.norm(at(mu) - x) > eps else (low, mu)
    return at(high)


@given(st.integers(1, 30), st.floats(1e-3, 3), st.floats(0.01, 20), st.integers(0, 10**6))
@examples(150)
def test_l2_and_box(size, eps, spread, seed):
    rng = np.random.default_rng(seed)
    x = rng.random(size)
    x[rng.random(size) < 0.3] = rng.integers(0, 2)
    z = x + spread * rng.standard_normal(size)
    got = ball(torch.tensor(x)[None], eps, 2).project(torch.tensor(z)[None])[0].numpy()
    want = project_by_bisection(x, z, eps)
    assert np.linalg.norm(got - x) <= eps
    assert got.min() >= 0
    assert got.max() <= 1
    assert np.linalg.norm(got - z) <= np.linalg.norm(want - z) * (1 + 1e-6) + 1e-6
    assert np.allclose(got, want, atol=1e-5)


def furthest_in_l1_and_box(x, direction, eps):
    """max <direction, w - x> over the ball cut with the box: the steepest coordinates go as far as the box lets them."""
    gain = 0.0
    for j in np.argsort(-np.abs(direction)):
        step = min(eps, 1 - x[j] if direction[j] > 0 else x[j])
        gain, eps = gain + step * abs(direction[j]), eps - step
    return gain


@given(st.integers(1, 40), st.floats(-3, 1), st.floats(-3, 6), st.integers(0, 10**6))
@examples(300)
def test_l1_and_box(size, log_eps, log_spread, seed):
    """p is the projection of z on a convex set if and only if no w in the set has <z - p, w - p> > 0."""
    rng = np.random.default_rng(seed)
    x, eps = rng.random(size), 10**log_eps
    x[rng.random(size) < 0.3] = rng.integers(0, 2)
    z = x + 10**log_spread * rng.standard_normal(size) * rng.random(size) ** 3
    p = ball(torch.tensor(x)[None], eps, 1).project(torch.tensor(z)[None])[0].numpy()
    assert np.abs(p - x).sum() <= eps
    assert p.min() >= 0
    assert p.max() <= 1
    rest = z - p
    rounding = np.abs(rest).max() * (1e-9 * eps + 1e-14 * np.abs(z).max() + 1e-15)
    assert furthest_in_l1_and_box(x, rest, eps) - rest @ (p - x) <= rounding


@given(st.integers(1, 20), st.floats(1e-4, 1), st.integers(0, 10**6))
@examples(60)
def test_linf_and_box(size, eps, seed):
    rng = np.random.default_rng(seed)
    x, z = rng.random(size), rng.standard_normal(size)
    got = ball(torch.tensor(x)[None], eps, math.inf).project(torch.tensor(z)[None])[0].numpy()
    assert np.allclose(got, np.clip(np.clip(z, x - eps, x + eps), 0, 1), atol=1e-12)


def furthest_in_lp_and_box(x, direction, eps, p):
    """max <direction, w - x> over the ball cut with the box, by bisection: w = x + min(t |direction|^(p* - 1), room)."""
    room = np.where(direction > 0, 1 - x, x)
    speed = (np.abs(direction) / np.abs(direction).max()) ** (1 / (p - 1))
    low, high = 0.0, 1e9
    for _ in range(200):
        t = (low + high) / 2
        short = (np.minimum(t * speed, room) ** p).sum() <= eps**p
        low, high = (t, high) if short else (low, t)
    return np.abs(direction) @ np.minimum(low * speed, room)


@given(st.integers(1, 40), st.floats(-3, 1), st.floats(-3, 2), st.floats(1.1, 12), st.integers(0, 10**6))
@examples(200)
def test_lp_and_box(size, log_eps, log_spread, p, seed):
    """A point is the projection of z on a convex set if and only if no w in the set has <z - point, w - point> > 0."""
    rng = np.random.default_rng(seed)
    x, eps = rng.random(size), 10**log_eps
    x[rng.random(size) < 0.3] = rng.integers(0, 2)
    z = x + 10**log_spread * rng.standard_normal(size) * rng.random(size) ** 3
    point = ball(torch.tensor(x)[None], eps, p).project(torch.tensor(z)[None])[0].numpy()
    assert (np.abs(point - x) ** p).sum() <= eps**p * (1 + 1e-12)
    assert point.min() >= 0
    assert point.max() <= 1
    rest = z - point
    if np.abs(rest).max() > 1e-9:
        furthest, reached = furthest_in_lp_and_box(x, rest, eps, p), rest @ (point - x)
        assert furthest - reached <= np.abs(rest).sum() * (1e-7 * eps + 1e-12)


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_points_inside_are_left_alone_and_projecting_twice_is_once(norm, dtype):
    x = torch.rand(20, 1, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    region = ball(x, 0.1, norm)
    assert torch.equal(region.project(x), x)
    near = (x + 0.01 * (0.5 - x)).clamp(0, 1)
    assert torch.allclose(region.project(near), near, atol=1e-6)
    far = region.project(x + torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(dtype))
    assert torch.allclose(region.project(far), far, atol=1e-6)


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_radius_of_each_point_is_a_ball_of_its_own(norm, dtype):
    x, z, grad = (torch.rand(3, 5, 1, 4, 4, generator=torch.Generator().manual_seed(0))).to(dtype)
    z, radii, keys = 3 * z - 1, torch.tensor([0.0, 0.1, 0.2, 0.3, 0.4], dtype=torch.float64), torch.arange(5)
    together = ball(x, radii, norm)
    for i, eps in enumerate(radii.tolist()):
        alone, one = ball(x[i : i + 1], eps, norm), slice(i, i + 1)
        for mine, its in (
            (together.start(keys)[one], alone.start(keys[one])),
            (together.project(z)[one], alone.project(z[one])),
            (together.ascend_in_box(x, grad, 0.15)[one], alone.ascend_in_box(x[one], grad[one], 0.15)),
            (together.gain(x, grad)[one], alone.gain(x[one], grad[one])),
        ):
            assert mine.dtype == dtype
            assert torch.allclose(mine, its, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-12)
        assert together.eps[i] == select(together, keys == i).eps == eps


@pytest.mark.parametrize("norm", [1, 1.5, 2, 3, math.inf])
def test_directions_are_unit_steps(norm):
    grad = torch.randn(5, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    grad[1] *= 1e-12
    grad[2] = 0
    step = ball(torch.zeros_like(grad), 1, norm).direction(grad)
    assert torch.allclose(step.flatten(1).norm(norm, dim=1), torch.tensor([1.0, 1, 0, 1, 1]))
    gain = (step * grad).flatten(1).sum(1)  # Hölder: no unit step climbs faster
    dual = {1: math.inf, 1.5: 3, 2: 2, 3: 1.5, math.inf: 1}[norm]
    assert torch.allclose(gain.double(), grad.double().flatten(1).norm(dual, dim=1), rtol=1e-5, atol=0)


def test_l1_directions_share_what_is_equal():
    grad = torch.tensor([[3.0, -3, 1, 3], [0, 0, 0, -1e-30]]).view(2, 1, 2, 2)
    want = torch.tensor([[1 / 3, -1 / 3, 0, 1 / 3], [0, 0, 0, -1]]).view(2, 1, 2, 2)
    assert torch.equal(ball(torch.zeros_like(grad), 1, 1).direction(grad), want)


def test_l1_steps_go_where_the_box_lets_them():
    x = torch.tensor([0.5, 0.9, 0.0, 0.5]).view(1, 1, 2, 2)
    grad = torch.tensor([1.0, 3, -4, 2]).view(1, 1, 2, 2)
    region = ball(x, 0.25, 1)
    moved = (
        region.ascend_in_box(x, grad, 0.25) - x
    )  # the steepest pixel is black already, the next has 0.1 left
    assert torch.allclose(moved.flatten(), torch.tensor([0.0, 0.1, 0, 0.15]), atol=1e-6)
    assert torch.equal(region.ascend_in_box(x, torch.zeros_like(x), 0.25), x)
    inner = ball(torch.full_like(x, 0.5), 0.1, 1)
    z = inner.project(inner.x + torch.tensor([-0.04, 0.0, 0.02, 0.04]).view_as(x))
    for far in (0.2, 1e6):  # α → ∞: all of ε on the steepest coordinate, wherever the step began
        moved = inner.ascend_in_box(z, grad, far) - inner.x
        assert torch.allclose(moved.flatten(), torch.tensor([0.0, 0, -0.1, 0]), atol=1e-6)


def test_unknown_norm():
    with pytest.raises(AttackError, match=r"norm=0\.5: expected a number from 1 on, such as 1, 2 or inf"):
        ball(torch.zeros(1, 1, 1, 1), 0.1, 0.5)


def ks(values, cdf):
    """Kolmogorov and Smirnov's distance times sqrt(n): above 1.95 with probability 0.001."""
    values = np.sort(np.asarray(values))
    n = len(values)
    up, down = np.arange(1, n + 1) / n - cdf(values), cdf(values) - np.arange(n) / n
    return math.sqrt(n) * max(up.max(), down.max())


def test_linf_starts_are_uniform():
    x = 0.3 + 0.4 * torch.rand(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    start = ball(x, 0.2, math.inf).start(point_keys(x, seed=1))
    gaps = ((start - x) / 0.4 + 0.5).flatten(1).numpy()
    for pixel in gaps.T:
        assert ks(pixel, lambda u: np.clip(u, 0, 1)) < 1.95
    assert np.abs(np.corrcoef(gaps.T) - np.eye(4)).max() < 0.06


def test_linf_starts_are_uniform_in_what_the_box_leaves():
    x = torch.rand(4000, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 0.05
    start = ball(x, 0.1, math.inf).start(point_keys(x, seed=1))
    assert ks((start / (x + 0.1)).flatten().numpy(), lambda u: np.clip(u, 0, 1)) < 1.95


def test_l2_starts_are_uniform():
    x = 0.4 + 0.2 * torch.rand(4000, 1, 1, 3, generator=torch.Generator().manual_seed(0))
    gaps = ((ball(x, 0.3, 2).start(point_keys(x, seed=1)) - x) / 0.3).flatten(1).numpy()
    radius = np.linalg.norm(gaps, axis=1)
    assert ks(radius, lambda r: np.clip(r, 0, 1) ** 3) < 1.95
    for axis in range(3):  # on a sphere in 3 dimensions every coordinate is uniform (Archimedes)
        assert ks(gaps[:, axis] / radius, lambda u: np.clip((u + 1) / 2, 0, 1)) < 1.95
    assert abs(np.corrcoef(radius, gaps[:, 0] / radius)[0, 1]) < 0.06


def test_l1_starts_are_uniform():
    x = 0.4 + 0.2 * torch.rand(4000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    gaps = ((ball(x, 0.3, 1).start(point_keys(x, seed=1)) - x) / 0.3).flatten(1).numpy()
    radius = np.abs(gaps).sum(axis=1)
    assert ks(radius, lambda r: np.clip(r, 0, 1) ** 2) < 1.95
    share = np.abs(gaps[:, 0]) / radius
    assert ks(share, lambda u: np.clip(u, 0, 1)) < 1.95
    assert abs(np.corrcoef(radius, share)[0, 1]) < 0.06
    quadrant = (gaps[:, 0] > 0) * 2 + (gaps[:, 1] > 0)
    assert np.abs(np.bincount(quadrant) / 1000 - 1).max() < 0.12


def test_lp_starts_are_uniform():
    x = 0.4 + 0.2 * torch.rand(4000, 1, 1, 2, generator=torch.Generator().manual_seed(0))
    gaps = ((ball(x, 0.3, 3).start(point_keys(x, seed=1)) - x) / 0.3).flatten(1).numpy()
    assert ks((np.abs(gaps) ** 3).sum(axis=1) ** (1 / 3), lambda r: np.clip(r, 0, 1) ** 2) < 1.95
    grid = np.linspace(-1, 1, 20001)
    below = np.cumsum((1 - np.abs(grid) ** 3) ** (1 / 3))  # a coordinate's density is the length of the rest
    for axis in range(2):
        assert ks(gaps[:, axis], lambda t: np.interp(t, grid, below / below[-1])) < 1.95
    quadrant = (gaps[:, 0] > 0) * 2 + (gaps[:, 1] > 0)
    assert np.abs(np.bincount(quadrant) / 1000 - 1).max() < 0.12


def test_seeds_and_streams_and_points_are_independent():
    keys = torch.arange(1000)
    u = uniform(keys, 3)
    assert ks(u.flatten().numpy(), lambda v: np.clip(v, 0, 1)) < 1.95
    n = normal(keys, 2)
    assert abs(float(n.mean())) < 0.1
    assert abs(float(n.std()) - 1) < 0.05
    assert ((u > 0) & (u < 1)).all()
    x = torch.rand(3, 2, 2, 2, generator=torch.Generator().manual_seed(0))
    every = torch.cat([point_keys(x, seed, stream) for seed in range(20) for stream in range(20)])
    assert len(every.unique()) == 3 * 400
    flipped = x.flip(-1)  # the same pixels in other places
    assert not torch.isin(point_keys(flipped, 0), point_keys(x, 0)).any()


@pytest.mark.each_value
@pytest.mark.parametrize("norm", [1, 2, 3, math.inf])
@pytest.mark.parametrize("name", ["project", "near"])
def test_projections_are_differentiable(norm, name):
    torch.manual_seed(0)
    x = torch.rand(5, 6, dtype=torch.float64)
    z = (x + 0.6 * torch.randn_like(x)).requires_grad_()
    assert torch.autograd.gradcheck(getattr(ball(x, 0.5, norm), name), (z,), eps=1e-7, atol=1e-4)
