"""Activations that a forward writes out have lines: they enclose what is computed, and prove more than intervals do."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.attacks import pgd
from opnorm.certificates import certified
from opnorm.certificates.activation_lines import Curve
from opnorm.certificates.network_bounds import network_bounds
from opnorm.errors import BoundError
from tests.certificates.test_activation_lines import ends, lines, sampled, widths
from tests.property_tests import examples

WRITTEN = {
    "quick gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
    "gelu by tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hardswish": lambda x: x * (F.relu6(x + 3) / 6),
    "hardswish by clamp": lambda x: x * (x + 3).clamp(0, 6).div(6),
    "far away and back": lambda x: x * ((x + 1e4) - 1e4).sigmoid(),
    "in place": lambda x: x.neg().sigmoid().mul_(x),
    "self gated": lambda x: (2 * x - 1) * torch.erf(3 * x).sub(0.5).sin(),
    "sine": torch.sin, "erf": torch.erf, "arctan": torch.atan,
}  # fmt: skip


class Entrywise(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Network(nn.Module):
    def __init__(self, function, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.function = function
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.function(2 * self.first(x))
        a, b = (x + self.function(self.second(x))).chunk(2, 1)
        return self.last(torch.cat([self.function(a), b], 1))


def bounds_of(function):
    (step,) = network_bounds(Entrywise(function), (1,))
    return step.bounds


@examples(100)
@given(st.sampled_from(sorted(WRITTEN)), ends, st.one_of(ends, widths.map(lambda w: (w,))))
def test_what_is_computed_lies_between(name, low, high):
    function = WRITTEN[name]
    high = low + high[0] if isinstance(high, tuple) else high
    low, high = sorted((low, float(torch.tensor(high))))
    bounds = bounds_of(function)
    least, most = bounds.interval(*(torch.tensor([[end]], dtype=torch.float64) for end in (low, high)))
    (k, c), (K, C) = lines(bounds, low, high)
    x = sampled(low, high)
    for y in (function(x.clone()).double(), function(x.double())):
        assert bool(((least <= y) & (y <= most)).all())
        # a line that is not known, where values may overflow, is NaN
        assert not bool(((k * x.double() + c > y) | (y > K * x.double() + C)).any())


@pytest.mark.parametrize("name", ["quick gelu", "mish", "gelu", "gelu by tanh", "hardswish"])
def test_it_is_as_tight_as_the_layer(name):
    """On usual intervals the lines are those of torch's own activation, but for the rounding of the operations."""
    layer = {
        "mish": nn.Mish(),
        "hardswish": nn.Hardswish(),
        "gelu": nn.GELU(),
        "gelu by tanh": nn.GELU("tanh"),
    }.get(name)
    curve = bounds_of(WRITTEN[name])
    assert isinstance(curve, Curve)
    low = torch.tensor([[-3.0, -1.0, 0.0, 1.0, -8.0]], dtype=torch.float64)
    high = torch.tensor([[1.0, -0.5, 0.5, 4.0, 7.0]], dtype=torch.float64)
    least, most = curve.interval(low, high)
    if layer is not None:
        other = bounds_of(layer).interval(low, high)
        assert torch.allclose(least, other[0], atol=3e-4)
        assert torch.allclose(most, other[1], atol=3e-4)
    x = low + (high - low) * torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    y = WRITTEN[name](x)
    assert bool(((most - least)[0] <= (y.amax(0) - y.amin(0)) * 1.02 + 0.02).all())


@pytest.mark.parametrize("name", ["quick gelu", "hardswish", "gelu by tanh", "mish"])
def test_no_attack_breaks_a_proof_and_lines_prove_more_than_intervals(name):
    network = Network(WRITTEN[name]).eval()
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0))
    y = network(x).argmax(1)
    proved = {}
    for method in ("ibp", "crown"):
        for eps in (0.01, 0.03):
            found = certified(network, x, y, eps, method=method)
            proved[method] = proved.get(method, 0) + int(found.sum())
            moved = pgd(eps=eps, steps=10)(network, x, y)
            assert bool((network(moved).argmax(1) == y)[found].all())
    assert proved["crown"] > 0
    assert proved["crown"] >= proved["ibp"]


def test_only_the_steps_that_matter_are_kept():
    steps = network_bounds(Network(WRITTEN["quick gelu"]), (6,))
    assert sum(isinstance(step.bounds, Curve) for step in steps) == 3
    assert all(i <= k for k, step in enumerate(steps) for i in step.inputs)


REFUSED = {
    "exp": torch.exp, "square": lambda x: x * x, "x exp x": lambda x: x * x.exp(), "flipped": lambda x: x * x.flip(1),
    "mean": lambda x: x * x.mean(1, True), "reciprocal": lambda x: 1 / (x * x),
}  # fmt: skip


@pytest.mark.parametrize("function", REFUSED.values(), ids=REFUSED)
def test_what_is_no_such_function_is_refused(function):
    with pytest.raises(BoundError):
        network_bounds(Entrywise(function), (4,))
    network = Network(function)
    x = torch.rand(2, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not certified(network, x, network(x).argmax(1), 0.01).any()
