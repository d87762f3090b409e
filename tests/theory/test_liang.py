"""The constructions are evaluated, attacked, and bounded by intervals."""

import math

import pytest
import torch
from torch import nn

from opnorm import attacks, measure
from opnorm.data import digits
from opnorm.errors import SpecError
from opnorm.norms import lipschitz_bound
from opnorm.spec import build
from opnorm.theory import ACTIVATIONS, large_norms_zero_lipschitz, memorizer
from opnorm.theory.liang import SOFT_STEPS

NORMS = [1, 2, math.inf]


@pytest.fixture(scope="module")
def images():
    """Forty real images in ten classes."""
    train = digits().train
    rows = torch.cat([(train.labels == c).nonzero()[:4, 0] for c in range(10)])
    return train.images[rows].float() / 255, train.labels[rows]


def apart(x, y, norm):
    d = torch.cdist(*[x.flatten(1).double()] * 2, p=norm, compute_mode="donot_use_mm_for_euclid_dist")
    return float(d[y[:, None] != y[None]].min())


def margins(net, x, y):
    """Right logit minus the largest wrong one."""
    logits = net(x)
    right = logits.gather(1, y[:, None])[:, 0]
    return right - logits.scatter(1, y[:, None], -math.inf).amax(1)


def in_ball(x, eps, norm, count, generator):
    """(count, *x.shape) in the ball, half of it on its surface, and partly at corners."""
    z = torch.randn(count, *x.shape, generator=generator, dtype=x.dtype)
    z[: count // 3] = z[: count // 3].sign()
    if norm == 1:
        z[count // 3 : count // 2] *= torch.rand(z[count // 3 : count // 2].shape, generator=generator) < 0.03
    length = z.flatten(2).norm(norm, dim=2).clamp_min(1e-9)[..., None]
    radius = torch.rand(count, len(x), 1, generator=generator, dtype=x.dtype)
    radius[::2] = 1
    return x + (z.flatten(2) / length * radius * eps).view_as(z)


def towards_others(x, y, eps, norm):
    """From each point ε towards every other, (N, N, *in), and which are of another class."""
    d = (x[None] - x[:, None]).flatten(2)
    length = d.norm(norm, dim=2, keepdim=True).clamp_min(1e-9)
    return x[:, None] + (d / length * eps).view(len(x), *x.shape), y[:, None] != y[None]


class TestLargeNormsZeroLipschitz:
    @pytest.mark.parametrize("norm", [1e-3, 1.0, 1e6, 1e18])
    @pytest.mark.parametrize("depth", [3, 5])
    def test_norms_and_function(self, norm, depth):
        net = large_norms_zero_lipschitz(norm, in_shape=(1, 4, 4), depth=depth, classes=3)
        layers = [m for m in net if isinstance(m, nn.Linear)]
        assert len(layers) == depth
        for layer in layers:
            W = layer.weight.detach().double()
            for p in NORMS:
                assert torch.linalg.matrix_norm(W, p) > norm
        x = torch.randn(200, 1, 4, 4, generator=torch.manual_seed(0)) * 100
        x.requires_grad_()
        out = net(x)
        assert out.shape == (200, 3)
        assert (out == out[0]).all()
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert (grad == 0).all()

    def test_measured(self):
        """By the library's own table; the product of norms says nothing about the network."""
        net = large_norms_zero_lipschitz(50.0, in_shape=(1, 4, 4), classes=3)
        x = torch.rand(2, 1, 4, 4)
        rows = [row for row in measure(net, x).rows if row.has_weight]
        assert len(rows) == 3
        for row in rows:
            assert all(float(row.norms[p].lower) > 50 for p in NORMS)
        assert lipschitz_bound(net, x).value > 50**3

    @pytest.mark.parametrize(
        "bad",
        [
            {"norm": 0},
            {"norm": math.nan},
            {"norm": True},
            {"norm": 1e19},
            {"norm": 1, "depth": 2},
            {"norm": 1, "width": 0},
        ],
    )
    def test_refused(self, bad):
        with pytest.raises(SpecError):
            large_norms_zero_lipschitz(**bad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("tau", [0.05, 1e-3, 1e-6])
def test_soft_steps_are_within_tau(activation, tau):
    step = SOFT_STEPS[activation](tau)
    t = torch.cat(
        [torch.linspace(-5, 5, 20001), -torch.logspace(0, 4, 2000), torch.logspace(0, 4, 2000)]
    ).double()
    v = step.constant + sum(c * step.activation(a * t + b) for a, b, c in step.terms)
    tiny = 1e-9
    assert v[t <= -1].abs().max() <= tau + tiny
    assert v[t >= 1].min() >= 1 - tau - tiny
    assert v.min() >= -tau - tiny


class TestMemorizer:
    @pytest.mark.each_value
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("norm", NORMS)
    def test_real_images(self, images, norm, activation):
        x, y = images
        eps = 0.49 * apart(x, y, norm)
        net = memorizer(x, y, eps, norm, activation)
        generator = torch.manual_seed(0)
        with torch.no_grad():
            assert margins(net, x, y).min() > 0.74
            near = in_ball(x, eps, norm, 30, generator)
            assert margins(net, near.flatten(0, 1), y.repeat(30)).min() > 0.74
            toward, other = towards_others(x, y, eps, norm)
            assert margins(net, toward[other], y.repeat_interleave(other.sum(1))).min() > 0.74

    @pytest.mark.each_value
    @pytest.mark.parametrize("activation", ["relu", "softplus", "tanh"])
    @pytest.mark.parametrize("norm", NORMS)
    def test_attacked(self, images, norm, activation):
        """PGD with restarts finds nothing, and says that this is no evidence: the intervals below are."""
        x, y = images
        eps = 0.45 * apart(x, y, norm)
        net = memorizer(x, y, eps, norm, activation)
        with pytest.warns(UserWarning, match="gradient is exactly zero"):
            z = attacks.pgd(norm=norm, eps=eps, steps=20, restarts=5, loss="cw")(net, x, y)
        assert (net(z).argmax(1) == y).all()

    @pytest.mark.parametrize("activation", ["relu", "relu6", "hardtanh", "sigmoid", "tanh", "softsign"])
    @pytest.mark.parametrize("norm", NORMS)
    def test_certified_by_intervals(self, images, norm, activation):
        """From the weights alone: bounds of the first layer on each ball by duality, then interval arithmetic."""
        x, y = images
        eps = 0.49 * apart(x, y, norm)
        net = memorizer(x.double(), y, eps, norm, activation, lipschitz=1e3)
        _, one, rho, two, _, three = net
        dual = {1: math.inf, 2: 2, math.inf: 1}[norm]
        with torch.no_grad():
            center = one(x.double().flatten(1))
            reach = eps * one.weight.norm(dual, dim=1)
            low, high = rho(center - reach), rho(center + reach)
            for layer in (two, three):
                middle, half = layer((low + high) / 2), (high - low) / 2 @ layer.weight.abs().T
                low, high = middle - half, middle + half
                if layer is two:
                    low, high = rho(low), rho(high)
            worst = high.scatter(1, y[:, None], -math.inf).amax(1)
            assert (low.gather(1, y[:, None])[:, 0] > worst + 0.5).all()

    @pytest.mark.parametrize("norm", NORMS)
    def test_plane(self, norm):
        """Densely, everything within the balls of a few points of three classes; points of one class may be near."""
        x = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.2, 1.0], [1.0, 1.2], [0.05, -0.05]]).double()
        y = torch.tensor([0, 1, 2, 0, 0])
        eps = 0.499 * apart(x, y, norm)
        net = memorizer(x, y, eps, norm)
        side = torch.linspace(-1, 1, 61, dtype=torch.float64)
        grid = torch.cartesian_prod(side, side)
        for point, label in zip(x, y, strict=True):
            inside = point + eps * grid[grid.norm(norm, dim=1) <= 1]
            assert margins(net, inside, label.expand(len(inside))).min() > 0.74

    @pytest.mark.each_value
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("xi", [1.0, 1e5])
    def test_lipschitz_constant_is_at_least(self, images, activation, xi):
        x, y = images
        eps = 0.45 * apart(x, y, math.inf)
        net = memorizer(x, y, eps, activation=activation, lipschitz=xi)
        line = x[:1].expand(4001, -1, -1, -1).clone()
        line[:, 0, 0, 0] = torch.linspace(-2, 8, 4001)
        with torch.no_grad():
            slope = (net(line)[20:] - net(line)[:-20]).abs().amax() / (20 * 10 / 4000)
            assert slope >= xi
            toward, other = towards_others(x, y, eps, math.inf)
            assert margins(net, toward[other], y.repeat_interleave(other.sum(1))).min() > 0.74

    def test_one_more_than_twice_eps_is_needed(self):
        x, y = torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1])
        memorizer(x, y, eps=0.499)
        with pytest.raises(SpecError, match=r"points 0 and 1 .* 1 apart in ℓ∞; expected more than 2 eps = 1"):
            memorizer(x, y, eps=0.5)
        with pytest.raises(SpecError, match=r"the rounding of torch\.float32"):
            memorizer(x, y, eps=0.5 - 1e-6)
        net = memorizer(x.double(), y, eps=0.5 - 1e-6)
        assert net(torch.tensor([[0.499999], [0.500001]]).double()).argmax(1).tolist() == [0, 1]

    def test_too_many_points(self):
        with pytest.raises(SpecError, match=r"1200 points make 720000 pairs and 1,440,000,000 weights"):
            memorizer(torch.rand(1200, 800), torch.arange(1200) % 2, eps=0)

    def test_types_and_shapes(self):
        x = torch.rand(6, 3, 2, 2, dtype=torch.float64)
        net = memorizer(x, torch.tensor([0, 0, 2, 2, 2, 0]), eps=0)
        assert net(x).shape == (6, 3)
        assert net(x).dtype == torch.float64

    def test_by_a_call_on_the_points_that_a_command_takes(self):
        net = build("opnorm.theory.memorizer_of(digits(), limit=6, eps=0.05)", "model")
        x, y = digits().limit(6).test
        x = x.float() / 255
        assert net(x).shape == (6, 10)
        assert margins(net, x, y).min() > 0.74
        assert margins(net, (x + 0.05 * torch.randn(x.shape).sign()), y).min() > 0.74
        zero = build("opnorm.theory.large_norms_zero_lipschitz(1e6)", "model", in_shape=(1, 8, 8), classes=3)
        assert torch.equal(zero(x), torch.zeros(6, 3))

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"norm": 3}, "norm=3"),
            ({"norm": True}, "norm=True"),
            ({"eps": -0.1}, "eps=-0.1"),
            ({"eps": math.nan}, "eps=nan"),
            ({"eps": True}, "eps=True"),
            ({"lipschitz": math.inf}, "lipschitz=inf"),
            ({"activation": "sin"}, "activation='sin': expected 'relu', "),
            ({"points": torch.zeros(2, 2, dtype=torch.uint8)}, "divide uint8 pixels"),
            ({"points": torch.tensor([[0.0], [math.nan]])}, "finite"),
            ({"points": torch.tensor([0.0, 1.0])}, "finite floating-point numbers"),
            ({"labels": torch.tensor([1, 1])}, "two different"),
            ({"labels": torch.tensor([-1, 1])}, "from 0 on"),
            ({"labels": torch.tensor([0, 1, 1])}, "one for each of 2"),
            ({"labels": torch.tensor([0.0, 1.0])}, "float32"),
        ],
    )
    def test_refused(self, change, message):
        good = {"points": torch.tensor([[0.0], [1.0]]), "labels": torch.tensor([0, 1]), "eps": 0.2}
        memorizer(**good)
        with pytest.raises(SpecError, match=message):
            memorizer(**good | change)
