"""Sorted entries, and larger and smaller ones side by side: 1 where they are of the same pairs, more where they are not."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.norms import lipschitz_bound
from tests.norms.network.random_networks import steepest

ORDS = (1, 2, math.inf)
SHAPE = (4, 2, 3)


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.relu, self.in_shape = function, nn.ReLU(), SHAPE
        self.register_buffer("even", torch.tensor([0, 2]))

    def forward(self, x):
        return self.function(self, x)


def joined(u, v, axis=1):
    return torch.cat([torch.max(u, v), torch.min(u, v)], axis)


def bitonic(s, x):
    """Four channels sorted by three rounds of pairs."""
    for order in ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2)):
        pairs = x[:, list(order)].unflatten(1, (2, 2))
        x = torch.stack([pairs.amax(2), pairs.amin(2)], 2).flatten(1, 2)
    return x


def by_halves_later(s, x):
    u, v = x.chunk(2, 1)
    larger = torch.max(u, v)
    return torch.cat([x.new_ones(1, 1, 2, 3), larger, x.new_zeros(1, 1, 2, 3), torch.min(v, u)], 1)


ONE = {
    "sort": lambda s, x: x.sort(1, descending=True)[0],
    "GroupSort of a view": lambda s, x: x.view(1, 2, 2, 2, 3).sort(dim=2).values.view(x.shape),
    "the largest": lambda s, x: torch.topk(x, 3, 1)[0],
    "median": lambda s, x: x.median(1).values,
    "halves": lambda s, x: joined(*x.split(2, 1)),
    "by name": lambda s, x: torch.cat(
        tensors=[torch.max(x[:, :2], other=x[:, 2:]), torch.min(x[:, :2], other=x[:, 2:])], dim=1
    ),
    "slices written twice": lambda s, x: torch.cat(
        [torch.maximum(x[:, ::2], x[:, 1::2]), torch.minimum(x[:, ::2], x[:, 1::2])], 1
    ),
    "another order": lambda s, x: torch.cat(
        [torch.min(x[:, 1::2], x[:, ::2]), torch.max(x[:, ::2], x[:, 1::2])], 1
    ),
    "by an index that the model keeps": lambda s, x: joined(x[:, s.even], x[:, 1::2]),
    "pairs": lambda s, x: (lambda z: torch.stack([z.max(2)[0], z.min(2).values], 2))(x.unflatten(1, (2, 2))),
    "groups of four": lambda s, x: torch.cat([x.amax(1, True), x.amin(1, keepdim=True)], 1),
    "channels last": lambda s, x: (lambda z: joined(z[..., :2], z[..., 2:], 3))(x.permute(0, 2, 3, 1)),
    "twice": lambda s, x: joined(*joined(*x.chunk(2, 1)).chunk(2, 1)),
    "bitonic": bitonic,
    "constants between": by_halves_later,
    "CReLU": lambda s, x: torch.cat([F.relu(x), F.relu(-x)], 1),
    "CReLU by the layer": lambda s, x: torch.cat((s.relu(x), -s.relu(x.neg())), 1),
    "a split joined": lambda s, x: torch.cat(x.chunk(4, 1)[::-1], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ONE))
@pytest.mark.parametrize("p", ORDS)
def test_no_steeper_than_1(name, p):
    model = Net(ONE[name])
    value = lipschitz_bound(model, torch.zeros(1, *SHAPE), p).value
    assert value == pytest.approx(1, rel=1e-9)
    assert steepest(model, p, 0) <= value * (1 + 1e-6)


def changed(s, x):
    u, v = (2 * x).chunk(2, 1)
    larger = torch.max(u, v)
    u.mul_(3)
    return torch.cat([larger, torch.min(u, v)], 1)


def changed_between(s, x):
    y = 1 * x
    larger = torch.max(y[:, :2], y[:, 2:])
    y.detach().mul_(0.1)
    return torch.cat([larger, torch.min(y[:, :2], y[:, 2:])], 1)


def changed_second(s, x):
    u, v = 1 * x[:, :2], 1 * x[:, 2:]
    larger = torch.max(u, v)
    v.detach().mul_(0.1)
    return torch.cat([larger, torch.min(u, v)], 1)


# with the slope in ℓ1 that each of them has somewhere
STEEPER = {
    "overlapping parts": (lambda s, x: joined(x[:, :3], x[:, 1:]), 2),
    "the same side": (lambda s, x: torch.cat([torch.max(x[:, :2], x[:, 2:]), torch.max(x[:, 2:], x[:, :2])], 1), 2),
    "one part more": (lambda s, x: torch.cat([joined(x[:, :2], x[:, 2:]), x[:, :2]], 1), 2),
    "the smaller ones twice": (lambda s, x: torch.cat([x.amax(1), x.amin(1), x.amin(1)], 1), 2),
    "other pairs": (lambda s, x: torch.cat([torch.max(x[:, :2], x[:, 2:]), torch.min(x[:, ::2], x[:, 1::2])], 1), 2),
    "a single entry": (lambda s, x: torch.cat([x[:, :1].amax(1), x[:, :1].amin(1)], 1), 2),
    "of a multiple": (lambda s, x: torch.cat([torch.max(x[:, :2], x[:, 2:]), torch.min(3 * x[:, :2], x[:, 2:])], 1), 4),
    "twice the absolute value": (lambda s, x: torch.cat([torch.max(x, -x), torch.max(-x, x)], 1), 2),
    "ReLU twice": (lambda s, x: torch.cat([F.relu(x), s.relu(x)], 1), 2),
    "written to between": (changed_between, 1),
    "the second one written to between": (changed_second, 2),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(STEEPER))
def test_what_only_looks_like_it(name):
    function, slope = STEEPER[name]
    model = Net(function)
    value = lipschitz_bound(model, torch.zeros(1, *SHAPE), 1).value
    found = steepest(model, 1, 0)
    assert found == pytest.approx(slope, rel=1e-6)
    assert value >= found * (1 - 1e-6)


def test_a_part_that_is_written_to_counts_as_written():
    model = Net(changed)
    assert steepest(model, 1, 0) * (1 - 1e-6) <= lipschitz_bound(model, torch.zeros(1, *SHAPE), 1).value


@pytest.mark.parametrize("p", ORDS)
def test_pairs_of_two_values_count_the_bound_of_both(p):
    """(max(u, v), min(u, v)) for u = 2 x and v = 5 x: that of (2 x, 5 x)."""
    model = Net(lambda s, x: joined(2 * x, x * 5.0))
    value = lipschitz_bound(model, torch.zeros(1, *SHAPE), p).value
    assert value == pytest.approx(5 if math.isinf(p) else (2**p + 5**p) ** (1 / p))
    assert steepest(model, p, 0) == pytest.approx(value, rel=1e-6)


def test_what_is_not_in_an_order_or_an_index_is_refused():
    x = torch.zeros(1, *SHAPE)
    assert "no order" in lipschitz_bound(Net(lambda s, x: x.topk(2, 1, sorted=False)[0]), x, 1).reason
    assert "jump" in lipschitz_bound(Net(lambda s, x: x.gather(1, x.sort(1)[1])), x, 1).reason
