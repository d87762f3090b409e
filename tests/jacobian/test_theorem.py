"""Theorem 1: ascent on ‖f(x') - f(x)‖_q is the power method, step by step, while one linear region lasts."""

import itertools
import math

import pytest
import torch
from torch import nn

from opnorm.attacks.projections import ball
from opnorm.errors import NormError
from opnorm.jacobian import (
    activations,
    features,
    jacobian_norm,
    linearized,
    lp_norm,
    power_iteration,
    random_start,
    same_region,
    secant_ascent,
    theorem_1,
)
from tests.jacobian.maps import CELLS, INF, nets, points

EPS = {1: 2e-3, 2: 1e-3, INF: 1e-4}


def inner(n=5):
    """Points away from the walls of the box, which the theorem knows nothing of."""
    return 0.3 + 0.4 * points(n)


@pytest.mark.parametrize(("p", "q"), CELLS)
@pytest.mark.parametrize("name", ["linear", "residual"])
def test_both_take_the_same_steps_to_rounding(name, p, q):
    model, x = nets()[name].double().train(), inner(20)
    found = theorem_1(model, x, EPS[p], p, q, steps=8)
    inside = found.same_region
    assert inside.sum() >= (20 if name == "linear" else 12)
    assert found.cosine.shape == found.distance.shape == (8, 20)
    assert (found.distance[:, inside] < 1e-8).all()
    assert (found.cosine[:, inside] > 1 - 1e-12).all()
    assert torch.allclose(found.slope[inside], found.gain[inside], rtol=1e-8)
    assert model.training


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_the_steps_are_those_of_projected_gradient_ascent_by_autograd(p, q):
    """The limit of long steps beside a very long step of the attack's own projection, gradients by autograd."""
    model, x, eps = nets()["residual"].double().eval(), inner(), EPS[p]
    v = random_start(x, p)
    with torch.no_grad():
        clean = model(x)
    z = x + eps * v
    for secant in secant_ascent(model, x, v, eps, p, q, steps=4):
        assert torch.allclose((z - x) / eps, secant.v, atol=1e-5)
        z = z.clone().requires_grad_()
        loss = torch.linalg.vector_norm(model(z.clone()) - clean, q, 1)
        assert torch.allclose(secant.slope, loss / eps, rtol=1e-8)
        (grad,) = torch.autograd.grad(loss.sum(), z)
        z = ball(x, eps, p).ascend(z.detach(), grad, 1e4)


@pytest.mark.parametrize("p", [1, 2, INF])
def test_a_finite_step_length(p):
    """Both take the same steps as long as ascent is on the sphere, always for p = 2; long steps tend to the limit."""
    model, x = nets()["linear"].double(), inner(20)
    limit = theorem_1(model, x, EPS[p], p, 2, steps=4)
    near = theorem_1(model, x, EPS[p], p, 2, steps=4, alpha=1e9)
    assert torch.allclose(near.gain, limit.gain, rtol=1e-6)
    short = theorem_1(model, x, EPS[p], p, 2, steps=4, alpha=0.1)
    if p == 2:
        assert (short.cosine > 1 - 1e-9).all()
        assert (short.gain < limit.gain).all()
    v = random_start(x, p)
    for secant in secant_ascent(model, x, v, EPS[p], p, 2, steps=4, alpha=0.1):
        assert (lp_norm(secant.v, p) <= 1 + 1e-12).all()
    with pytest.raises(NormError, match="alpha=-1"):
        theorem_1(model, x, EPS[p], p, alpha=-1)


def test_far_away_they_part_and_it_is_seen():
    model, x = nets()["residual"].double(), inner(20)
    near, far = theorem_1(model, x, 1e-4), theorem_1(model, x, 3.0)
    assert near.same_region.float().mean() > 0.9
    assert (near.cosine[:, near.same_region] > 1 - 1e-9).all()
    assert not far.same_region.any()
    assert far.cosine[-1].mean() < 0.99
    assert (far.slope / far.gain - 1).abs().max() > 0.01


def test_it_converges_to_the_jacobians_norm():
    model, x = nets()["residual"].double(), inner()
    found = theorem_1(model, x, 1e-3, steps=200)
    assert torch.allclose(found.gain, jacobian_norm(model, x).lower, rtol=1e-9)


@pytest.mark.parametrize(("p", "q"), [(2, 2), (INF, 1), (3, 1.5)])
def test_secants_are_slopes_of_the_network(p, q):
    model, x = nets()["residual"].double().eval(), inner()
    model = features(model, x, "features")
    for secant in secant_ascent(model, x, random_start(x, p), 0.5, p, q, steps=3):
        assert torch.allclose(lp_norm(secant.v, p), torch.ones(5).double(), rtol=1e-12)
        with torch.no_grad(), linearized(model, x) as here:
            there = linearized(model, x + 0.5 * secant.v)
            with there as J:
                change = J.outputs - here.outputs
        assert torch.allclose(secant.slope, lp_norm(change, q) / 0.5, rtol=1e-12)


def test_a_smooth_network_has_no_regions():
    found = theorem_1(nets()["mlp"].double(), inner(), 1e-6)
    assert not found.same_region.any()
    assert (found.cosine > 0.999).all()


def test_a_constant_network_keeps_the_start():
    model = nn.Linear(6, 3).double()
    nn.init.zeros_(model.weight)
    found = theorem_1(model, torch.rand(2, 6).double(), 0.1)
    assert torch.equal(found.slope, torch.zeros(2).double())
    assert (found.cosine > 1 - 1e-12).all()


def test_any_p_and_q():
    """Hoelder's inequality is attained, and the general power iteration never falls."""
    model, x = nets()["residual"].double(), points(3)
    with linearized(model, x) as J:
        for p, q in ((3, 1.5), (1.2, 4), (INF, 3), (1, 3)):
            values = [power_iteration(J, random_start(x, p), p, q, steps=k).value for k in range(6)]
            assert all((b >= a * (1 - 1e-12)).all() for a, b in itertools.pairwise(values))
            found = jacobian_norm(model, x, p, q)
            assert (found.lower >= values[-1] * (1 - 1e-9)).all()
            assert (found.upper >= found.lower).all()
            assert torch.allclose(lp_norm(J @ found.v, q), found.lower, rtol=1e-10)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0}, "eps=0: expected a radius above 0"),
        ({"eps": math.nan}, "eps=nan"),
        ({"eps": True}, "eps=True"),
        ({"steps": 0}, "steps=0: expected a whole number, at least 1"),
        ({"p": 0.5}, "p=0.5"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(NormError, match=message):
        theorem_1(nets()["residual"].double(), points(2), **({"eps": 0.1} | settings))


def test_the_region_is_where_one_affine_map_holds():
    """same_region against the definition: f(x + z) = f(x) + J z, along random segments of many lengths."""
    model, x = nets()["residual"].double().eval(), inner(200)
    z = 0.02 * random_start(x, 2) * torch.linspace(0, 1, 200).view(-1, 1, 1, 1) ** 2
    same = same_region(activations(model, x), activations(model, x + z))
    with linearized(model, x) as J:
        linear = J.outputs.detach() + J @ z
    with torch.no_grad():
        affine = (model(x + z) - linear).abs().amax(1) < 1e-12
    assert 20 < int(same.sum()) < 180
    assert torch.equal(same & affine, same)
    assert (same == affine).float().mean() > 0.95  # a unit may switch without being heard of
