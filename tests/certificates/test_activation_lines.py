"""Lines and intervals of activations enclose what is computed, and are about as tight as two lines can be."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.layers import in_float64
from opnorm.attacks import pgd
from opnorm.certificates import certified
from opnorm.certificates.layer_bounds import layer_bounds
from opnorm.errors import BoundError
from tests.property_tests import examples

ACTIVATIONS = [
    nn.LeakyReLU(0.2), nn.ReLU6(), nn.Hardtanh(-0.3, 2.5), nn.Tanh(), nn.Sigmoid(), nn.LogSigmoid(), nn.Softsign(),
    nn.Tanhshrink(), nn.Hardsigmoid(), nn.Hardswish(), nn.SiLU(), nn.Mish(), nn.GELU(), nn.GELU("tanh"), nn.ELU(1.7),
    nn.CELU(0.4), nn.SELU(), nn.Softplus(), nn.Softplus(5, 30), nn.ELU(inplace=True), nn.PReLU(), nn.PReLU(1, 1.7),
    nn.PReLU(1, -0.6), nn.PReLU(1, 1e-30),
]  # fmt: skip


def sampled(low, high, count=4001):
    """Numbers of an interval in float32: evenly spaced, and those next to its ends and to 0."""
    at = torch.linspace(0, 1, count, dtype=torch.float64)
    x = torch.cat(
        [low + (high - low) * at, low + (high - low) * torch.logspace(-30, 0, 60, dtype=torch.float64)]
    )
    near = torch.tensor([low, high, 0.0, -3.0, 3.0, 6.0], dtype=torch.float64)
    x = torch.cat([x, near, -near]).float()
    return x[(x >= low) & (x <= high)]


def lines(bounds, low, high):
    """(slope, constant) from below and from above."""
    low, high = (torch.tensor([[end]], dtype=torch.float64) for end in (low, high))
    A = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    slopes, constants = bounds.backward(A, low, high)
    (k,), (K,) = slopes[0].tolist()
    c, C = constants[0].tolist()
    return (k, c), (-K, -C)


ends = st.one_of(
    st.floats(-12, 12, width=32), st.floats(-1e3, 1e3, width=32), st.floats(-(2.0**90), 2.0**90, width=32),
    st.sampled_from([0.0, 3.0, -3.0, 6.0, 10.0, -10.0, 40.0, 1e-30]),
)  # fmt: skip
widths = st.sampled_from([0.0, 1e-38, 1e-6, 1e-3, 0.1, 1.0, 7.0, 300.0, 1e9])


@examples(400)
@given(st.sampled_from(ACTIVATIONS), ends, st.one_of(ends, widths.map(lambda w: (w,))))
def test_what_is_computed_lies_between(layer, low, high):
    high = low + high[0] if isinstance(high, tuple) else high
    low, high = sorted((low, float(torch.tensor(high))))
    bounds = layer_bounds(layer, (1,))
    least, most = bounds.interval(*(torch.tensor([[end]], dtype=torch.float64) for end in (low, high)))
    (k, c), (K, C) = lines(bounds, low, high)
    x = sampled(low, high)
    y, x = layer(x.clone()).double(), x.double()
    assert bool(((least <= y) & (y <= most)).all())
    assert bool(((k * x + c <= y) & (y <= K * x + C)).all())


def hull_gap(x, f):
    """The least that two lines, above and below samples of f, can be apart in the middle, by all chords."""
    n = len(x) // 2
    left, right, fl, fr = x[:n, None], x[n + 1 :], f[:n, None], f[n + 1 :]
    middle = x[n]
    at = fl + (fr - fl) * (middle - left) / (right - left)
    return max(float(at.max()), float(f[n])) - min(float(at.min()), float(f[n]))


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
@pytest.mark.parametrize(("low", "high"), [(-1.0, 0.5), (-4.0, 6.0), (0.5, 2.0), (-9.0, -1.0), (-60.0, 45.0)])
def test_as_tight_as_two_lines_can_be(layer, low, high):
    if isinstance(layer, nn.Softsign) and high - low > 20:
        return  # interval arithmetic bounds x / (1 + |x|) loosely far from 0
    (k, c), (K, C) = lines(layer_bounds(layer, (1,)), low, high)
    x = torch.linspace(low, high, 401, dtype=torch.float64)
    f, middle = in_float64(layer)(x.clone()), (low + high) / 2
    scale = 1 + float(f.abs().max())
    assert (
        K * middle + C - (k * middle + c)
        <= 1.1 * hull_gap(x, f) + (5e-3 if high - low < 20 else 5e-2) * scale
    )


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_nothing_is_known_of_what_may_overflow(layer):
    bounds = layer_bounds(layer, (2,))
    low, high = torch.tensor([[-math.inf, 0.0]]).double(), torch.tensor([[0.0, math.inf]]).double()
    least, most = bounds.interval(low, high)
    assert least.isinf().all()
    assert most.isinf().all()
    _, c = bounds.backward(torch.ones(1, 1, 2).double(), low, high)
    assert not (c > -math.inf).any()


@pytest.mark.parametrize("layer", ACTIVATIONS, ids=str)
def test_errors_grow_by_the_steepest_slope_at_most(layer):
    bounds, generator = layer_bounds(layer, (500,)), torch.Generator().manual_seed(0)
    x = 4 * torch.randn(1, 500, generator=generator, dtype=torch.float64)
    off = 10 ** (-4 * torch.rand(1, 500, generator=generator, dtype=torch.float64))
    grown = bounds.propagated(off, x, x)
    for moved in (x - off, x + off):
        assert bool(((layer(moved.float()) - in_float64(layer)(x.clone())).abs() <= grown).all())


def test_each_channel_has_its_own_slope():
    layer = nn.PReLU(3)
    layer.weight.data = torch.tensor([-2.0, 0.3, 5.0])
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    low, high = x - 0.5, x + 0.5
    bounds, of_function = layer_bounds(layer, (3, 4)), Net(layer.weight)
    least, most = bounds.interval(low, high)
    A = torch.randn(1, 6, 3, 4, dtype=torch.float64)
    slopes, constants = bounds.backward(A, low, high)
    for _ in range(200):
        at = low + torch.rand_like(low)
        y = layer.double()(at)
        assert bool(((least <= y) & (y <= most)).all())
        assert bool(
            ((A * y[:, None]).flatten(2).sum(2) >= (slopes * at[:, None]).flatten(2).sum(2) + constants).all()
        )
    points, labels = torch.rand(4, 3, 4), torch.zeros(4, dtype=torch.long)
    layer.float()
    for model in (nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 2)), of_function):
        assert certified(model, points, labels, 1e-4, 2).shape == (4,)


class Net(nn.Module):
    def __init__(self, slopes):
        super().__init__()
        self.slopes, self.last = slopes, nn.Linear(12, 2)

    def forward(self, x):
        return self.last(nn.functional.prelu(x, self.slopes).flatten(1))


@pytest.mark.each_value
@pytest.mark.parametrize("layer", [nn.GELU(), nn.Sigmoid(), nn.LeakyReLU(), nn.PReLU(1, 1.5)], ids=str)
@pytest.mark.parametrize("norm", [2, math.inf])
def test_certified_points_withstand_an_attack(layer, norm):
    """And CROWN proves points that intervals leave open."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), layer, nn.Linear(24, 12), layer, nn.Linear(12, 4))
    x = torch.rand(30, 1, 4, 4)
    y, proved = model(x).argmax(1), {}
    for method, eps in (("ibp", 0.01 if norm == 2 else 2e-3), ("crown", 0.05 if norm == 2 else 0.01)):
        proved[method] = certified(model, x, y, eps, norm, method)
        moved = pgd(norm=norm, eps=eps, steps=20)(model, x[proved[method]], y[proved[method]])
        assert torch.equal(model(moved).argmax(1), y[proved[method]])
        proved[method, "crown"] = certified(model, x, y, eps, norm, "crown")
    assert proved["crown"].any()
    assert not (proved["ibp"] & ~proved["ibp", "crown"]).any()


def test_softplus_that_jumps_is_refused():
    with pytest.raises(BoundError):
        layer_bounds(nn.Softplus(threshold=2), (1,))
