"""Directions from rows in bfloat16, against explicit Jacobians in float64; and where they are not to be had."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.jacobian import coarse as module
from opnorm.jacobian import jacobian_norm, linearized, lp_norm
from opnorm.jacobian.coarse import CoarseRows, usable
from opnorm.jacobian.products import together
from opnorm.models import resnet
from tests.jacobian.maps import INF, nets, points, truth


@pytest.fixture(autouse=True)
def _hardware(monkeypatch):
    """The tests are about numbers, which are the same where bfloat16 is slow."""
    monkeypatch.setattr(module, "has_bf16", lambda device: True)


class Odd(nn.Module):
    """What the ResNet has not: broadcasting, transposed and grouped convolutions, shared ones, units used twice."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(1, 4, 3, stride=2, groups=1)
        self.bn = nn.BatchNorm2d(4)
        self.down = nn.ConvTranspose2d(4, 6, 3, padding=1, groups=2)
        self.bn2 = nn.BatchNorm2d(6)
        self.grouped = nn.Conv2d(6, 6, 3, groups=3, padding=1)
        self.bn3 = nn.BatchNorm2d(6, affine=False)
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        x = F.relu(self.bn(self.up(x)))
        x = F.relu(self.bn2(self.down(x)))
        y = F.relu(self.grouped(x) + self.grouped(F.leaky_relu(x - 0.3)), inplace=True)
        y = self.bn3(y) + y.mean(
            (2, 3), keepdim=True
        )  # which is broadcast; a batch norm after no convolution
        a, b = F.relu(y + y).chunk(2, 1)
        y = F.max_pool2d(torch.cat([a * torch.sigmoid(b), torch.sub(b, a, alpha=2)], 1), 3)
        return self.head(torch.cat([y.amax((2, 3)), y.mean((2, 3))], 1))


class Lines(nn.Module):
    """One dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv1d(6, 8, 3), nn.BatchNorm1d(8), nn.Linear(32, 4)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.conv(x[:, 0]))).flatten(1))


def cases():
    torch.manual_seed(3)
    small = resnet(8, in_shape=(1, 6, 6), width=8, classes=4)
    found = {"resnet": small, "odd": Odd(), "lines": Lines(), "residual": nets()["residual"]}
    for net in found.values():
        for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 1.5)
            if norm.affine:
                nn.init.uniform_(norm.weight, -1.5, -0.5)
                nn.init.uniform_(norm.bias, 0.2, 0.6)
    return {name: net.eval() for name, net in found.items()}


@pytest.mark.parametrize("name", cases())
def test_rows_in_bfloat16_are_close(name):
    model, x = cases()[name], points(6, torch.float32)
    want = truth(model.double(), x.double())
    with linearized(model.float(), x) as J:
        assert usable(J)
        rows = CoarseRows(J)
        for _ in range(2):  # nothing is used up or overwritten
            for k in range(want.shape[1]):
                unit = torch.zeros_like(J.outputs)
                unit[:, k] = 1
                error = lp_norm(rows.adjoint(unit).flatten(1) - want[:, k], 2) / lp_norm(want[:, k], 2)
                assert error.max() < 0.03
            assert torch.allclose(J.adjoint(unit).flatten(1).double(), want[:, -1], atol=1e-5)


@pytest.mark.parametrize("name", cases())
@pytest.mark.parametrize("mode", ["eval", "as is"])
def test_the_norm_is_a_lower_end_within_a_thousandth(name, mode):
    model, x = cases()[name], points(70, torch.float32)
    found = jacobian_norm(model, x, mode=mode, bf16=True)
    want = torch.linalg.matrix_norm(truth(model.double(), x.double()), 2)
    assert "bfloat16" in found.method
    assert (found.lower <= want * (1 + 1e-5)).all()
    assert (found.lower >= want * (1 - 1e-3)).all()
    assert found.upper.isinf().all()
    assert (found.residual < 0.03).all()
    assert found.lower.dtype == found.residual.dtype == torch.float64
    assert found.v.dtype == torch.float32
    assert torch.allclose(lp_norm(found.v, 2), torch.ones(70))
    with linearized(model, x.double()) as J:
        assert (lp_norm(J.apply(found.v.double()), 2) >= found.lower * (1 - 1e-5)).all()


def test_a_hidden_layer_and_few_points():
    model, x = cases()["residual"], points(2, torch.float32)
    found = jacobian_norm(model, x, layer="features", bf16=True)
    want = torch.linalg.matrix_norm(truth(model.double(), x.double(), "features"), 2)
    assert "27 rows in bfloat16" in found.method
    assert torch.allclose(found.lower, want, rtol=1e-3)


def test_a_jacobian_of_zeros():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    nn.init.zeros_(model[0].weight)
    found = jacobian_norm(model, points(3, torch.float32), bf16=True)
    assert torch.equal(found.lower, torch.zeros(3).double())
    assert torch.equal(found.residual, torch.zeros(3).double())
    assert torch.allclose(lp_norm(found.v, 2), torch.ones(3))


class Straight(torch.autograd.Function):
    """A backward pass of the user's own."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Own(nn.Module):
    def forward(self, x):
        return Straight.apply(x)


def test_where_it_is_not_quicker_all_is_exact(monkeypatch):
    model, x = cases()["residual"], points(3, torch.float32)
    dense = nn.Sequential(nn.Flatten(), nn.Linear(36, 4))
    calls = [
        (model, x, {"q": INF}),
        (model, x, {"layer": "features", "steps": 6}),  # too many outputs
        (dense, x, {}),
        (nn.Sequential(model, Own()), x, {}),
    ]
    for net, at, settings in calls:
        same_in_both_ways(net, at, **settings)
    same_in_both_ways(model.double(), x.double())
    monkeypatch.setattr(module, "has_bf16", lambda device: False)
    same_in_both_ways(model.float(), x)


def same_in_both_ways(model, x, **settings):
    exact, found = (jacobian_norm(model, x, **settings, bf16=bf16) for bf16 in (False, True))
    assert "bfloat16" not in found.method
    assert torch.equal(found.lower, exact.lower)
    assert torch.equal(found.upper, exact.upper)


@pytest.mark.parametrize("bf16", [False, True])
def test_memory_does_not_grow_with_the_batch(bf16):
    model, most = cases()["resnet"], []
    model[0].register_forward_pre_hook(lambda m, args: most.append(len(args[0])))
    x = points(200, torch.float32)
    jacobian_norm(model, x, bf16=bf16)
    assert max(most) == together(x)


@pytest.mark.parametrize("bf16", [False, True])
def test_a_network_that_looks_at_its_memory(bf16):
    """Channels last cannot be viewed as rows; the result does not depend on that."""

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), View(), nn.Linear(48, 4))
    x = torch.randn(3, 2, 6, 6)
    found = jacobian_norm(model, x, bf16=bf16)
    want = torch.linalg.matrix_norm(truth(model.double(), x.double()), 2)
    assert torch.allclose(found.lower, want, rtol=1e-3 if bf16 else 1e-5)
    assert found.v.is_contiguous()
