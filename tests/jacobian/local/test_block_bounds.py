"""Bounds on balls, against dense Jacobians and slopes at points of the ball; rows, blocks and messages."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import opnorm
from opnorm.errors import ModelError, NormError
from opnorm.jacobian import local_lipschitz
from tests.jacobian.local.networks import DIM, NETWORKS, Attention, PreNorm, Written, feed_forward, network
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
    assert steepest(model, x, 1e-3, steps=4) <= row.upper
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


def test_each_block_is_measured_at_its_own_input():
    torch.manual_seed(0)
    blocks = [PreNorm(DIM, nn.LayerNorm, Attention(DIM, 2), feed_forward()) for _ in range(2)]
    model, x = nn.Sequential(*blocks, nn.Linear(DIM, 3)).eval(), torch.randn(2, 2, DIM)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    table = local_lipschitz(model, x)
    assert [(row.block, row.point) for row in table.rows] == [
        (name, point) for point in (0, 1) for name in ("0", "1", "")
    ]
    second = local_lipschitz(blocks[1], blocks[0](x[1:]).detach(), blocks=()).rows[0]
    assert table.rows[4].lower == pytest.approx(second.lower, rel=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    (row, *_) = json.loads(table.to_json())
    assert row["upper"] / row["lower"] == row["ratio"]
    assert "PreNorm" in str(table)
    parts = local_lipschitz(model, x[:1], 1e-3, blocks="0.*").rows
    assert [row.block for row in parts if row.kind == "Attention"] == ["0.mixer"]


def test_the_change_is_that_of_the_kinds_of_operations():
    model, x = network("vit block")
    (row,) = local_lipschitz(model, x, 1e-2).rows
    assert {"softmax", "layernorm", "matmul", "gelu"} == set(row.change)
    assert row.upper == pytest.approx(row.at_center + math.fsum(row.change.values()), rel=1e-6)


def test_rows_and_entries_have_bounds_of_their_own():
    model, x = network("vit block", gain=2.0)
    x[:, 0] *= 0.3  # a token of small deviation: with one bound for all tokens and entries the ratio is 4
    (row,) = local_lipschitz(model, x, 3e-3, blocks=()).rows
    assert steepest(model, x, 3e-3) <= row.upper <= 3 * row.lower


class Sorted(nn.Module):
    def forward(self, x):
        return torch.einsum("btd,bsd->bts", x, x)


class Powers(nn.Module):
    def forward(self, x):
        return x**x


def test_what_is_not_known_is_named():
    (row,) = local_lipschitz(Sorted(), torch.randn(1, 3, 4), 0.1).rows
    assert row.upper is None
    assert "einsum" in row.reason
    assert "not known" in str(local_lipschitz(Sorted(), torch.randn(1, 3, 4), 0.1))
    (row,) = local_lipschitz(Sorted(), torch.randn(1, 3, 4)).rows
    assert row.upper is not None, "at the point itself it is the Jacobian's norm"
    with pytest.raises(NormError, match="blocks='head' matches no module; there are norm1"):
        local_lipschitz(network("vit block")[0], torch.randn(1, 3, DIM), blocks="head")
    with pytest.raises(NormError, match="radius"):
        local_lipschitz(Sorted(), torch.randn(1, 3, 4), -1)


def test_the_bound_on_all_inputs_says_what_is_known():
    bound = opnorm.lipschitz_bound(Attention(DIM, 2), torch.zeros(1, 4, DIM))
    assert "scaled_dot_product_attention" in bound.reason
    assert "opnorm.local_lipschitz" in bound.reason
    bound = opnorm.lipschitz_bound(Written(DIM, False), torch.zeros(1, 4, DIM))
    assert "matmul" in bound.reason, "written out, it is named, too"
    assert "opnorm.local_lipschitz" in bound.reason
    (row,) = local_lipschitz(Powers(), torch.ones(1, 2, 3), 0.1, blocks=()).rows
    assert "pow" in row.reason
    assert "local_lipschitz" not in row.reason, "it does not refer to itself"


@pytest.mark.parametrize("sizes", [(1e-160, 1e-160, 1e150, 1e150), (1e-200, 1e-200, 1e150, 1e100)])
@pytest.mark.parametrize("activation", [nn.Identity, nn.Tanh])
@pytest.mark.filterwarnings("ignore:the Jacobian of Sequential")
def test_a_product_that_underflows_is_no_upper_end(sizes, activation):
    layers = [nn.Linear(2, 2, bias=False).double() for _ in sizes]
    for layer, size in zip(layers, sizes, strict=True):
        layer.weight.data = size * torch.eye(2, dtype=torch.float64)
    net = nn.Sequential(*(part for layer in layers for part in (layer, activation())))
    truth = math.prod(sorted(sizes)[::3]) * math.prod(sorted(sizes)[1:3])
    for radius in (0.0, 0.1):
        (row,) = local_lipschitz(net, torch.zeros(1, 2, dtype=torch.float64), radius).rows
        assert row.lower <= truth * (1 + 1e-9)
        assert row.upper is None or row.upper >= truth * (1 - 1e-9)


def test_a_bound_that_says_little_is_called_so():
    model, x = network(next(iter(NETWORKS)))
    near, far = (local_lipschitz(model, x, radius, blocks=()) for radius in (1e-3, 1e3))
    said = "the upper end holds and says little about the block"
    assert near.rows[0].ratio < 100
    assert said not in str(near)
    assert far.rows[0].ratio > 100
    assert said in " ".join(str(far).split())


def test_points_without_a_batch_axis_are_refused_with_their_shape():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3)).eval()
    with pytest.raises(ModelError, match=r"does not take inputs of shape \(1, 8, 8\).*expected a batch"):
        local_lipschitz(model, torch.rand(1, 8, 8), 0.1)
