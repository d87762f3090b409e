"""Normalization: no Jacobian is longer than the constant in ℓ1 or ℓ∞, and the longest ones come close to it."""

import math

import pytest
import torch
from torch import nn

from opnorm.norms import lipschitz_bound
from opnorm.norms.nonlinear import lipschitz
from opnorm.norms.normalization_constants import centered_row_sum, row_sum


def longest_row(n, centered, steps=150):
    """The largest sqrt(1 - r) Σ_j |(P - u uᵀ)_1j| of rows z of n numbers that ascent finds, with u = z / (√n σ), ε = 1."""
    generator = torch.Generator().manual_seed(n)
    z = torch.randn(48, n, generator=generator, dtype=torch.float64)
    z[:24] = 1.4 * z[:24].sign()
    z[:24, 0] *= 1.5 * n**0.25
    z.requires_grad_()
    first, best = torch.eye(n, dtype=torch.float64)[0], 0.0
    for i in range(steps):
        y = z - z.mean(1, keepdim=True) if centered else z
        square = y.square().mean(1, keepdim=True) + 1
        row = first - centered / n - y[:, :1] * y / (n * square)
        sums = (row / square.sqrt()).abs().sum(1)
        best = max(best, float(sums.detach().max()))
        (slope,) = torch.autograd.grad(sums.sum(), z)
        z.data += (
            z.data.norm(dim=1, keepdim=True) * 0.2 * (1 - i / steps) * slope / slope.norm(dim=1, keepdim=True)
        )
    return best


@pytest.mark.parametrize("n", [2, 3, 5, 33, 200])
@pytest.mark.parametrize("centered", [True, False])
def test_the_longest_rows_come_close(n, centered):
    bound, found = (centered_row_sum if centered else row_sum)(n), longest_row(n, centered)
    assert found * (1 - 1e-12) <= bound <= found * 1.01


def test_long_rows():
    """About 2 / (3 √3) times √n / 2, as a third of the length of u is in one entry."""
    for of_row in (row_sum, centered_row_sum):
        assert of_row(10**8) == pytest.approx(1e4 / (3 * math.sqrt(3)), rel=1e-2)
        assert all(
            of_row(n) <= math.sqrt(n) * (1 + 1e-9) for n in (1, 2, 3, 10, 768)[of_row is not row_sum :]
        )


class ByHand(nn.Module):
    def __init__(self, centered):
        super().__init__()
        self.centered = centered

    def forward(self, x):
        if self.centered:
            x = x - x.mean(-1, keepdim=True)
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 0.04)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_normalization_by_hand_has_the_constant_of_the_layer(p):
    for layer in (nn.LayerNorm(40, eps=0.04), nn.RMSNorm(40, eps=0.04)):
        bound = lipschitz_bound(ByHand(isinstance(layer, nn.LayerNorm)), torch.zeros(1, 40), p)
        assert bound.value == pytest.approx(lipschitz(layer, p, (40,)), rel=1e-7)


def test_the_rows_of_each_layer():
    """With β = 1 rows of 9 numbers have 2 · 2^(3/2) / (3 √3); and 2 (1 - 1/n) for the centered ones."""
    cases = {
        nn.RMSNorm(9, eps=1.0): ((2, 9), 2 * 2**1.5 / (3 * math.sqrt(3))),
        nn.LayerNorm((2, 4), eps=1.0): ((2, 4), 2 * (1 - 1 / 8)),
        nn.GroupNorm(3, 6, eps=1.0): ((6, 5), 2 * (1 - 1 / 10)),
        nn.InstanceNorm2d(7, eps=1.0): ((7, 3, 5), 2 * (1 - 1 / 15)),
        nn.LayerNorm(1): ((4, 1), 0.0),
    }
    for layer, (shape, constant) in cases.items():
        for p in (1, math.inf):
            assert lipschitz(layer, p, shape) == pytest.approx(constant, rel=1e-8)


@pytest.mark.parametrize("p", [1, 2, math.inf])
def test_instances_without_a_batch_axis_have_the_same_constant(p):
    """A network may give (channels, ...) to the layer: the first axis of what it sees is no batch."""

    class Net(nn.Module):
        def __init__(self, layer, shape):
            super().__init__()
            self.layer, self.shape = layer, shape

        def forward(self, x):
            return self.layer(x.view(self.shape)).view(1, -1)

    for layer, shape in ((nn.InstanceNorm1d(3), (3, 5)), (nn.InstanceNorm2d(3), (3, 4, 2))):
        model, x = Net(layer, shape).double(), torch.zeros(1, math.prod(shape), dtype=torch.float64)
        J = torch.autograd.functional.jacobian(lambda v, model=model: model(v)[0], x)[:, 0]
        assert lipschitz_bound(model, x, p).value == pytest.approx(float(torch.linalg.matrix_norm(J, p)))
