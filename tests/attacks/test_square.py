"""Square: its squares, its steps, and what it finds with forward passes alone."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.random import point_keys
from opnorm.attacks._autoattack import AutoAttack
from opnorm.attacks._rows import select
from opnorm.attacks._search import Batch, Response
from opnorm.attacks._square import Square, square
from opnorm.attacks._windows import Window, axis_of
from opnorm.attacks.projections import ball
from opnorm.errors import AttackError
from opnorm.spec import build, spec_of
from tests.attacks.test_batching import run
from tests.attacks.test_contract import exactly_inside, record, same
from tests.attacks.victims import EPS, Linear, images, net
from tests.property_tests import examples

NORMS = (math.inf, 2, 1)


def batch_of(x, norm, eps, seed=0):
    y = torch.zeros(len(x), dtype=torch.long)
    return Batch(x, y, y - 1, y, point_keys(x, seed), torch.full((len(x),), -math.inf), ball(x, eps, norm))


def response(batch, value):
    """With such margins, and no class changed."""
    return Response(torch.zeros(len(batch.y), 3), value, None, len(value))


def advanced(search, batch, state, answer):
    """The state one step on, and its next proposal."""
    state = search.advance(batch, state, answer)
    state.z = search.proposal(batch, state.best, state.k)
    return state


# ---------------------------------------------------------------- squares


@examples(60)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(1, 6), st.integers(0, 2**32))
def test_windows_and_bumps_against_loops(sizes, side, seed):
    """Segments, squares, cubes, and windows of four axes."""
    side, axes = min(side, *sizes), len(sizes)
    u = torch.rand(3, axes + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    window, along = Window.drawn(u, torch.full((3,), side), sizes), axis_of(u[:, axes], axes)
    mask, bumps, half = window.mask(), window.bumps(along), side // 2
    for i, position in itertools.product(range(3), itertools.product(*map(range, sizes))):
        place = [
            at - int(u[i, axis] * (n - side + 1))
            for axis, (at, n) in enumerate(zip(position, sizes, strict=True))
        ]
        inside = all(0 <= p < side for p in place)
        assert bool(mask[(i, 0, *position)]) == inside
        if inside:
            first = place.pop(int(along[i]))
            middle = half + (side - half) // 2 if first >= half else half // 2
            away = max([abs(first - middle), *(abs(p - half) for p in place)])
            pyramid = sum(1 / (j + 1) ** 2 for j in range(away, half + 1))
            assert float(bumps[(i, 0, *position)]) == pytest.approx(-pyramid if first >= half else pyramid)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_bumps_lie_side_by_side_along_each_axis_equally_often(axes):
    counts = axis_of((torch.arange(600, dtype=torch.float64) + 0.5) / 600, axes).bincount(minlength=axes)
    assert counts.tolist() == [600 // axes] * axes


def test_every_position_is_equally_likely_also_the_last():
    x = torch.zeros(4000, 1, 5, 4)
    keys = torch.arange(4000) * 7919
    batch = Batch(
        x, *[torch.zeros(4000, dtype=torch.long)] * 3, keys, torch.zeros(4000), ball(x, 0.1, math.inf)
    )
    search = Square(math.inf)
    state = replace(search.start(batch), k=torch.full((4000,), 2000))  # squares of one pixel
    state = advanced(search, batch, state, response(batch, torch.ones(4000)))
    changed = (state.z != state.best).flatten(1)
    assert (changed.sum(1) == 1).all()
    share = changed.float().mean(0)
    assert (share - 0.05).abs().max() < 5 * math.sqrt(0.05 * 0.95 / 4000)


def test_the_schedule():
    def side(query, queries, sizes, norm):
        done = query * 10000 // queries
        p = 0.8
        for limit in (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000):
            p /= 2 if done > limit else 1
        s = max(round((p * math.prod(sizes)) ** (1 / len(sizes))), 1)
        if norm != math.inf:
            s = max(s, 3 if min(sizes) >= 5 else 1)
            s += 1 - s % 2
        return min(s, *sizes)

    shapes = ((28, 28), (32, 32), (1, 1), (2, 2), (1, 7), (5, 3), (1,), (90,), (9, 9, 9), (4, 30, 30))
    for norm, queries, sizes in itertools.product(NORMS, (7, 500, 5000, 10000), shapes):
        at = torch.tensor(
            sorted({1, 2, 3, 5, 6, 25, 26, 100, 101, 251, 4000, 4001, queries} & set(range(queries + 1)))
        )
        got = Square(norm, queries).side(at, sizes)
        assert got.tolist() == [side(k, queries, sizes, norm) for k in at.tolist()]


# ---------------------------------------------------------------- steps


@pytest.mark.each_value
@pytest.mark.parametrize(
    "shape",
    [
        (1, 6, 6),
        (3, 6, 9),
        (2, 4, 3),
        (1, 1, 1),
        (3, 2, 2),
        (1, 1, 7),
        (3, 28, 28),
        (12,),
        (1,),
        (2, 9),
        (2, 5, 5, 6),
        (1, 2, 2, 2),
    ],
)
@pytest.mark.parametrize("norm", NORMS)
def test_proposals_stay_in_the_ball_and_change_two_squares_at_most(norm, shape):
    """Also on images of few pixels, where a fifth of the width is nothing."""
    eps = 2 * EPS[norm]
    x, _ = images(16, shape)
    rounding = 2**-24 * x[0].numel() ** (0 if norm == math.inf else 1 / norm)
    batch, search = batch_of(x, norm, eps), Square(norm, 40)
    state = search.start(batch)
    generator = torch.Generator().manual_seed(0)
    for k in range(40):
        z, before = state.z, state.best
        assert z.isfinite().all()
        assert ((z >= 0) & (z <= 1)).all()
        length = torch.linalg.vector_norm((z.double() - x.double()).flatten(1), norm, dim=1)
        assert (length <= eps * (1 + 1e-6) + rounding).all()
        if norm == math.inf:
            assert torch.equal(z, batch.ball.project(z))
        if k:
            changed = z != before if len(shape) == 1 else (z != before).any(1).flatten(1)
            changed, sizes = changed.sum(1), shape[1:] or shape
            windows = search.side(state.k, sizes) ** len(sizes) * (1 if norm == math.inf else 2)
            assert (changed <= windows).all()
            if norm == math.inf:
                assert (changed > 0).all()  # no query is wasted on what is known
        state = advanced(search, batch, state, response(batch, torch.rand(16, generator=generator)))


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 7, 9), (3, 2, 2), (2, 1, 1), (11,), (3, 8), (2, 3, 5, 4)])
@pytest.mark.parametrize("norm", [2, 1])
def test_away_from_the_box_no_length_is_lost(norm, shape):
    x = torch.full((20, *shape), 0.5) + 0.01 * images(20, shape)[0]
    eps = 0.3
    batch, search = batch_of(x, norm, eps), Square(norm, 100)
    state = search.start(batch)
    for k in range(100):
        d = (state.z.double() - x.double()).flatten(1)
        assert torch.allclose(
            torch.linalg.vector_norm(d, norm, dim=1), torch.full((20,), eps).double(), rtol=5e-5
        )
        state = advanced(search, batch, state, response(batch, torch.full((20,), float(k))))


@pytest.mark.parametrize("norm", NORMS)
def test_what_is_worse_is_not_kept(norm):
    x, _ = images(4, (1, 6, 6))
    batch, search = batch_of(x, norm, 0.1), Square(norm, 20)
    state = search.start(batch)
    first = state.z
    state = advanced(search, batch, state, response(batch, torch.zeros(4)))
    second = state.z
    state = advanced(search, batch, state, response(batch, torch.tensor([1.0, -1.0, math.nan, 0.0])))
    assert torch.equal(state.best, torch.cat([second[:1], first[1:]]))
    assert state.margin.tolist() == [1, 0, 0, 0]
    assert torch.equal(search.final_iterate(batch, state), state.best)


def test_each_row_has_its_own_square_and_phase():
    x = images(1, (1, 8, 8))[0].repeat(30, 1, 1, 1)
    keys = torch.arange(30) * 7919
    batch = replace(batch_of(x, math.inf, 0.1), keys=keys)
    search = Square(math.inf, 100)
    state = search.start(batch)
    assert len(state.z.flatten(1).unique(dim=0)) > 25
    state.k = torch.arange(30) * 3
    alone = []
    for i in range(30):
        row = torch.tensor([i])
        one, state_of_it = select(batch, row), select(state, row)
        alone.append(advanced(search, one, state_of_it, response(one, torch.ones(1))).z)
    together = advanced(search, batch, state, response(batch, torch.ones(30))).z
    assert torch.equal(together, torch.cat(alone))


# ---------------------------------------------------------------- the attack


def test_the_features_of_a_vector_have_no_neighbors():
    """Two features are in the same window as often as any other two."""
    x, rows = torch.full((1, 8), 0.5), 4000
    batch = replace(batch_of(x.repeat(rows, 1), math.inf, 0.1), keys=torch.arange(rows) * 7919)
    search = Square(math.inf, 5000)
    before = search.start(batch).best
    k = torch.full((rows,), 30)  # windows of three features: round(0.8 · 8 / 2)
    assert search.side(k, (8,)).unique().tolist() == [2]
    z = search.proposal(batch, batch.x, k)
    changed = (z != batch.x).double()
    assert (changed.sum(1) == 2).all()
    together = (changed.T @ changed) / rows
    pairs = together[~torch.eye(8, dtype=torch.bool)]
    share = 1 / 28  # of all pairs
    assert (pairs - share).abs().max() < 5 * math.sqrt(share / rows)
    assert before.shape == x.repeat(rows, 1).shape


@pytest.mark.each_value
@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 2), (1, 1, 1), (16,), (2, 8), (1, 2, 3, 3)])
@pytest.mark.parametrize("norm", NORMS)
def test_near_the_optimum_of_linear_models(norm, shape):
    w = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    x, y = images(20, shape, low=0.4, high=0.6)
    y, eps = y % 2, EPS[norm]
    z = square(norm, eps, queries=250, stop_at_success=False)(Linear(w), x, y)
    towards = torch.where(y == 0, 1.0, -1.0).view(-1, *[1] * len(shape)) * w
    gain = ((z - x) * towards).flatten(1).sum(1)
    share = gain / (eps * torch.linalg.vector_norm(w, {math.inf: 1, 2: 2, 1: math.inf}[norm]))
    assert share.max() <= 1 + 1e-5
    # for ℓ2 and ℓ1 a pixel gives all of its length or none, so a few queries do not share it out finely
    enough = {math.inf: 1 - 1e-4, 2: 0.5, 1: 0.4}[norm] if shape != (1, 1, 1) else 1 - 1e-4
    assert share.min() >= enough


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("norm", NORMS)
def test_points_are_exactly_inside(norm, dtype):
    x, y = images(12, dtype=dtype)
    x[0], x[1], x[2, 0, 0, 0] = 0, 1, 0
    model = net(dtype=dtype).eval()
    for eps, stop, restarts in ((EPS[norm], True, 2), (0.9, False, 1), (1e-3, True, 1)):
        z = square(norm, eps, 12, restarts=restarts, stop_at_success=stop)(model, x, y)
        assert z.dtype == dtype
        exactly_inside(x, z, eps, norm)
        wrong = model(x).argmax(1) != y
        assert not stop or torch.equal(z[wrong], x[wrong])


class QueriesOnly(nn.Module):
    """Refuses to be differentiated, and counts what it is asked."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, x):
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        self.asked += len(x)
        return self.inner(x)


@pytest.mark.parametrize("norm", NORMS)
def test_queries_alone_and_no_more_than_allowed(norm):
    model = QueriesOnly(net().eval())
    x, _ = images(6)
    with torch.no_grad():
        y = model(x).argmax(1)
    model.asked = 0
    square(norm, 1e-4, queries=20, restarts=2)(model, x, y)
    assert model.asked == 6 * (1 + 2 * (20 + 1))  # the clean point, and each end
    model.asked = 0
    square(norm, 1e-4, queries=20)(model, x, (y + 1) % 3)
    assert model.asked == 6  # wrong by nature


@pytest.mark.each_value
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("stop", [True, False])
def test_points_do_not_depend_on_batch_or_order(norm, stop):
    """Sums of integers in float64 are exact, so the model's own rounding cannot hide a difference."""
    w = torch.randint(-8, 9, (1, 4, 4), generator=torch.Generator().manual_seed(3)).double() / 64
    model = Linear(w)
    x, y = images(16)
    x, y = x.double(), y % 2
    attack = square(norm, EPS[norm], 15, restarts=2, stop_at_success=stop)
    together = attack(model, x, y)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(attack(model, x[order], y[order]), together[order], atol=1e-12)
    for i in range(0, 16, 4):
        assert torch.allclose(attack(model, x[i : i + 1], y[i : i + 1])[0], together[i], atol=1e-12)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_seeds_give_equal_bits_and_others_do_not(norm):
    model, (x, y) = net(), images(6)
    first = square(norm, EPS[norm], 10, stop_at_success=False, seed=5)
    want = first(model, x, y)
    torch.manual_seed(99)
    assert torch.equal(first(model, x, y), want)
    assert torch.equal(square(norm, EPS[norm], 10, stop_at_success=False)(model, x, y, seed=5), want)
    other = square(norm, EPS[norm], 10, stop_at_success=False, seed=6)(model, x, y)
    assert sum((a != b).any() for a, b in zip(other, want, strict=True)) >= 5


@pytest.mark.parametrize("mode", ["eval", "train", "as is"])
def test_nothing_is_disturbed(mode):
    model, (x, y) = net(), images(6)
    model.train()
    model[1].eval()
    model(x).sum().backward()
    before, inputs = record(model), x.clone()
    square(queries=5, mode=mode)(model, x, y)
    after = record(model)
    del before["python"]  # the checks of shapes and types in tests draw from it
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, inputs)


def test_nothing_to_do():
    model, (x, y) = net(), images(4)
    for attack in (square(eps=0), square(queries=0)):
        z = attack(model, x, y)
        assert torch.equal(z, x)
        assert z.data_ptr() != x.data_ptr()
    assert square()(model, x[:0], y[:0]).shape == (0, 1, 4, 4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"norm": 3}, "norm=3: expected 1, 2 or inf"),
        ({"eps": -1}, "eps=-1: expected a radius"),
        ({"eps": 8}, "did you mean 8/255"),
        ({"queries": 1.5}, "queries=1.5: expected a whole number"),
        ({"queries": -1}, "queries=-1: expected"),
        ({"restarts": 0}, "restarts=0"),
        ({"mode": "test"}, "mode='test': expected 'eval'"),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    with pytest.raises(AttackError, match=message):
        square(**wrong)


def test_bad_models_and_inputs():
    x, y = images(4)
    with pytest.raises(AttackError, match="inputs range from"):
        square()(net(), x * 2, y)
    with pytest.raises(AttackError, match="the model returns NaN"):
        square()(nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Threshold(math.inf, math.nan)), x, y)


def test_its_text():
    attack = square(norm=2, eps=0.5, queries=100)
    assert str(spec_of(attack)) == "square(norm=2, eps=0.5, queries=100)"
    assert callable(build("square(queries=5)"))


def smooth(seed=0):
    """A network and three points that it gets right."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 20), nn.Tanh(), nn.Linear(20, 3)).double().eval()
    x, _ = images(3, dtype=torch.float64)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def counted(model, x, y, search, **settings):
    """The result, and the number of points in each batch."""
    sizes = list[int]()
    handle = model.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    result = run(model, x, y, search, **settings)
    handle.remove()
    counts = result.records[0].counts
    assert counts["forward"] + counts["confirmations"] == sum(sizes)
    return result, sizes


@pytest.mark.each_value
@pytest.mark.parametrize("norm", [math.inf, 2, 1])
@pytest.mark.parametrize("patience", [math.inf, 3])
@pytest.mark.parametrize("factor", [0.25, 2])
@pytest.mark.parametrize("stop", [True, False])
def test_several_queries_at_a_time_are_one_after_another(norm, patience, factor, stop):
    model, x, y = smooth()
    eps, found, batches = factor * EPS[norm], [], []
    for full in (1, 64):
        result, sizes = counted(
            model, x, y, Square(norm, 150, patience, full), eps=eps, norm=norm, stop_at_success=stop, batch=2
        )
        assert max(sizes) <= max(full, 2)
        found.append(result)
        batches.append(len(sizes))
    one, several = found
    # a proposal that changes nothing but a rounding error, in the one case, may be taken in the other
    assert torch.allclose(several.points, one.points, atol=1e-9)
    assert torch.allclose(several.margin, one.margin, atol=1e-6)
    assert torch.equal(several.misclassified, one.misclassified)
    assert several.records[0].counts["stopped_early"] == one.records[0].counts["stopped_early"]
    assert several.records[0].counts["forward"] <= 1.7 * one.records[0].counts["forward"]
    if patience == math.inf and not one.misclassified.any():
        assert batches[1] < 0.7 * batches[0]


def test_misclassified_points_have_one_query_at_a_time():
    model, x, y = smooth()
    (one, _), (several, _) = (
        counted(model, x, y, Square(math.inf, 400, full=full), eps=0.8, stop_at_success=False)
        for full in (1, 64)
    )
    assert one.misclassified.all()
    assert several.records[0].counts["forward"] < 1.1 * one.records[0].counts["forward"]


def test_a_job_that_has_ended_makes_no_step():
    model, x, y = smooth()
    batch, search = replace(batch_of(x, math.inf, 0.01), y=y), Square(math.inf, 400)
    state = replace(search.start(batch), k=torch.tensor([400, 399, 300]), margin=-torch.ones(3))
    got = search.query(model, batch, state)
    assert (state.k[:2] == torch.tensor([400, 399])).all()
    assert got.forward == 3 * 11


def test_batches_are_no_larger_than_those_of_autoattack():
    model, x, y = smooth()
    sizes = list[int]()
    model.register_forward_hook(lambda _, inputs, out: sizes.append(len(inputs[0])))
    AutoAttack(eps=0.001, attacks=("square",), batch=2, patience=30).evaluate(model, x, y)
    assert max(sizes) == 2


def test_every_misclassified_query_is_confirmed():
    class Sure(nn.Module):  # of the first class, and its surrogate of the second
        def __init__(self, sign):
            super().__init__()
            self.sign = sign

        def forward(self, x):
            score = self.sign * (2 + x.flatten(1).mean(1))
            return torch.stack([score, -score], 1)

    (x, _), y = images(3), torch.zeros(3, dtype=torch.long)
    result = run(Sure(1), x, y, Square(math.inf, 200), eps=0.1, surrogate=Sure(-1))
    counts = result.records[0].counts
    assert not result.misclassified.any()
    assert counts["rejected"] == 3 * 200
    assert counts["confirmations"] == 3 * 201  # and the end of each search
