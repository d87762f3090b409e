"""Networks whose values or gradients leave the range of their type: the answer is right, wide, or an error.

The truth is that of decimal arithmetic with exponents of any size.
"""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm import jacobian_norm, local_lipschitz
from opnorm.errors import OpnormError
from opnorm.jacobian.local.between import norm_between
from tests.property_tests import examples

WIDTH = 3


class Network(nn.Module):
    """Layers with slopes between them, the second one with a shortcut."""

    def __init__(self, scales, slope, shortcut, dtype, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in scales)
        self.slope, self.shortcut = slope, shortcut
        for layer, scale in zip(self.layers, scales, strict=True):
            layer.weight.data = torch.randn(WIDTH, WIDTH, dtype=torch.float64) * scale
            layer.bias.data = torch.randn(WIDTH, dtype=torch.float64) * scale * (seed % 3 == 0)
        self.to(dtype)

    def forward(self, x):
        for i, layer in enumerate(self.layers):
            y = layer(x)
            if i < len(self.layers) - 1:
                y = nn.functional.leaky_relu(y, self.slope) if self.slope else y.relu()
            x = x + y if i == 1 and self.shortcut else y
        return x

    def true_jacobian(self, x):
        """In decimal arithmetic, as a list of rows; and the same of absolute values, which bounds the rounding."""
        h = [Decimal(v) for v in x.double().tolist()]
        J = [[Decimal(int(i == j)) for j in range(WIDTH)] for i in range(WIDTH)]
        size = [row[:] for row in J]
        for k, layer in enumerate(self.layers):
            W = [[Decimal(v) for v in row] for row in layer.weight.double().tolist()]
            b = [Decimal(v) for v in layer.bias.double().tolist()]
            y = [sum((w * v for w, v in zip(row, h, strict=True)), c) for row, c in zip(W, b, strict=True)]
            D, E = product(W, J), product([[abs(w) for w in row] for row in W], size)
            if k < len(self.layers) - 1:
                slopes = [Decimal(1 if v > 0 else self.slope) for v in y]
                y = [s * v for s, v in zip(slopes, y, strict=True)]
                D, E = ([[s * v for v in row] for s, row in zip(slopes, M, strict=True)] for M in (D, E))
            if k == 1 and self.shortcut:
                y = [v + w for v, w in zip(y, h, strict=True)]
                D, E = (
                    [[v + w for v, w in zip(*rows, strict=True)] for rows in zip(M, N, strict=True)]
                    for M, N in ((D, J), (E, size))
                )
            h, J, size = y, D, E
        return J, size


def product(A, B):
    return [
        [sum((a * b[j] for a, b in zip(row, B, strict=True)), Decimal(0)) for j in range(WIDTH)] for row in A
    ]


def largest_row(M):
    return max(sum(map(abs, row)) for row in M)


exponents = st.lists(
    st.one_of(st.integers(-250, 250), st.integers(-40, 40), st.just(0)), min_size=1, max_size=5
)


@given(
    exponents,
    st.sampled_from([0.0, 0.125, 1.0]),
    st.booleans(),
    st.sampled_from(["float32", "float64"]),
    st.integers(0, 999),
)
@examples(60)
def test_no_wrong_number_at_any_scale(powers, slope, shortcut, name, seed):
    dtype = getattr(torch, name)
    limit = 35 if name == "float32" else 250
    model = Network(
        [10.0 ** max(-limit, min(limit, power)) for power in powers], slope, shortcut, dtype, seed
    )
    x = torch.randn(1, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)
    with localcontext() as context:
        context.prec, context.Emin, context.Emax = 60, -100_000, 100_000
        for point in x:
            J, size = model.true_jacobian(point)
            allowed = 64 * Decimal(torch.finfo(dtype).eps) * largest_row(size)
            truth = largest_row(J)
            try:
                found = jacobian_norm(model, point[None], math.inf, math.inf)
            except OpnormError:
                continue
            assert Decimal(float(found.lower)) <= truth + allowed
            assert Decimal(float(found.upper)) >= truth - allowed
            rows = max(sum((v * v for v in row), Decimal(0)).sqrt() for row in J)
            whole = sum((v * v for row in J for v in row), Decimal(0)).sqrt()
            for radius in (0.0, 1e-3):
                (row,) = local_lipschitz(model, point[None], radius, blocks=[]).rows
                assert Decimal(row.lower) <= whole + allowed
                assert row.upper is None or Decimal(row.upper) >= rows - allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_usual_networks_stay_known(dtype):
    """Also where whole layers are dead or zero, or entries tiny."""
    torch.manual_seed(0)
    dead = nn.Linear(8, 8)
    dead.bias.data.fill_(-100.0)
    zero = nn.Linear(8, 8)
    nn.init.zeros_(zero.weight)
    nn.init.zeros_(zero.bias)
    tiny = nn.Linear(8, 8)
    tiny.weight.data[:4] *= 1e-37
    tiny.bias.data[4:] = 100.0
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    image = nn.Sequential(
        nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()
    )
    nets = [
        nn.Sequential(dead, nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(zero, nn.Linear(8, 3)),
        nn.Sequential(tiny, nn.ReLU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)),
        nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)),
        image,
        nn.Sequential(nn.Unflatten(1, (1, 8)), attention, nn.Flatten()),
        nn.Sequential(nn.Linear(8, 8), nn.Hardswish(), nn.Softmax(1)),
    ]
    x = torch.cat([torch.randn(5, 8), torch.zeros(1, 8)])
    for net in nets:
        found = jacobian_norm(net.to(dtype), x.to(dtype))
        assert bool(found.upper.isfinite().all()), (net, found)
        assert "range" not in found.method


def test_a_product_between_two_values_that_underflows_is_not_zero():
    """Forward 1, 1e-200, 1; backward from the last one 1e-200, 1e-400."""
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    value = x
    for scale in (1e200, 1e-200, 1e-200):
        value = value @ (scale * torch.eye(2, dtype=torch.float64))
    assert norm_between(x, value, 40) >= 1e-200
    assert norm_between(x, value * 1e200, 40) >= 1 - 1e-12


def test_points_of_a_batch_have_their_own_range():
    """One point of three underflows behind its ReLU; the others are known, and the method says how many are not."""
    net = nn.Sequential(
        nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False)
    )
    for layer, size in zip((net[0], net[1], net[3]), (1e-20, 1e-20, 1e38), strict=True):
        layer.weight.data = size * torch.eye(2)
    found = jacobian_norm(net, torch.tensor([[1e10, 1e10], [1.0, 1.0], [1e20, 1e10]]))
    assert found.upper[1] == math.inf
    assert found.lower[1] == 0
    assert found.upper[0] == pytest.approx(1e-2, rel=1e-4)
    assert "1 points" in found.method


def test_memory_that_has_no_values_yet_is_not_looked_at():
    """Autograd asks for it in the pass back through a ReLU in place; here it is filled with NaN."""
    model = nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(36, 4)).double()
    x = torch.rand(3, 1, 6, 6, dtype=torch.float64)
    want = jacobian_norm(model, x, 2, 2)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        found = jacobian_norm(model, x, 2, 2)
    finally:
        torch.use_deterministic_algorithms(False)
    assert found.upper.equal(want.upper)
    assert "not known" not in found.method
