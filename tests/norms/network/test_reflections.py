"""Values picked by the sign of a linear function, as in Householder activations, have the constant of their parts."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.norms import lipschitz_bound
from tests.norms.network.random_networks import steepest

ORDS = (1, 2, math.inf)
SHAPE = (4, 2, 1)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.relu, self.in_shape = function, nn.ReLU(), SHAPE
        self.theta = nn.Parameter(torch.tensor([0.7, 2.9]).view(2, 1, 1))
        self.v = nn.Parameter(F.normalize(torch.tensor([[0.6, -2.0], [1.3, 0.2]]), dim=1).view(2, 2, 1, 1))

    def forward(self, x):
        return self.function(self, *x.split(2, 1))


def reflected(s, x, y):
    c, d = torch.cos(s.theta), torch.sin(s.theta)
    return x * c + y * d, x * d - y * c


def side(s, x, y):
    return x * torch.sin(0.5 * s.theta) - y * torch.cos(0.5 * s.theta)


def by_where(s, x, y):
    a, b = reflected(s, x, y)
    mask = side(s, x, y) <= 0
    return torch.cat([torch.where(mask, x, a), torch.where(mask, y, b)], 1)


def by_products(s, x, y):
    a, b = reflected(s, x, y)
    z = side(s, x, y)
    return torch.cat([x * (z <= 0) + a * (z > 0), y * (z <= 0) + b * (z > 0)], 1)


def by_float_mask(s, x, y):
    a, b = reflected(s, x, y)
    one = side(s, x, y).gt(0).to(x.dtype)
    return torch.cat([x * (1 - one) + a * one, y + one * (b - y)], 1)


def by_relu(s, x, y):
    r = 2 * F.relu(s.v[0] * x + s.v[1] * y)
    n = s.v[0].square() + s.v[1].square()
    return torch.cat([x - r * s.v[0] / n, y - s.v[1] * r / n], 1)


def by_layer(s, x, y):
    r = s.relu(-y)
    return torch.stack([x, y + 2 * r], 1)


def max_min_by_mask(s, x, y):
    larger = x > y
    return torch.cat([torch.where(larger, x, y), torch.where(~larger, x, y)], 1)


REFLECTIONS = {
    f.__name__: f for f in (by_where, by_products, by_float_mask, by_relu, by_layer, max_min_by_mask)
} | {
    "rotated absolute value": lambda s, x, y: torch.cat([(x + y).abs(), x - y], 1) / math.sqrt(2),
    "absolute value by a mask": lambda s, x, y: torch.cat([torch.where(x >= 0, x, -x), y], 1),
    "a bent line": lambda s, x, y: torch.cat([torch.where(x < 0.25, x, 0.5 - x), y], 1),
}


@pytest.mark.parametrize("name", sorted(REFLECTIONS))
def test_a_reflection_on_one_side_is_no_steeper_than_1(name):
    model = Net(REFLECTIONS[name])
    for p in ORDS:
        value = lipschitz_bound(model, torch.zeros(1, *SHAPE), p).value
        assert steepest(model.double(), p, 0) <= value * (1 + 1e-6)
        assert p != 2 or value == pytest.approx(1, rel=1e-6)
        model.float()


def mask_written(s, x, y):
    s2 = 1 * x
    mask = s2 > 0
    s2.detach().add_(1)
    return torch.where(mask, x, -x)


def constant_written(s, x, y):
    """A constant of which an alias is written to, when it is not used any more."""
    c = 5 * s.theta
    z = c * x
    c.detach().sub_(4.99 * s.theta)
    return torch.where(z > 0, z, -z)


STEEPER = {
    "a leaky line by products": (lambda s, x, y: x * (x > 0) + 3 * x * (x <= 0), 3),
    "a part of it twice": (lambda s, x, y: torch.cat([by_where(s, x, y), x], 1), math.sqrt(2)),
    "the mask's value is written to later": (mask_written, 1),
    "a constant is written to later": (constant_written, 14.5),
    "of steeper parts": (lambda s, x, y: by_where(s, 2 * x, 5 * y), 5),
}


@pytest.mark.parametrize("name", sorted(STEEPER))
def test_steeper_ones(name):
    function, slope = STEEPER[name]
    model = Net(function).double()
    value = lipschitz_bound(model, torch.zeros(1, *SHAPE).double(), 2).value
    assert slope * (1 - 1e-6) <= value
    assert steepest(model, 2, 0) <= value * (1 + 1e-6)


def written_between(s, x, y):
    x = 1 * x
    mask = x > 0
    x.detach().add_(1)
    return torch.where(mask, x, -x)


JUMPS = {
    "another hyperplane": lambda s, x, y: torch.where(x > 0, y, -y),
    "one side moved": lambda s, x, y: torch.where(x > 0, x + 0.1, -x),
    "an edge moved": lambda s, x, y: torch.where(x > 1e-9, x, 0 * x),
    "two masks": lambda s, x, y: x * (x > 0) + y * (y > 0) * (x > 0),
    "a constant step": lambda s, x, y: (x > 0).float() * 1.0,
    "of one channel alone": lambda s, x, y: torch.where(x > torch.tensor([[[0.0]], [[1.0]]]), x, -x),
    "what is picked is written to": written_between,
}


@pytest.mark.parametrize("name", sorted(JUMPS))
def test_what_jumps_or_is_written_to_is_not_known(name):
    assert lipschitz_bound(Net(JUMPS[name]), torch.zeros(1, *SHAPE), 2).value is None
