"""What attacks climb: each loss by its formula, in float64, and what an ascent makes of it."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.attacks import fab, pgd
from opnorm.attacks._pgd import PGD
from opnorm.attacks.losses import AGAINST_CLEAN, LOSSES, dlr, margin
from opnorm.attacks.projections import ball
from tests.attacks.victims import EPS, images, net

G = torch.Generator().manual_seed(0)
Z = 3 * torch.randn(6, 4, generator=G, dtype=torch.float64)
CLEAN = 3 * torch.randn(6, 4, generator=G, dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3, 0, 1])


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def by_hand(name, z, y, clean):
    z, clean = z.tolist(), clean.tolist()
    others = [v for i, v in enumerate(z) if i != y]
    match name:
        case "ce":
            return math.log(sum(map(math.exp, others))) - z[y]
        case "cw":
            return max(others) - z[y]
        case "dlr":
            first, _, third, *_ = sorted(z, reverse=True)
            return (max(others) - z[y]) / (first - third)
        case "kl":
            p, q = ([math.exp(v) / sum(map(math.exp, u)) for v in u] for u in (clean, z))
            return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    gaps = [abs(a - b) for a, b in zip(z, clean, strict=True)]
    q = {"l1": 1, "l2": 2, "linf": 50}[name]
    return sum(g**q for g in gaps) ** (1 / q)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_by_hand(name):
    got = LOSSES[name](Z, CLEAN if name in AGAINST_CLEAN else Y)
    want = [by_hand(name, *row) for row in zip(Z, Y, CLEAN, strict=True)]
    assert torch.allclose(got, torch.tensor(want, dtype=torch.float64), rtol=0.02 if name == "linf" else 1e-9)
    against = CLEAN if name in AGAINST_CLEAN else Y
    assert torch.autograd.gradcheck(lambda z: LOSSES[name](z, against), Z.clone().requires_grad_())


def test_log_odds_climb_as_cross_entropy_does():
    z = Z.clone().requires_grad_()
    odds = LOSSES["ce"](z, Y)
    cross_entropy = F.cross_entropy(z, Y, reduction="none")
    assert torch.allclose(cross_entropy, odds.exp().log1p())
    a, b = (torch.autograd.grad(loss.sum(), z, retain_graph=True)[0] for loss in (odds, cross_entropy))
    assert torch.allclose(F.cosine_similarity(a, b), torch.ones(6, dtype=torch.float64))


def test_dlr_does_not_depend_on_the_scale_and_two_classes_have_the_margin():
    assert torch.allclose(dlr(Z, Y), dlr(100 * Z + 3, Y))
    assert torch.equal(dlr(Z[:, :2], Y % 2), margin(Z[:, :2], Y % 2))
    x, y = images(20)
    assert torch.equal(pgd(loss="dlr")(net(classes=2), x, y % 2), pgd(loss="cw")(net(classes=2), x, y % 2))


@pytest.mark.each_value
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("exponent", [-90, 70])
def test_the_scale_of_logits_does_not_matter_to_an_attack(norm, exponent):
    """Times a power of two all numbers are exact, so attacks whose losses are proportional to it end at the same bits."""
    model, (x, _) = net(1).eval(), images(12)
    y = model(x).argmax(1)
    scaled = nn.Sequential(model, Times(2.0**exponent)).eval()
    attacks = [pgd(norm, EPS[norm], 5, loss=loss) for loss in ("cw", "l1", "l2", "linf")]
    attacks += [fab(norm, EPS[norm], steps=8, targets=targets) for targets in (0, 2)]
    for attack in attacks:
        assert torch.equal(attack(model, x, y), attack(scaled, x, y)), attack


@pytest.mark.parametrize("norm", [1, 2, 3, math.inf])
@pytest.mark.parametrize("exponent", [-90, 70])
def test_the_frank_wolfe_gap_follows_the_scale_of_the_gradient(norm, exponent):
    x, grad = torch.rand(4, 9), torch.randn(4, 9)
    region = ball(x, 0.3, norm)
    z = region.project(x + 0.2 * torch.randn(4, 9))
    gap = region.gain(z, grad)
    assert torch.allclose(region.gain(z, grad * 2.0**exponent) * 2.0**-exponent, gap, rtol=1e-5)


def test_equal_logits_have_finite_gradients():
    z = torch.zeros(2, 4, requires_grad=True)
    for name, loss in LOSSES.items():
        against = torch.zeros(2, 4) if name in AGAINST_CLEAN else torch.tensor([0, 1])
        (grad,) = torch.autograd.grad(loss(z, against).sum(), z)
        assert grad.isfinite().all(), name
        assert bool(grad.any()) is (name not in AGAINST_CLEAN), name


@pytest.mark.each_pair
@pytest.mark.parametrize("norm", [1, 2, math.inf])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("restarts", [1, 3])
def test_every_loss_is_climbed(loss, norm, restarts):
    model, (x, y) = net(1).double().eval(), images(30, dtype=torch.float64)
    with torch.no_grad():
        clean = model(x)
        against = clean if loss in AGAINST_CLEAN else y

        def reached(z):
            return LOSSES[loss](model(z), against)

        start = reached(pgd(norm, EPS[norm], 0, loss=loss)(model, x, y))
        end = reached(pgd(norm, EPS[norm], 20, loss=loss, restarts=restarts)(model, x, y))
    # of three classes, dlr is 1 wherever the right one comes last
    climbing = clean.argmax(1) == y if loss == "dlr" else torch.ones_like(y, dtype=torch.bool)
    assert climbing.sum() > 5
    assert (end > start)[climbing].all()
    assert (end > LOSSES[loss](clean, against))[climbing].all()


def test_the_step_is_a_share_of_the_radius():
    model, (x, y) = net(), images(5)
    for norm, eps in EPS.items():
        want = pgd(norm, eps, 7, step=2.5 * eps / 7)(model, x, y)
        assert torch.equal(pgd(norm, eps, 7)(model, x, y), want)


class Rectifier(nn.Module):
    """A piecewise linear network, in float64."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.a = torch.randn(12, 9, generator=generator, dtype=torch.float64)
        self.b = torch.randn(4, 12, generator=generator, dtype=torch.float64)

    def forward(self, x):
        return (x.flatten(1) @ self.a.T).relu() @ self.b.T


@pytest.mark.parametrize("p", [1, 2, math.inf])
@pytest.mark.parametrize("q", [1, 2, math.inf])
def test_ascent_with_long_steps_is_the_power_method(p, q):
    """Roth's Theorem 1, iterate by iterate: in one linear region, x_k = x + ε v_k as α → ∞."""

    def dual(v, p):  # the maximizer of <v, w> over ‖w‖_p = 1
        if p == 1:
            top = (v.abs() == v.abs().max()).double()
            return v.sign() * top / top.sum()
        return v.sign() if p == math.inf else v / v.norm()

    model, eps = Rectifier(), 1e-4
    x, y = images(5, (1, 3, 3), low=0.3, high=0.7, dtype=torch.float64)
    begin = PGD(p, eps, 0, start="uniform")(model, x, y)
    for k in range(1, 5):
        got = PGD(p, eps, k, step=1e3, loss={1: "l1", 2: "l2", math.inf: "linf"}[q])(model, x, y)
        for point, center, start in zip(got, x, begin, strict=True):
            jacobian = torch.autograd.functional.jacobian(model, center[None])[0].view(4, 9)
            v = (start - center).flatten()
            for _ in range(k):
                # the gradient of ‖u‖_q is the maximizer of <u, w> over ‖w‖_q* = 1
                v = dual(jacobian.T @ dual(jacobian @ v, {1: math.inf, 2: 2, math.inf: 1}[q]), p)
            assert torch.allclose((point - center).flatten() / eps, v, atol=1e-6)


def test_points_without_a_gradient_are_counted_once_a_call():
    class Dead(nn.Module):
        def forward(self, x):
            alive = (x.flatten(1)[:, :1] > 0.5) * x.flatten(1).sum(1, keepdim=True)
            return torch.cat([alive, torch.full_like(alive, 0.5)], 1)

    x, y = images(10, low=0.6, high=0.9)
    x[:4, 0, 0, 0] = 0.1
    y = torch.zeros_like(y)
    y[:3] = 1  # right, and dead; the fourth is dead as well, but wrong
    for attack in (pgd(), pgd(restarts=3), pgd(stop_at_success=True)):
        with pytest.warns(UserWarning, match="exactly zero for 3 of 10 points") as told:
            attack(Dead(), x, y)
        assert len(told) == 1
