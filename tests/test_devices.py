"""Each kernel on another device and in another precision: ``pytest tests/test_devices.py --device cuda --dtype float32``.

The truth is computed on the CPU in float64, from the same rounded weights and inputs.
"""

import copy
import math

import pytest
import torch
from torch import nn

from opnorm import attacks, regularizers
from opnorm._core.linear_map import linear_map
from opnorm.certificates import certified
from opnorm.jacobian import jacobian_norm
from opnorm.norms import l1, linf, lipschitz_bound, operator_norm
from tests.norms.cases import matrix, on_all_cases

POINTS = (4, 1, 6, 6)


@pytest.fixture
def net(device, dtype):
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    return nn.Sequential(*layers).to(device, dtype).eval()


@pytest.fixture
def x(device, dtype):
    return torch.rand(POINTS, generator=torch.Generator().manual_seed(1)).to(device, dtype)


def exact(model):
    return copy.deepcopy(model).to("cpu", torch.float64)


@on_all_cases(pytest.mark.parametrize)
def test_linear_map(layer, shape, device, dtype):
    layer = copy.deepcopy(layer).to(device, dtype)
    M, A = matrix(exact(layer), shape), linear_map(layer, shape)
    assert A.to_dense().device.type == device.type
    assert torch.allclose(A.to_dense().cpu(), M, rtol=1e-12, atol=1e-13)
    v = torch.ones(2, *shape, dtype=torch.float64, device=device)
    assert torch.allclose(
        (A.T @ (A @ v)).flatten(1).cpu(), v.flatten(1).cpu() @ M.T @ M, rtol=1e-11, atol=1e-11
    )


@on_all_cases(pytest.mark.parametrize)
def test_norms_of_a_layer(layer, shape, device, dtype):
    layer = copy.deepcopy(layer).to(device, dtype)
    M = matrix(exact(layer), shape)
    for p, norm in ((1, l1), (math.inf, linf)):
        truth = float(torch.linalg.matrix_norm(M, p))
        value = norm(layer, shape)
        assert value.device.type == device.type
        # at most as many roundings as a row or column has terms
        assert float(value) == pytest.approx(truth, rel=max(M.shape) * torch.finfo(value.dtype).eps)
        assert float(operator_norm(layer, p, shape).lower) == pytest.approx(truth, rel=1e-12)
    spectral = operator_norm(layer, 2, shape)
    truth = float(torch.linalg.matrix_norm(M, 2))
    assert float(spectral.lower) <= truth * (1 + 1e-12)
    assert truth <= float(spectral.upper) * (1 + 1e-12)


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_jacobian_norm(p, q, net, x):
    found = jacobian_norm(net, x, p=p, q=q)
    assert found.v.device == x.device
    twin = exact(net)
    J = torch.stack(
        [torch.func.jacrev(lambda z: twin(z[None])[0])(point).flatten(1) for point in x.cpu().double()]
    )
    v = found.v.cpu().double().flatten(1)
    reached = torch.linalg.vector_norm(torch.einsum("bkn,bn->bk", J, v), q, dim=1)
    slack = 1 + J.shape[2] * torch.finfo(x.dtype).eps
    assert (found.lower.cpu() <= reached * slack).all()
    assert (reached <= found.upper.cpu() * slack).all()


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_lipschitz_bound(p, net, x):
    bound = lipschitz_bound(net, x[:1], p).value
    out = exact(net)(x.cpu().double()).detach()
    moved = torch.linalg.vector_norm(out[:2] - out[2:], p, dim=1)
    apart = torch.linalg.vector_norm((x[:2] - x[2:]).cpu().double().flatten(1), p, dim=1)
    assert (moved <= bound * apart).all()


@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "apgd", "fab", "square"])
def test_attacks(name, norm, net, x):
    steps = {"pgd": {"steps": 5}, "apgd": {"steps": 10}, "fab": {"steps": 5}, "square": {"queries": 10}}
    y = net(x).argmax(1)
    z = getattr(attacks, name)(norm=norm, eps=0.1, **steps.get(name, {}))(net, x, y)
    assert (z.device, z.dtype, z.shape) == (x.device, x.dtype, x.shape)
    assert ((z >= 0) & (z <= 1)).all()
    lengths = torch.linalg.vector_norm((z.cpu().double() - x.cpu().double()).flatten(1), norm, dim=1)
    assert (lengths <= 0.1 * (1 + 36 * torch.finfo(torch.float64).eps)).all()


def test_certified_points_are_not_moved_by_an_attack(net, x):
    y = net(x).argmax(1)
    kept = certified(net, x, y, 0.01)
    assert kept.device == x.device
    z = attacks.pgd(norm=math.inf, eps=0.01, steps=10)(net, x, y)
    assert (net(z).argmax(1) == y)[kept].all()


def test_a_regularizer_edits_gradients(net, x):
    twin = exact(net)
    for model, example in ((net, x), (twin, x.cpu().double())):
        hooks = regularizers.norm_decay(p=1, beta=0.5)(model, example)
        model(example).square().sum().backward()
        hooks.edit_grads()
    for mine, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert mine.grad.device == mine.device
        slack = x.numel() * torch.finfo(x.dtype).eps * float(other.grad.abs().max())
        assert torch.allclose(mine.grad.cpu().double(), other.grad, rtol=0, atol=slack)
