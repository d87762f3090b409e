"""Bounds on balls, against dense Jacobians and slopes at points of the ball; rows, blocks and messages."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.jacobian import local_lipschitz
from tests.jacobian.local.networks import NETWORKS, network
from tests.property_tests import examples


def jacobian(model, x):
    """‖J(x)‖_2 by backward passes."""
    J = torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel())
    return float(torch.linalg.matrix_norm(J, 2))


def steepest(model, x, radius, steps=8):
    """The largest ‖J‖_2 and slope found in the ball: random points on its sphere, and ascent of ‖f(z) - f(x)‖."""
    model, x = copy.deepcopy(model).double().requires_grad_(False), x.double()
    best = 0.0
    for seed in range(3):
        d = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
        for _ in range(steps):
            z = (x + radius * d / d.norm()).requires_grad_()
            rise = (model(z) - model(x)).norm()
            best = max(best, float((rise / (z - x).norm()).detach()) * (1 - 1e-6))
            (d,) = torch.autograd.grad(rise, z)
        best = max(best, jacobian(model, z.detach()))
    return best


@pytest.mark.parametrize("name", NETWORKS)
def test_at_a_point_it_is_the_norm_of_the_jacobian(name):
    model, x = network(name)
    (row,) = local_lipschitz(model, x, blocks=()).rows
    truth = jacobian(copy.deepcopy(model).double(), x.double())
    assert row.lower == pytest.approx(truth, rel=1e-6)
    assert truth * (1 - 1e-6) <= row.upper <= truth * (1 + 1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_on_a_small_ball_it_is_close(name):
    model, x = network(name)
    (row,) = local_lipschitz(model, x, 1e-3, blocks=()).rows
    assert steepest(model, x, 1e-3) <= row.upper
    assert row.upper <= 3 * row.lower
    assert row.reason == ""


@given(
    name=st.sampled_from(sorted(NETWORKS)),
    seed=st.integers(0, 100),
    radius=st.sampled_from([1e-4, 1e-2, 0.1, 1.0]),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e3]),
    gain=st.sampled_from([0.3, 1.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@examples(60)
def test_no_slope_of_the_ball_is_above_it(name, seed, radius, scale, gain, dtype):
    model, x = network(name, seed, gain)
    x = x * scale
    (row,) = local_lipschitz(model.to(dtype), x.to(dtype), radius * scale, blocks=()).rows
    if row.upper is None:
        assert "bound" in row.reason
    else:
        assert steepest(model, x, radius * scale, steps=4) <= row.upper * (1 + 1e-6)
