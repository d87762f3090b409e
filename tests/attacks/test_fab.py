"""FAB: how close it comes to the closest point of another class, and what it costs."""

import math
import warnings

import pytest
import torch
from torch import nn

from opnorm._core.random import point_keys
from opnorm.attacks._batching import Searches
from opnorm.attacks._fab import FAB, fab
from opnorm.attacks._search import Batch
from opnorm.attacks.losses import rank_targets
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError
from opnorm.spec import build, spec_of
from tests.attacks.test_batching import run
from tests.attacks.test_contract import exactly_inside, record, same
from tests.attacks.test_hyperplanes import distance_to_plane
from tests.attacks.victims import EPS, images, net

NORMS = (math.inf, 2, 1)


class Classes(nn.Module):
    """Logits that are linear in the pixels; counts the points that it is asked for."""

    def __init__(self, classes=4, pixels=16, dtype=torch.float32, seed=1):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randint(-64, 65, (classes, pixels), generator=generator).to(dtype) / 64)
        self.asked = 0

    def forward(self, x):
        self.asked += len(x)
        return x.flatten(1).to(self.w.dtype) @ self.w.T


def true_distances(model, x, y, norm):
    """Of each point, to the closest of the planes between its class and another, within the box."""
    w, best = model.w.detach().double(), []
    for point, label in zip(x.double().flatten(1), y.tolist(), strict=True):
        gaps = [
            distance_to_plane(
                point.tolist(), (w[k] - w[label]).tolist(), float((w[k] - w[label]) @ point), norm
            )
            for k in range(len(w))
            if k != label
        ]
        best.append(min(math.inf if g is None else g for g in gaps))
    return torch.tensor(best, dtype=torch.float64)


@pytest.mark.each_pair
@pytest.mark.parametrize("targets", [9, 0])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("classes", [2, 4])
def test_the_distance_of_linear_models(norm, targets, classes):
    """Also where the box is in the way; never below the truth, and at most 1 % above.

    But for ℓ1 without targets: which class is closest is measured without the box, and that may be another one.
    """
    model = Classes(classes)
    x, _ = images(40)
    x[0, 0, 1:], x[1] = 0, 1
    y = model(x).argmax(1)
    true = true_distances(model, x, y, norm)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closest = fab(norm, steps=20, targets=targets).closest(model, x, y)
    assert closest.points.dtype == x.dtype
    assert closest.distance.dtype == torch.float64
    assert ((closest.points >= 0) & (closest.points <= 1)).all()
    sure = true > 1e-4  # else it is a matter of rounding
    assert (model(closest.points).argmax(1) != y)[closest.distance < math.inf].all()
    gaps = torch.linalg.vector_norm((closest.points.double() - x.double()).flatten(1), norm, dim=1)
    assert torch.equal(closest.distance[true < math.inf], gaps[true < math.inf])
    share = (closest.distance / true)[sure & (true < math.inf)]
    assert len(share) > 35
    assert share.min() >= 1 - 1e-5
    assert share.max() <= (1.05 if norm == 1 and not targets else 1.01)
    assert closest.distance[true == math.inf].eq(math.inf).all()


@pytest.mark.parametrize("targets", [9, 0])
@pytest.mark.parametrize("norm", NORMS)
def test_an_attack_succeeds_just_beyond_the_distance_and_not_below(norm, targets):
    model = Classes()
    x, _ = images(60)
    y = model(x).argmax(1)
    true = true_distances(model, x, y, norm)
    eps = float(true[true > 1e-3].median())
    z = fab(norm, eps, steps=20, targets=targets)(model, x, y)
    misclassified = model(z).argmax(1) != y
    assert misclassified[true < 0.98 * eps].all()
    assert not misclassified[true > eps].any()
    assert 10 < misclassified.sum() < 50
    exactly_inside(x, z, eps, norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_points_of_any_type_are_exactly_inside(norm, dtype):
    x, _ = images(12, dtype=dtype)
    x[0], x[1] = 0, 1
    model = net(dtype=dtype).eval()
    y = model(x).argmax(1)
    for restarts, targets in ((1, 9), (2, 0)):
        z = fab(norm, EPS[norm], steps=4, restarts=restarts, targets=targets)(model, x, y)
        assert z.dtype == dtype
        exactly_inside(x, z, EPS[norm], norm)
        closest = fab(norm, EPS[norm], steps=4, restarts=restarts, targets=targets).closest(model, x, y)
        assert closest.points.dtype == dtype
        assert ((closest.points >= 0) & (closest.points <= 1)).all()
        assert (model(closest.points).argmax(1) != y)[closest.distance < math.inf].all()


@pytest.mark.each_value
@pytest.mark.parametrize("targets", [9, 0])
@pytest.mark.parametrize("norm", NORMS)
def test_points_do_not_depend_on_batch_or_order(norm, targets):
    """Sums of such numbers are exact in the model, so its own rounding cannot hide a difference."""
    model, order = (
        Classes(dtype=torch.float64),
        torch.randperm(12, generator=torch.Generator().manual_seed(0)),
    )
    x = (images(12)[0] * 64).round().double() / 64
    y = model(x).argmax(1)
    attack = fab(norm, 0.05, steps=5, restarts=2, targets=targets, seed=3)
    whole = attack.closest(model, x, y)
    assert torch.equal(attack.closest(model, x, y).points, whole.points)
    other = attack.closest(model, x[order], y[order])
    assert torch.allclose(other.distance, whole.distance[order], rtol=1e-9)
    for i in range(0, 12, 4):
        one = attack.closest(model, x[i : i + 1], y[i : i + 1])
        assert torch.allclose(one.distance, whole.distance[i], rtol=1e-9)
    misclassified = model(attack(model, x, y)).argmax(1) != y
    for i in range(0, 12, 4):
        assert (model(attack(model, x[i : i + 1], y[i : i + 1])).argmax(1) != y[i]) == misclassified[i]


def curved():
    """A network with many linear pieces within reach."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)
    )
    with torch.no_grad():
        net[1].weight.mul_(10)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
        net[3].weight.mul_(3)
    return net


def test_seeds_matter_from_the_second_restart_on():
    model, (x, _) = curved(), images(40)
    y = model(x).argmax(1)
    first = fab(eps=0.2, steps=30, targets=1).closest(model, x, y)
    assert torch.equal(fab(eps=0.2, steps=30, targets=1, seed=5).closest(model, x, y).points, first.points)
    more = fab(eps=0.2, steps=30, targets=1, restarts=3).closest(model, x, y)
    assert (more.distance <= first.distance * 1.002).all()  # the last bisection may end one way or the other
    assert (more.distance < 0.99 * first.distance).any()
    other = fab(eps=0.2, steps=30, targets=1, restarts=3, seed=5)
    assert torch.equal(other.closest(model, x, y, seed=0).points, more.points)
    assert not torch.equal(other.closest(model, x, y).points, more.points)


def batch_of(model, x, norm, restart=0):
    y = model(x).argmax(1)
    target = rank_targets(model(x), y, 1)[:, 0]
    again = torch.full_like(y, restart)
    return Batch(x, y, target, again, point_keys(x, 0), torch.full((len(x),), -math.inf), ball(x, 0.1, norm))


@pytest.mark.parametrize("norm", NORMS)
def test_the_closest_class_is_found_from_all_gradients(norm):
    model, (x, _) = Classes(5), images(20)
    batch = batch_of(model, x, norm)
    search = FAB(norm, targeted=False)
    response = search.query(model, batch, search.start(batch))
    w, dual = model.w.detach(), {math.inf: 1, 2: 2, 1: math.inf}[norm]
    for i, label in enumerate(batch.y.tolist()):
        slopes = torch.cat([w[:label], w[label + 1 :]]) - w[label]
        away = (slopes @ x[i].flatten()).abs() / torch.linalg.vector_norm(slopes, dual, dim=1)
        assert torch.allclose(response.grad[i].flatten(), slopes[away.argmin()])
        assert response.loss[i] == pytest.approx(float(slopes[away.argmin()] @ x[i].flatten()), abs=1e-5)


@pytest.mark.parametrize("norm", NORMS)
def test_one_step_of_the_formula(norm):
    """Of a linear model whose planes are met before the box is."""
    model = Classes(2, dtype=torch.float64)
    x = images(6, low=0.45, high=0.55, dtype=torch.float64)[0]
    batch = batch_of(model, x, norm)
    search = FAB(norm)
    start = search.start(batch)
    state = search.advance(batch, start, search.query(model, batch, start))
    gap = model(state.z).diff(dim=1)[:, 0] / model(x).diff(dim=1)[:, 0]
    assert torch.allclose(gap, torch.full_like(gap, -0.05), atol=1e-9)  # 5 % beyond the plane
    response = search.query(model, batch, state)
    back = x + 0.9 * (state.z - x)
    assert torch.allclose(
        response.loss, (model(back) * torch.where(batch.y[:, None] == 0, 1, -1)).diff(dim=1)[:, 0]
    )
    state = search.advance(batch, state, response)
    assert torch.allclose(
        state.distance, torch.linalg.vector_norm(((back - x) / 0.9).flatten(1), norm, dim=1)
    )
    # of the gap at x, 1 - 0.9 · 1.05 is left at the point drawn back; both steps overshoot by 5 % of what they go
    left = 1 - 0.9 * 1.05
    bias = left / (left + 1)
    gap = model(state.z).diff(dim=1)[:, 0] / model(x).diff(dim=1)[:, 0]
    assert bias < 0.1
    assert torch.allclose(gap, torch.full_like(gap, -0.05 * ((1 - bias) * left + bias)), atol=1e-9)


def test_a_step_evaluates_twice():
    model, (x, _) = Classes(), images(8)
    batch, search = batch_of(model, x, math.inf), FAB(math.inf)
    model.asked = 0
    search.query(model, batch, search.start(batch))
    assert model.asked == 16


def test_the_first_try_is_from_the_point_and_others_from_around_it():
    model, (x, _) = Classes(), images(8)
    search = FAB(2)
    assert torch.equal(search.start(batch_of(model, x, 2)).z, x)
    z = search.start(batch_of(model, x, 2, restart=1)).z
    length = torch.linalg.vector_norm((z - x).flatten(1), dim=1)
    assert ((length > 0) & (length <= 0.25)).all()


def test_the_result_of_a_job_is_its_closest_crossing():
    model, (x, _) = Classes(), images(8)
    batch, search = batch_of(model, x, 2), FAB(2)
    state = search.start(batch)
    assert torch.equal(search.final_iterate(batch, state), x)
    for _ in range(5):
        state = search.advance(batch, state, search.query(model, batch, state))
    state.distance[0] = math.inf
    last = search.final_iterate(batch, state)
    assert torch.equal(last[0], state.z[0])
    assert torch.equal(last[1:], state.best[1:])
    assert (last[1:] != state.z[1:]).any()


def test_a_search_without_success():
    model, (x, _) = Classes(), images(8)
    y = model(x).argmax(1)
    eps = 0.5 * float(true_distances(model, x, y, math.inf).min())
    result = run(model, x, y, Searches(FAB(math.inf, steps=10), targets=3), eps=eps)
    assert not result.misclassified.any()
    assert result.records[0].counts["forward"] == 2 * 8 * 3 * 11
    exactly_inside(x, result.points, eps, math.inf)
    assert (result.points != x).flatten(1).any(1).all()


# ---------------------------------------------------------------- what is wrong, blind or out of reach


def test_misclassified_points_are_at_distance_zero():
    model, (x, _) = Classes(), images(10)
    y = model(x).argmax(1)
    wrong = torch.arange(10) % 3 == 0
    labels = torch.where(wrong, (y + 1) % 4, y)
    for targets in (9, 0):
        closest = fab(steps=5, targets=targets).closest(model, x, labels)
        assert torch.equal(closest.distance == 0, wrong)
        assert torch.equal(closest.points[wrong], x[wrong])
        assert torch.equal(fab(0.0 + 2, 1.0, targets=targets)(model, x, labels)[wrong], x[wrong])
    none = fab().closest(model, x, (y + 1) % 4)
    assert (none.distance == 0).all()
    assert fab().closest(model, x[:0], y[:0]).points.shape == (0, 1, 4, 4)
    assert torch.equal(fab(eps=0)(model, x, y), x)


class Wrap(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.inner, self.change = Classes(), change

    def forward(self, x):
        return self.change(self.inner(x))


class NaNWhereBright(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return torch.where(x[:, :, :1, :1] > 0.6, math.nan, grad)


class Brittle(Classes):
    def forward(self, x):
        return super().forward(NaNWhereBright.apply(x))


@pytest.mark.parametrize("targets", [9, 0])
def test_gradients_without_direction_are_warned_of(targets):
    x, _ = images(4)
    x[:, 0, 0, 0] = torch.tensor([0.9, 0.1, 0.9, 0.1])
    flat = Wrap(lambda z: z.round() * 0 + torch.tensor([1.0, 0, 0, 0]))
    y = torch.zeros(4, dtype=torch.long)
    with pytest.warns(UserWarning, match="exactly zero for 4 of 4 points"):
        closest = fab(steps=3, targets=targets).closest(flat, x, y)
    assert closest.distance.eq(math.inf).all()
    assert torch.equal(closest.points, x)
    broken = Brittle()
    y = broken(x).argmax(1)
    for act in (fab(steps=3, targets=targets), fab(steps=3, targets=targets).closest):
        with pytest.warns(UserWarning, match="NaN or infinite for 2 of 4 points"):
            act(broken, x, y)


def test_nan_logits_are_no_other_class():
    model, (x, _) = Classes(), images(6)
    y = model(x).argmax(1)
    brittle = Wrap(lambda z: torch.where(z.argmax(1, keepdim=True) == y[: len(z), None], z, math.nan))
    brittle.inner = model
    same_class = y == y[0]
    closest = fab(steps=3, targets=1).closest(brittle, x[:1], y[:1])
    assert closest.distance.eq(math.inf).all()
    assert closest.points.isfinite().all()
    assert same_class.any()


@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
@pytest.mark.parametrize("targets", [9, 0])
def test_nothing_is_disturbed(mode, targets):
    model, (x, y) = net(), images(6)
    model.train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model(x).sum().backward()
    model[5].bias.grad = None
    before, inputs = record(model), x.clone()
    attack = fab(mode=mode, steps=3, restarts=2, targets=targets)
    attack(model, x, y)
    with torch.no_grad():
        attack.closest(model, x.clone().requires_grad_(), y)
    after = record(model)
    del before["python"]  # the checks of shapes and types in tests draw from it
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, inputs)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 3}, "norm=3: expected 1, 2 or inf"),
        ({"eps": -1}, "eps=-1: expected a radius"),
        ({"eps": math.nan}, "eps=nan"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"steps": 1.5}, "steps=1.5: expected a whole number"),
        ({"restarts": 0}, "restarts=0"),
        ({"targets": -1}, "targets=-1: expected a whole number, at least 0"),
        ({"targets": True}, "targets=True"),
        ({"mode": "test"}, "mode='test': expected 'eval'"),
        ({"seed": 0.5}, "seed=0.5"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(AttackError, match=message):
        fab(**wrong)


@pytest.mark.parametrize("targets", [9, 0])
def test_bad_models_and_inputs(targets):
    x, y = images(4)
    attack = fab(steps=2, targets=targets)
    for act in (attack, attack.closest):
        with pytest.raises(AttackError, match="inputs range from"):
            act(Classes(), x * 2, y)
        with pytest.raises(AttackError, match="the model returns NaN"):
            act(Wrap(lambda z: z * math.nan), x, y)
        detached = Wrap(lambda z: z.detach())
        with pytest.raises(AttackError, match="no gradient reaches the inputs"):
            act(detached, x, detached(x).argmax(1))


def test_its_text():
    attack = fab(norm=2, eps=0.5, targets=0)
    assert str(spec_of(attack)) == "fab(norm=2, eps=0.5, targets=0)"
    assert build("fab(steps=5, eps=0.3)").eps == 0.3
