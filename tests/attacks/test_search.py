"""The machine that runs searches on lanes: who is caught, when a lane is freed, and that the model has the last word."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks._apgd import apgd_search
from opnorm.attacks._batching import Task, _keys, _one_each, hunt, hunt_together
from opnorm.attacks._fab import FAB
from opnorm.attacks._square import Square
from opnorm.attacks.projections import ball
from opnorm.attacks.search import Search
from opnorm.errors import AttackError
from tests.attacks.victims import EPS, Linear, images, net


class Climb(Search):
    """Goes along the gradient of the second logit."""

    name, steps = "climb", 3

    def start(self, lanes):
        return {"z": lanes.x}

    def loss(self, lanes, state, logits):
        return logits[:, 1]

    def advance(self, lanes, state, answer):
        assert answer.grad.isfinite().all()
        return {"z": state["z"] + answer.grad}


class Walk(Search):
    """Adds a fixed step to every pixel of a point; on the way it is told how often it was asked for which point."""

    name = "walk"

    def __init__(self, step=0.01, steps=10):
        self.step, self.steps = step, steps

    def start(self, lanes):
        return {"z": lanes.x.clone(), "k": torch.zeros_like(lanes.y)}

    def loss(self, lanes, state, logits):
        return logits.gather(1, lanes.y[:, None]).squeeze(1)

    def advance(self, lanes, state, answer):
        return {"z": state["z"] + self.step, "k": state["k"] + 1}


class Threshold(nn.Module):
    """Class 1 where the mean pixel is above a threshold; counts the points that it is asked for."""

    def __init__(self, threshold=0.5, dtype=None):
        super().__init__()
        self.threshold, self.dtype, self.asked = threshold, dtype, 0

    def forward(self, x):
        self.asked += len(x)
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.full_like(mean, self.threshold), mean], 1)


def flat(*values):
    """Images of one gray each, all of class 0 under the threshold."""
    x = torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    return x, torch.zeros(len(values), dtype=torch.long)


def test_a_lane_is_freed_as_soon_as_its_point_is_fooled():
    x, y = flat(0.495, 0.485, 0.475, 0.3, 0.2)
    model = Threshold()
    catch = hunt(model, x, y, Walk(), eps=0.5, norm=math.inf, lanes=1)
    assert catch.fooled.tolist() == [True, True, True, False, False]
    # asked at x, x + 0.01, ... until the first above 0.5; the others ten times
    assert catch.counts["forward"] == catch.counts["backward"] == 2 + 3 + 4 + 10 + 10
    assert catch.counts["confirm"] == 3 + 2  # the catches, and the end of those that stand
    assert catch.counts["denied"] == 0
    assert torch.allclose(catch.points[:3].amax((1, 2, 3)), torch.tensor([0.505, 0.505, 0.505]), atol=1e-6)
    assert torch.allclose(catch.points[3:].amax((1, 2, 3)), torch.tensor([0.4, 0.3]), atol=1e-6)
    assert torch.allclose(catch.margin, catch.points.mean((1, 2, 3)) - 0.5)


@pytest.mark.parametrize("lanes", [1, 2, 3, 5, 64])
def test_lanes_change_the_cost_and_not_the_verdict(lanes):
    x, y = flat(*torch.linspace(0.2, 0.499, 37).tolist())
    catch = hunt(Threshold(), x, y, Walk(), eps=0.5, norm=math.inf, lanes=lanes)
    assert torch.equal(catch.fooled, x[:, 0, 0, 0] > 0.4)  # the end of the walk is looked at, too
    needed = (((0.5 - x[:, 0, 0, 0]) / 0.01).floor() + 2).clamp(max=10).sum()
    assert catch.counts["forward"] <= needed * (1 + 1 / 16) + 10 * lanes


def test_free_lanes_are_filled_while_others_go_on():
    x, y = flat(*[0.495, 0.495, 0.495, 0.1] * 8)  # three of four leave after two steps
    batches = []
    model = Threshold()
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    catch = hunt(model, x, y, Walk(steps=40), eps=0.5, norm=math.inf, lanes=4)
    needed = 24 * 2 + 8 * 40
    assert needed <= catch.counts["forward"] <= needed * 1.1
    searched = [n for n in batches if n == 4]  # the rest are the last lanes, and looks at what was found
    assert 4 * len(searched) > 0.8 * needed


def test_a_point_fooled_needs_no_further_restart_or_target():
    x, y = flat(0.495, 0.1)
    catch = hunt(Threshold(), x, y, Walk(), eps=0.5, norm=math.inf, lanes=1, restarts=5)
    assert catch.counts["forward"] == 2 + 5 * 10
    targets = torch.tensor([[1, 1, 1], [1, 1, 1]])
    catch = hunt(Threshold(), x, y, Walk(), eps=0.5, norm=math.inf, lanes=1, targets=targets)
    assert catch.counts["forward"] == 2 + 3 * 10
    catch = hunt(Threshold(), x, y, Walk(), eps=0.5, norm=math.inf, lanes=2, restarts=3, stop=False)
    assert catch.counts["forward"] == 2 * 3 * 10
    assert torch.allclose(catch.points[0], torch.tensor(0.595))  # the end of the walk, not its first catch


def test_the_model_has_the_last_word():
    """A stand-in that is wrong too early, or never, changes what is found and never what is claimed."""
    x, y = flat(*torch.linspace(0.3, 0.499, 29).tolist())
    for off in (-0.05, 0.05, -1.0, 1.0):
        model, surrogate = Threshold(0.5), Threshold(0.5 + off)
        catch = hunt(model, x, y, Walk(), eps=0.5, norm=math.inf, lanes=8, surrogate=surrogate)
        wrong = model(catch.points).argmax(1) != y
        assert torch.equal(catch.fooled, wrong)
        assert (catch.counts["denied"] > 0) == (off < 0)
    reaches = (x[:, 0, 0, 0] + 10 * 0.01) > 0.5  # its last point is looked at though the stand-in stays right
    assert torch.equal(catch.fooled, reaches)


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_points_outside_the_ball_are_put_inside_before_they_count(norm):
    x, y = flat(0.45, 0.3)
    eps = {math.inf: 0.06, 2: 0.12, 1: 0.24}[norm]  # a gray shift of 0.06
    catch = hunt(Threshold(), x, y, Walk(0.1, 4), eps=eps, norm=norm, lanes=2)
    assert catch.fooled.tolist() == [True, False]
    gap = torch.linalg.vector_norm((catch.points.double() - x.double()).flatten(1), norm, dim=1)
    assert (gap <= eps).all()
    assert gap.min() > 0.99 * eps
    assert catch.counts["denied"] == 1  # the second point, at 0.6


def test_nan_logits_are_no_success():
    class Breaks(Threshold):
        def forward(self, x):
            logits = super().forward(x)
            return torch.where(x.flatten(1).mean(1, keepdim=True) > 0.45, math.nan, logits)

    x, y = flat(0.4, 0.2)
    catch = hunt(Breaks(), x, y, Walk(), eps=0.5, norm=math.inf)
    assert not catch.fooled.any()
    assert catch.counts["bad_logits"] > 0
    assert catch.points.isfinite().all()


def test_gradients_that_say_nothing_are_noticed():
    class Blind(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * torch.tensor([math.nan, 0.0, 1.0]).view(-1, 1, 1, 1)

    model = nn.Sequential(Threshold())
    model.register_forward_pre_hook(lambda _, inputs: Blind.apply(*inputs))
    x, y = flat(0.2, 0.3, 0.1)
    catch = hunt(model, x, y, Climb(), eps=0.05, norm=math.inf)
    assert catch.watch.broken.tolist() == [True, False, False]
    assert catch.watch.zero.tolist() == [False, True, False]
    assert catch.points.isfinite().all()
    assert (catch.points[2] > x[2]).all()


def test_no_gradient_at_all_is_an_error():
    class Detached(Threshold):
        def forward(self, x):
            return super().forward(x.detach())

    with pytest.raises(AttackError, match="no gradient reaches the inputs"):
        hunt(Detached(), *flat(0.2), Walk(), eps=0.1, norm=math.inf)


def test_each_job_has_its_own_random_numbers_wherever_it_runs():
    x, _ = images(6)
    target, restart = torch.tensor([-1, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 0, 1, 0, 1])
    keys = _keys(x, 3, "a", target, restart)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    assert torch.equal(_keys(x[order], 3, "a", target[order], restart[order]), keys[order])
    assert torch.equal(_keys(x[2:3], 3, "a", target[2:3], restart[2:3]), keys[2:3])
    same = x[:1].expand(6, -1, -1, -1)
    assert len(_keys(same, 3, "a", target, restart).unique()) == 6
    for seed, name in ((4, "a"), (3, "b"), (-1, "a")):
        assert not (_keys(x, seed, name, target, restart) == keys).any()


def test_the_next_search_begins_where_the_one_before_is_under_way():
    x, y = flat(0.4955, 0.4055, 0.1)
    model, batches = Threshold(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    slow, fast = Walk(0.001, 100), Walk(0.01, 30)
    slow.name, fast.name = "slow", "fast"
    catch = hunt_together(model, x, y, [Task(slow), Task(fast)], eps=0.5, norm=math.inf)
    assert catch.by.tolist() == [0, 1, -1]
    assert catch.fooled.tolist() == [True, True, False]
    assert [t.begun.tolist() for t in catch.tallies.values()] == [[1, 1, 1], [0, 1, 1]]
    # the slow one: 6 steps at the first point; 10 more at the second, then 11 beside the fast one; all at the third
    assert catch.tallies["slow"].counts["forward"] == 6 + (6 + 10 + 11) + 100
    assert catch.tallies["fast"].counts["forward"] == 11 + 30
    assert max(batches) == 4  # two points and two searches: one pass for both


def test_the_next_search_waits_while_a_job_of_the_point_waits():
    x, y = flat(0.4055)
    slow, fast = Walk(0.0, 30), Walk(0.01, 30)
    slow.name, fast.name = "slow", "fast"
    first = Task(slow, torch.ones(1, 2, dtype=torch.long), abreast=1)  # two targets, one after the other
    catch = hunt_together(Threshold(), x, y, [first, Task(fast)], eps=0.5, norm=math.inf)
    assert catch.by.tolist() == [1]
    assert catch.tallies["slow"].counts["forward"] == 30 + 10 + 11
    assert catch.tallies["fast"].counts["forward"] == 11


def test_searches_side_by_side_climb_their_own_losses():
    x, y = images(6)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    rise, walk = Climb(), Walk(0.0, 30)
    rise.steps = 30
    alone = hunt(model, x.double(), y, rise, eps=0.1, norm=math.inf, stop=False)
    tasks = [Task(walk), Task(rise)]
    both = hunt_together(model, x.double(), y, tasks, eps=0.1, norm=math.inf, stop=False)
    assert both.tallies["walk"].counts["backward"] == both.tallies["climb"].counts["backward"] == 6 * 30
    assert not torch.equal(alone.points, x.double())
    assert (both.margin >= alone.margin).all()
    better = both.margin == alone.margin
    assert better.any()
    assert torch.equal(both.points[better], alone.points[better])


def test_few_jobs_of_a_point_are_under_way_at_a_time():
    x, y = flat(0.1, 0.2)
    model, batches = Threshold(), []
    model.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    task = Task(Walk(), torch.ones(2, 5, dtype=torch.long), abreast=2)
    catch = hunt_together(model, x, y, [task], eps=0.5, norm=math.inf)
    assert catch.tallies["walk"].begun.tolist() == [5, 5]
    assert catch.counts["forward"] == 2 * 5 * 10
    assert max(batches) == 4


def test_one_each_is_the_largest():
    point, value = torch.tensor([3, 1, 3, 1, 0, 3]), torch.tensor([1.0, 5.0, 4.0, -2.0, 0.0, 2.0])
    assert sorted(_one_each(point, value).tolist()) == [1, 2, 4]
    assert _one_each(point[:0], value[:0]).tolist() == []


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_lanes_are_joined_and_selected_with_their_balls(norm):
    from opnorm.attacks.search import Lanes

    x, y = images(5)
    whole = Lanes(x, y, y, y, y, y, ball(x, EPS[norm], norm))
    first, rest = (
        Lanes(x[s], y[s], y[s], y[s], y[s], y[s], ball(x[s], EPS[norm], norm))
        for s in (slice(2), slice(2, None))
    )
    joined = first.join(rest)
    z = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(joined.region.project(z), whole.region.project(z))
    kept = torch.tensor([True, False, True, True, False])
    assert torch.equal(joined.select(kept).region.project(z[kept]), whole.region.project(z)[kept])
    assert torch.equal(joined.select(kept).x, x[kept])


def test_nothing_to_do():
    x, y = flat(0.2)
    catch = hunt(Threshold(), x[:0], y[:0], Walk(), eps=0.1, norm=math.inf)
    assert catch.points.shape == (0, 1, 2, 2)
    assert catch.counts["forward"] == 0


def test_progress_ends_with_all_points():
    told = []
    x, y = flat(*torch.linspace(0.2, 0.499, 20).tolist())
    hunt(Threshold(), x, y, Walk(), eps=0.5, norm=math.inf, lanes=4, tell=lambda *p: told.append(p))
    settled = [p for p, _ in told]
    assert settled == sorted(settled)
    assert settled[0] == 0
    assert settled[-1] >= 16
    assert {n for _, n in told} == {20}


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("name", ["apgd", "fab", "square"])
def test_a_radius_of_each_point_is_a_hunt_of_its_own(norm, name):
    model, (x, y) = net(0).double().eval(), images(9, dtype=torch.float64)
    with torch.no_grad():
        y = model(x).argmax(1)
    search = {
        "apgd": apgd_search(norm, 20),
        "fab": FAB(norm, targeted=False, steps=10),
        "square": Square(norm, 40),
    }[name]
    radii = torch.tensor([0.5, 1, 2], dtype=torch.float64).repeat_interleave(3) * EPS[norm]
    together = hunt(model, x, y, search, eps=radii, norm=norm, stop=False)
    apart = [
        hunt(model, x[i : i + 3], y[i : i + 3], search, eps=float(radii[i]), norm=norm, stop=False)
        for i in (0, 3, 6)
    ]
    assert torch.allclose(together.points, torch.cat([one.points for one in apart]), rtol=0, atol=1e-7)
    assert torch.equal(together.fooled, torch.cat([one.fooled for one in apart]))


def test_a_point_waits_for_another_to_fall():
    w = torch.ones(1, 4, 4, dtype=torch.float64)
    x = torch.full((4, 1, 4, 4), 0.05, dtype=torch.float64)
    model, y = Linear(w), torch.ones(4, dtype=torch.long)
    with torch.no_grad():
        model.w[0, 0] *= -1
        assert (model(x).argmax(1) == 1).all()  # and so down to a change of 0.025
    eps = torch.tensor([0.1, 0.06, 0.01, 0.5], dtype=torch.float64)
    after = torch.tensor([-1, 0, -1, 2])
    catch = hunt_together(model, x, y, [Task(apgd_search(math.inf, 10))], eps=eps, norm=math.inf, after=after)
    assert catch.fooled.tolist() == [True, True, False, False]
    assert catch.tallies["APGD-CE"].begun.tolist() == [1, 1, 1, 0]


def test_progress_of_two_searches_counts_what_the_first_settles():
    model, (x, y) = net(0).eval(), images(60)
    with torch.no_grad():
        y = model(x).argmax(1)
    told, targets = list[int](), torch.stack([(y + 1) % 3, (y + 2) % 3], 1)
    tasks = [Task(apgd_search(math.inf, 30)), Task(apgd_search(math.inf, 30, "cw", targeted=True), targets)]
    hunt_together(
        model, x, y, tasks, eps=0.5, norm=math.inf, lanes=6, tell=lambda done, count: told.append(done)
    )
    assert told == sorted(told)
    assert told[0] == 0
    assert len({done // 10 for done in told}) >= 5
