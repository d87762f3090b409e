"""Jobs without prospects end early: what is foreseen, and that nothing is lost by it."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks._apgd import APGD
from opnorm.attacks._autoattack import AutoAttack
from opnorm.attacks._batching import Task, hunt, hunt_together
from opnorm.attacks._fab import FAB
from opnorm.attacks._square import Square
from opnorm.attacks.projections import ball
from opnorm.attacks.search import falls_short, unmarked
from opnorm.errors import AttackError
from tests.attacks.honest import honest, points
from tests.attacks.victims import EPS, Linear, images


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_no_point_of_the_ball_gains_more(norm):
    x, _ = images(6, dtype=torch.float64)
    region = ball(x, EPS[norm], norm)
    grad = torch.randn(x.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    z = region.start(torch.arange(6))
    gain = region.gain(z, grad)
    for seed in range(50):
        other = region.start(torch.arange(6) + 100 * seed)
        assert ((grad * (other - z)).flatten(1).sum(1) <= gain).all()
    best = region.ascend(z, grad, 1e3)
    if norm == math.inf:  # the ball cut with the box is a box, of which this is the corner
        assert torch.allclose((grad * (best - z)).flatten(1).sum(1), gain)
    inside = ball(x * 0.2 + 0.4, EPS[norm], norm)  # far from the box, where nothing is lost
    start = inside.start(torch.arange(6))
    best = inside.x + EPS[norm] * inside.direction(grad)
    assert torch.allclose((grad * (best - start)).flatten(1).sum(1), inside.gain(start, grad))


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_on_a_linear_model_exactly_the_hopeless_are_given_up(norm):
    w = torch.randn(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, _ = images(200, low=0.4, high=0.6, dtype=torch.float64)
    score = (x * w).flatten(1).sum(1) - 0.5 * w.sum()
    model = nn.Sequential(Shift(), Linear(w))
    y = (score > 0).long()
    eps = EPS[norm] / 4
    reach = eps * (w.abs().sum() if norm == math.inf else w.norm())
    can_be_fooled = score.abs() < reach
    search = APGD(criterion="cw", patience=1 + 1e-9)
    catch = hunt(model, x, y, search, eps=eps, norm=norm)
    assert torch.equal(catch.fooled, can_be_fooled)
    assert catch.counts["given_up"] == (~can_be_fooled).sum() > 20
    assert catch.counts["forward"] < 10 * len(x)


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.5


def test_what_falls_short():
    k = torch.tensor([250, 250, 250, 250, 249, 31])
    value = torch.tensor([-3.0, -1.9, -1.0, -1.0, -3.0, -9.0])
    before = torch.tensor([-4.0, -2.5, -math.inf, -1.0, -4.0, -9.5])  # at half of the steps
    marks = torch.stack([before, *[torch.full_like(value, -1.5 - j) for j in range(3)]], 1)
    # two doublings are left until 1000: -3 + 2 * 1 < 0 <= -1.9 + 2 * 2 * 0.6
    short, new = falls_short(1000, k, value, marks, 1.0)
    assert short.tolist() == [True, True, False, True, False, True]
    looked = k != 249
    assert torch.equal(new[looked], torch.cat([marks[:, 1:], value[:, None]], 1)[looked])
    assert torch.equal(new[~looked], marks[~looked])
    short, _ = falls_short(1000, k, value, marks, 2.0)
    assert short.tolist() == [False, False, False, True, False, True]
    never = torch.full_like(value, -math.inf)  # FAB where nothing was found yet
    assert not falls_short(1000, k, never, unmarked(never), 1.0)[0].any()
    flat = value[:, None].repeat(1, 4)
    assert falls_short(96, torch.full_like(k, 12), value, flat, 1.0)[0].all()
    assert not falls_short(96, torch.full_like(k, 6), value, flat, 1.0)[0].any()  # too early
    # ten times the progress would bring them to zero, but once not to the bar
    bar = torch.tensor([-1.1, -0.5, -math.inf, -1.0, -1.1, -6.0])
    short, _ = falls_short(1000, k, value, marks, 10.0, bar)
    assert short.tolist() == [False, True, False, True, False, True]
    assert not falls_short(1000, k, value, marks, 10.0)[0][[0, 1, 2, 4, 5]].any()


def test_a_doubling_has_four_looks_and_progress_is_counted_since_half_of_the_steps():
    value, found = torch.tensor([-1.0]), []
    marks = unmarked(value)
    for k in range(1, 1001):  # the value is the logarithm of the steps: each doubling brings the same
        value = torch.tensor([k / 1000.0]).log2()
        _, new = falls_short(1000, torch.tensor([k]), value, marks, 1.0)
        if not torch.equal(new, marks):
            found.append(k)
            if len(found) > 4:
                assert float(value - marks[0, 0]) == pytest.approx(1, abs=0.05)
        marks = new
    assert found[-5:] == [420, 500, 595, 707, 841]
    assert found[0] == 31


@pytest.mark.parametrize(
    "search",
    [
        lambda patience: APGD(criterion="dlr", targeted=True, patience=patience),
        lambda patience: FAB(math.inf, patience=patience),
        lambda patience: Square(math.inf, 1000, patience=patience),
    ],
    ids=["APGD-T", "FAB-T", "Square"],
)
def test_on_a_trained_network_nothing_is_lost(search):
    model, (x, y) = honest(), points(60)
    targets = torch.stack([(y + 1) % 10, (y + 5) % 10], 1) if search(3).name != "Square" else None
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y, targets = x[right], y[right], None if targets is None else targets[right]
    full, short = (
        hunt(model, x, y, search(patience), eps=0.1, norm=math.inf, targets=targets)
        for patience in (math.inf, 3)
    )
    assert full.counts["given_up"] == 0 < short.counts["given_up"]
    assert short.counts["forward"] < 0.6 * full.counts["forward"]
    assert 0 < full.fooled.sum() < len(x)
    assert (full.fooled & ~short.fooled).sum() <= 1


def test_patience_is_a_factor():
    with pytest.raises(AttackError, match="patience=0: expected a factor above 0"):
        AutoAttack(patience=0)
    with pytest.raises(AttackError, match="patience=nan"):
        AutoAttack(patience=math.nan)


def test_square_ends_where_it_will_not_come_as_far_as_the_attacks_before():
    model, (x, y) = honest(), points(60)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    passes = []
    for reached in (-math.inf, -1e-3):
        catch = hunt_together(
            model, x, y, [Task(Square(math.inf, 1000, patience=30))], eps=0.1, norm=math.inf,
            reached=torch.full(y.shape, reached),
        )  # fmt: skip
        passes.append(catch.tallies["Square"].counts["forward"])
    assert passes[1] < 0.7 * passes[0]
