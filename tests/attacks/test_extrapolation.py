"""Searches that stop early: what is extrapolated, and that nothing is lost by it."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks._apgd import APGD
from opnorm.attacks._autoattack import AutoAttack
from opnorm.attacks._batching import Options, Problem, Searches, SearchResult, run_searches
from opnorm.attacks._extrapolation import Extrapolation
from opnorm.attacks._fab import FAB
from opnorm.attacks._search import Batch, Response
from opnorm.attacks._square import Square
from opnorm.attacks.projections import L2Ball, ball
from opnorm.errors import AttackError
from tests.attacks.honest import honest, points
from tests.attacks.test_batching import run
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
    if norm != 1:  # as far as the ball cut with the box goes
        best = region.project(x + 1e9 * grad)
        assert torch.allclose((grad * (best - z)).flatten(1).sum(1), gain, rtol=1e-5)
    inside = ball(x * 0.2 + 0.4, EPS[norm], norm)  # far from the box, where nothing is lost
    start = inside.start(torch.arange(6))
    best = inside.x + EPS[norm] * inside.direction(grad)
    assert torch.allclose((grad * (best - start)).flatten(1).sum(1), inside.gain(start, grad))


@pytest.mark.parametrize("norm", [math.inf, 2])
def test_on_a_linear_model_exactly_the_robust_stop_early(norm):
    w = torch.randn(1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, _ = images(200, low=0.4, high=0.6, dtype=torch.float64)
    score = (x * w).flatten(1).sum(1) - 0.5 * w.sum()
    model = nn.Sequential(Shift(), Linear(w))
    y = (score > 0).long()
    eps = EPS[norm] / 4
    reach = eps * (w.abs().sum() if norm == math.inf else w.norm())
    not_robust = score.abs() < reach
    search = APGD(criterion="cw", patience=1 + 1e-9)
    result = run(model, x, y, search, eps=eps, norm=norm)
    counts = result.records[0].counts
    assert torch.equal(result.misclassified, not_robust)
    assert counts["stopped_early"] == (~not_robust).sum() > 20
    assert counts["forward"] < 10 * len(x)


@pytest.mark.parametrize("targets", [0, 2])
def test_cross_entropy_stops_at_its_maximum_where_the_right_class_is_less_likely_than_the_others_together(
    targets,
):
    x, _ = images(8, low=0.4, high=0.6)
    y = torch.zeros(8, dtype=torch.long)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([0.0, 1e-3, -1e-3])[:, None].expand(3, 16))
        network[1].bias.copy_(torch.tensor([1.0, 0.7, 0.7]))  # odds of 1.5 to 1 against the right class
    search = Searches(APGD(criterion="ce", targeted=targets > 0, patience=3), targets=targets)
    record = run(network, x, y, search, eps=0.1).records[0]
    assert record.counts["stopped_early"] == 8 * max(targets, 1)
    assert record.counts["forward"] == (8 * 4 * 2 if targets else 8 * 8)


def steps_until_stop(monkeypatch, margins, gap, targeted=True):
    """The steps before a job with patience 3 stops, whose evaluations give these losses and a gap; None if it does not."""
    monkeypatch.setattr(L2Ball, "gain", lambda region, z, grad: torch.full((1,), gap))
    search, x, y = (
        APGD(criterion="cw", targeted=targeted, patience=3),
        torch.full((1, 1, 2, 2), 0.5),
        torch.zeros(1).long(),
    )
    batch = Batch(x, y, y + 1, y, y, torch.full((1,), -math.inf), ball(x, 0.1, 2))
    state = search.start(batch)
    for k, margin in enumerate(margins, 1):
        response = Response(torch.tensor([[-margin, 0.0]]), torch.tensor([margin]), torch.ones_like(x), 1, 1)
        state = search.advance(batch, state, response)
        if state.stopped:
            return k
    return None


def test_three_steps_in_a_row_stop_a_job(monkeypatch):
    out_of_reach, near = -1.0, -0.01
    assert steps_until_stop(monkeypatch, [out_of_reach] * 20, 0.01) == 4
    assert steps_until_stop(monkeypatch, [out_of_reach] * 20, 0.01, targeted=False) == 8
    assert steps_until_stop(monkeypatch, [*[out_of_reach] * 2, near, *[out_of_reach] * 9], 0.01) == 6
    assert steps_until_stop(monkeypatch, [out_of_reach, out_of_reach, near] * 9, 0.01) is None
    # 3 (1 + (4 / k)²) 0.2 < 1 from the fifth step on
    assert steps_until_stop(monkeypatch, [out_of_reach] * 20, 0.2) == 7


class Shift(nn.Module):
    def forward(self, x):
        return x - 0.5


def test_what_falls_short():
    k = torch.tensor([250, 250, 250, 250, 249, 31])
    value = torch.tensor([-3.0, -1.9, -1.0, -1.0, -3.0, -9.0])
    before = torch.tensor([-4.0, -2.5, -math.inf, -1.0, -4.0, -9.5])  # at half of the steps
    history = torch.stack([before, *[torch.full_like(value, -1.5 - j) for j in range(3)]], 1)
    # two doublings are left until 1000: -3 + 2 * 1 < 0 <= -1.9 + 2 * 2 * 0.6
    short, new = Extrapolation(1000, 1.0).falls_short(k, value, history)
    assert short.tolist() == [True, True, False, True, False, True]
    checked = k != 249
    assert torch.equal(new[checked], torch.cat([history[:, 1:], value[:, None]], 1)[checked])
    assert torch.equal(new[~checked], history[~checked])
    short, _ = Extrapolation(1000, 2.0).falls_short(k, value, history)
    assert short.tolist() == [False, False, False, True, False, True]
    never = torch.full_like(value, -math.inf)  # FAB where nothing was found yet
    assert not Extrapolation(1000, 1.0).falls_short(k, never, Extrapolation.start(never))[0].any()
    flat = value[:, None].repeat(1, 4)
    assert Extrapolation(96, 1.0).falls_short(torch.full_like(k, 12), value, flat)[0].all()
    assert not Extrapolation(96, 1.0).falls_short(torch.full_like(k, 6), value, flat)[0].any()  # too early
    # ten times the progress would bring them to zero, but once not to the bar
    bar = torch.tensor([-1.1, -0.5, -math.inf, -1.0, -1.1, -6.0])
    short, _ = Extrapolation(1000, 10.0).falls_short(k, value, history, bar)
    assert short.tolist() == [False, True, False, True, False, True]
    assert not Extrapolation(1000, 10.0).falls_short(k, value, history)[0][[0, 1, 2, 4, 5]].any()


def test_a_doubling_has_four_checks_and_progress_is_counted_since_half_of_the_steps():
    value, found = torch.tensor([-1.0]), []
    history = Extrapolation.start(value)
    for k in range(1, 1001):  # the value is the logarithm of the steps: each doubling brings the same
        value = torch.tensor([k / 1000.0]).log2()
        _, new = Extrapolation(1000, 1.0).falls_short(torch.tensor([k]), value, history)
        if not torch.equal(new, history):
            found.append(k)
            if len(found) > 4:
                assert float(value - history[0, 0]) == pytest.approx(1, abs=0.05)
        history = new
    assert found[-5:] == [420, 500, 595, 707, 841]
    assert found[0] == 31


@pytest.mark.parametrize(
    "search",
    [
        lambda patience: Searches(APGD(criterion="dlr", targeted=True, patience=patience), targets=2),
        lambda patience: Searches(FAB(math.inf, patience=patience), targets=2),
        lambda patience: Searches(Square(math.inf, 1000, patience=patience)),
    ],
    ids=["APGD-T", "FAB-T", "Square"],
)
def test_on_a_trained_network_nothing_is_lost(search):
    model, (x, y) = honest(), points(30)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    full, short = (run(model, x, y, search(patience), eps=0.1) for patience in (math.inf, 3))
    counts, fewer = full.records[0].counts, short.records[0].counts
    assert counts["stopped_early"] == 0 < fewer["stopped_early"]
    assert fewer["forward"] < 0.6 * counts["forward"]
    assert 0 < full.misclassified.sum() < len(x)
    assert (full.misclassified & ~short.misclassified).sum() <= 1


def test_patience_is_a_factor():
    with pytest.raises(AttackError, match="patience=0: expected a factor above 0"):
        AutoAttack(patience=0)
    with pytest.raises(AttackError, match="patience=nan"):
        AutoAttack(patience=math.nan)


def test_square_stops_where_it_will_not_reach_the_margin_of_earlier_attacks():
    model, (x, y) = honest(), points(60)
    with torch.no_grad():
        right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    passes = []
    for margin in (-math.inf, -1e-3):
        before = SearchResult.start(x, torch.ones_like(y, dtype=torch.bool))
        before.margin.fill_(margin)
        problem = Problem(model, x, y, torch.zeros(len(x), 10), 0.1, math.inf)
        search = Searches(Square(math.inf, 1000, patience=30))
        result = run_searches(problem, [search], Options(), before)
        passes.append(result.records[0].counts["forward"])
    assert passes[1] < 0.7 * passes[0]
