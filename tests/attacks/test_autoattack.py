"""AutoAttack: its verdicts are those of the model as given, whatever the batch."""

import importlib
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from opnorm._core.confidence import confidence_interval
from opnorm.attacks._autoattack import AutoAttack, autoattack
from opnorm.attacks._batching import Options, Problem, Searches, SearchResult
from opnorm.attacks._randomized import MeanProbabilities
from opnorm.attacks._square import Square
from opnorm.attacks.losses import margin
from opnorm.attacks.result import AttackResult
from opnorm.errors import AttackError, ModelError
from opnorm.spec import build, spec_of
from tests.attacks.test_batching import Shift
from tests.attacks.test_contract import exactly_inside, record, same
from tests.attacks.victims import EPS, images, net

module = importlib.import_module("opnorm.attacks._autoattack")  # the package has the factory under this name

GRADIENTS = ("apgd-ce", "apgd-t")  # the two fast ones


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """All attacks with few steps: what they find is tested elsewhere."""
    search = module.apgd_search
    monkeypatch.setattr(module, "apgd_search", lambda norm, **k: search(norm, steps=10, **k))


def trained(classes=5, dtype=torch.float32, seed=0):
    """A small network, and points of which it gets about nine in ten right."""
    model = net(seed, classes, dtype)
    x, _ = images(60, dtype=dtype)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    y[::10] = (y[::10] + 1) % classes
    return model, x, y


@pytest.mark.parametrize("norm", [math.inf, 2, 1])
def test_what_it_claims_is_so(norm):
    model, x, y = trained()
    result = AutoAttack(norm, EPS[norm], attacks=GRADIENTS).evaluate(model, x, y)
    assert result.correct.tolist() == [i % 10 != 0 for i in range(60)]
    assert torch.equal(result.misclassified, (model(result.points).argmax(1) != y) & result.correct)
    assert 0 < result.misclassified.sum() < result.correct.sum()
    exactly_inside(x, result.points, EPS[norm], norm)
    assert torch.equal(result.points[~result.misclassified], x[~result.misclassified])
    assert torch.equal(result.stage_index >= 0, result.misclassified)
    tried = int(result.correct.sum())
    for i, stage in enumerate(result.stages):
        assert stage.attacked == tried
        assert stage.misclassified == (result.stage_index == i).sum()
        assert stage.cpu_seconds > 0
        tried -= stage.misclassified
    assert result.clean_accuracy == pytest.approx(0.9)
    assert result.robust_accuracy == pytest.approx(tried / 60)
    low, high = result.interval
    assert low < result.robust_accuracy < high
    assert [stage.name for stage in result.stages] == ["APGD-CE", "APGD-T"]
    assert [stage.searches for stage in result.stages] == [5 if norm == 1 else 1, 4]


def test_the_attack_is_its_points():
    model, x, y = trained()
    attack = AutoAttack(attacks=GRADIENTS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # five classes have four targets
        assert torch.equal(attack(model, x, y), attack.evaluate(model, x, y).points)
        assert torch.equal(attack(model, x, y, seed=1), AutoAttack(attacks=GRADIENTS, seed=1)(model, x, y))


def test_verdicts_do_not_depend_on_batch_or_order():
    model, x, y = trained(dtype=torch.float64)
    x, y = x[:12], y[:12]
    attack = AutoAttack(math.inf, 0.1, attacks=GRADIENTS)
    want = attack.evaluate(model, x, y)
    assert 1 < want.misclassified.sum() < 11
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    for batch in (1, 12):  # which attack comes first may depend on it, where both would find a point
        result = replace(attack, batch=batch).evaluate(model, x[order], y[order])
        assert torch.equal(result.misclassified, want.misclassified[order])
    parts = [attack.evaluate(model, a, b) for a, b in zip(x.split(5), y.split(5), strict=True)]
    assert torch.equal(torch.cat([part.misclassified for part in parts]), want.misclassified)
    assert torch.equal(attack.evaluate(model, x, y).points, want.points)


def test_stages_do_not_share_random_numbers_and_may_be_chosen():
    model, x, y = trained(dtype=torch.float64)
    both = AutoAttack(math.inf, 0.1, attacks=GRADIENTS).evaluate(model, x, y)
    second = AutoAttack(math.inf, 0.1, attacks=GRADIENTS[1:]).evaluate(model, x, y)
    assert (
        second.misclassified | (both.stage_index == 0) | ~both.misclassified
    ).all()  # what APGD-T finds, it finds alone
    reverse = AutoAttack(math.inf, 0.1, attacks=GRADIENTS[::-1]).evaluate(model, x, y)
    assert torch.equal(reverse.misclassified, both.misclassified)


def test_attacks_that_share_a_batch_find_what_they_find_apart(monkeypatch):
    model, x, y = trained(dtype=torch.float64)
    monkeypatch.setattr("opnorm.attacks._batching.FIRST_STEPS", 2)  # of the ten steps

    def nothing(model, x, y, eps, norm):  # to be proved after the first attack, which therefore runs alone
        return torch.zeros_like(y, dtype=torch.bool)

    together = AutoAttack(math.inf, 0.1, attacks=GRADIENTS).evaluate(model, x, y)
    apart = AutoAttack(math.inf, 0.1, attacks=GRADIENTS, certify=nothing).evaluate(model, x, y)
    assert torch.equal(together.misclassified, apart.misclassified)
    for v in (together, apart):
        assert [s.misclassified for s in v.stages] == [int((v.stage_index == i).sum()) for i in range(2)]
    first, second = apart.stages
    assert second.attacked == first.attacked - first.misclassified <= together.stages[1].attacked


def test_square_gets_the_margins_of_the_attacks_before_it(monkeypatch):
    model, x, y = trained()
    seen = []

    class Spy(Square):
        def start(self, batch):
            seen.append((batch.x, batch.margin))
            return super().start(batch)

    monkeypatch.setattr(module, "Square", lambda norm, **settings: Spy(norm, 20, **settings))
    result = AutoAttack(eps=EPS[math.inf]).evaluate(model, x, y)
    points, margins = (torch.cat(part) for part in zip(*seen, strict=True))
    assert len(points) == result.stages[-1].attacked > 0
    assert margins.isfinite().all()
    assert (margins <= 0).all()
    want = margin(model(points), model(points).argmax(1))
    assert (margins >= want - 1e-6).all()  # an attack does not end below the clean margin


@pytest.mark.parametrize(
    ("norm", "batch", "n"),
    [(math.inf, 32, 50), pytest.param(2, 64, 100, marks=pytest.mark.slow), (1, 64, 40), (math.inf, 5, 15)],
)
def test_several_radii_in_one_batch(norm, batch, n):
    model, x, y = (part if i == 0 else part[:n] for i, part in enumerate(trained()))
    radii = [EPS[norm] * factor for factor in (0.5, 6, 0, 6)]
    attack = AutoAttack(norm, attacks=GRADIENTS, bf16=False, batch=batch)
    robust = attack.robust_at(model, x, y, radii)
    apart = {eps: replace(attack, eps=eps).evaluate(model, x, y).robust for eps in set(radii)}
    for row, eps in zip(robust, radii, strict=True):
        assert torch.equal(row, apart[eps])
    shares = robust.double().mean(1)
    assert shares[1] == shares[3] <= shares[0] <= shares[2]
    assert shares[1] < shares[2] < 1
    assert attack.robust_at(model, x[:0], y[:0], radii).shape == (4, 0)
    assert torch.equal(attack.robust_at(model, x, y, [0.0]), robust[2:3])


class Moat(nn.Module):
    """Wrong only near the data, which is gray, or only at points further away."""

    def __init__(self, near=True):
        super().__init__()
        self.near = near

    def forward(self, x):
        far = (x - 0.5).abs().flatten(1).amax(1)
        wrong = (far > 1e-2) & (far < 0.1) if self.near else far > 0.03
        score = torch.where(wrong, -1.0, 1.0) + 0 * far
        return torch.stack([score, -score], 1)


@pytest.mark.filterwarnings("ignore:the gradient of:UserWarning")
def test_a_smaller_radius_is_attacked_only_where_the_larger_one_succeeds():
    x, y = torch.full((5, 1, 4, 4), 0.5), torch.zeros(5, dtype=torch.long)
    attack = AutoAttack(attacks=("apgd-ce",))
    with pytest.warns(UserWarning, match="exactly zero for 5 of 5 pairs of a point and a radius"):
        assert attack.robust_at(Moat().eval(), x, y, (0.05, 0.5)).all()
    assert not attack.robust_at(Moat().eval(), x, y, (0.05,)).any()
    robust = attack.robust_at(Moat(near=False).eval(), x, y, (0.02, 0.05, 0.5))
    assert robust.tolist() == [[True] * 5, [False] * 5, [False] * 5]


def test_radii_of_a_random_model_are_of_the_same_clean_points():
    class Noisy(nn.Module):
        def forward(self, x):
            score = 20 * (x.flatten(1).mean(1) - 0.5) + torch.randn(len(x))
            return torch.stack([score, -score], 1)

    x, _ = images(40)
    attack = AutoAttack(version="rand", attacks=("apgd-ce",))
    large, small, none = attack.robust_at(
        Noisy().eval(), x, torch.zeros(40, dtype=torch.long), (0.02, 0.001, 0)
    )
    assert not (large & ~small).any()
    assert not (small & ~none).any()


@pytest.mark.parametrize(
    ("settings", "radii", "message"),
    [
        ({}, (0.1,), "attacks that share a batch"),
        ({"certify": lambda *_: None}, (0.1,), "attacks that share a batch"),
        ({}, (), "at least one radius"),
        ({}, (0.1, -1.0), "eps=-1.0"),
    ],
)
def test_bad_radii(settings, radii, message):
    model, x, y = trained()
    chosen = {} if radii == (0.1,) and not settings else {"attacks": GRADIENTS}
    with pytest.raises(AttackError, match=message):
        AutoAttack(**chosen, **settings).robust_at(model, x, y, radii)


def test_a_zero_gradient_counts_although_the_next_attack_succeeds():
    x, y = torch.full((2, 1, 2, 2), 0.5), torch.zeros(2, dtype=torch.long)

    class Flat(Shift):
        def loss(self, batch, state, logits):
            return 0 * logits.sum(1)

    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():  # class 1 where the mean is above 0.55
        model[1].weight.copy_(torch.tensor([[0.0] * 4, [0.25] * 4]))
        model[1].bias.copy_(torch.tensor([0.55, 0.0]))
    searches = [Searches(Flat(0.0, 30, "first")), Searches(Flat(0.01, 30, "second"))]
    found = SearchResult.start(x, torch.ones_like(y, dtype=torch.bool))
    problem = Problem(model, x, y, model(x), 0.2, math.inf)
    stages = module.run_round(problem, searches, Options(), found)
    assert found.search.tolist() == [1, 1]
    assert [stage.zero_gradients for stage in stages] == [2, 0]
    assert [stage.misclassified for stage in stages] == [0, 2]
    assert all(stage.cpu_seconds > 0 for stage in stages)


def test_nothing_is_disturbed():
    model, x, y = trained()
    model.train()
    model[1].eval()
    model(x).sum().backward()
    before, inputs = record(model), x.clone()
    AutoAttack(attacks=GRADIENTS).evaluate(model, x, y)
    after = record(model)
    del before["python"]  # the checks of shapes and types in tests draw from it
    for key, value in before.items():
        assert same(value, after[key]), key
    assert torch.equal(x, inputs)


# ---------------------------------------------------------------- certificates


def test_certified_points_are_attacked_once_at_most():
    model, x, y = trained()
    seen = []

    def certify(model, x, y, eps, norm):
        seen.append((len(x), eps, norm))
        return x.flatten(1).mean(1) > 0.5

    result = AutoAttack(math.inf, 0.05, attacks=GRADIENTS, certify=certify).evaluate(model, x, y)
    first, second = result.stages
    want = (x.flatten(1).mean(1) > 0.5) & result.correct & (result.stage_index != 0)
    assert first.misclassified > 0
    assert first.attacked == 54
    assert seen == [(54 - first.misclassified, 0.05, math.inf)]
    assert torch.equal(result.certified, want)
    assert not (result.misclassified & want).any()
    assert second.attacked == 54 - first.misclassified - want.sum()
    assert result.certified_accuracy <= result.robust_accuracy
    with pytest.raises(AttackError, match=r"certify returned torch.float32 of shape \(3,\)"):
        AutoAttack(attacks=("apgd-ce",), certify=lambda *_: torch.ones(3)).evaluate(model, x, y)


def test_everything_certified():
    model, x, y = trained()
    for eps in (0.001, 0):
        result = AutoAttack(math.inf, eps, certify=lambda model, x, y, eps, norm: y >= 0).evaluate(
            model, x, y
        )
        assert [stage.name for stage in result.stages] == ["APGD-CE"][: eps > 0]
        assert result.robust_accuracy == result.certified_accuracy == result.clean_accuracy == 0.9


# ---------------------------------------------------------------- random models


class Noisy(nn.Module):
    """Its logits shift by one draw for all points; also in eval mode."""

    def __init__(self, inner, size):
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x):
        return self.inner(x) + self.size * torch.randn(5)


def test_verdicts_on_a_random_model_take_many_passes():
    model, x, y = (part if k == 0 else part[:20] for k, part in enumerate(trained()))
    noisy = Noisy(model, 0.3)
    state = torch.get_rng_state()
    single = AutoAttack(math.inf, 1e-6, attacks=("apgd-ce",)).evaluate(noisy, x, y)
    assert any("two passes over the same points differ" in note for note in single.notes)
    assert single.robust_accuracy < 0.1  # a single unlucky pass is called an attack
    fair = AutoAttack(math.inf, 1e-6, version="rand", attacks=("apgd-ce",)).evaluate(noisy, x, y)
    assert fair.robust_accuracy > 0.6
    assert not any("two passes" in note for note in fair.notes)
    again = AutoAttack(math.inf, 1e-6, version="rand", attacks=("apgd-ce",)).evaluate(noisy, x, y)
    assert torch.equal(again.stage_index, fair.stage_index)
    assert torch.equal(torch.get_rng_state(), state)


class Centered(nn.Module):
    """Its logits depend on the batch, and on no random number."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        return logits - logits.mean(0)


@pytest.mark.parametrize("batch", [16, 40, 128])
def test_a_model_that_looks_at_its_batch_is_not_called_random(batch):
    model, x, y = trained()
    result = AutoAttack(math.inf, 1e-6, attacks=("apgd-ce",), batch=batch).evaluate(Centered(model), x, y)
    assert not any("two passes" in note for note in result.notes)


def test_mean_of_probabilities():
    model, x, _ = trained()
    assert torch.allclose(MeanProbabilities(model, 4)(x).exp(), model(x).softmax(1), atol=1e-6)
    bad = MeanProbabilities(nn.Flatten(0), 4)
    assert bad(x).ndim == 1


# ---------------------------------------------------------------- what a reader should know


def test_few_classes_are_said():
    for classes, said in ((2, 2), (3, 2), (4, 1), (9, 1), (10, 0)):
        model, x, y = trained(classes)
        notes = AutoAttack(attacks=GRADIENTS).evaluate(model, x, y).notes
        assert len(notes) == said, notes
    model, x, y = trained(2)
    notes = AutoAttack(version="plus", attacks=("apgd-dlr", "apgd-t")).evaluate(model, x, y).notes
    assert "needs 3 classes, the model has 2" in notes[0]


def test_one_class_is_an_error():
    model, x, y = net(classes=1), images(4)[0], torch.zeros(4, dtype=torch.long)
    with pytest.raises(AttackError, match="the model has 1 class"):
        AutoAttack().evaluate(model, x, y)


def test_probabilities_are_said():
    model, x, y = trained()
    notes = AutoAttack(attacks=GRADIENTS).evaluate(nn.Sequential(model, nn.Softmax(1)), x, y).notes
    assert any("seems to return probabilities" in note for note in notes)


def test_blind_gradients_are_said():
    class Steps(nn.Module):
        def forward(self, x):
            return (x * 4).round() / 4 + 0 * x

    model, x, y = trained()
    quantized = nn.Sequential(Steps(), model)
    with torch.no_grad():
        y = quantized(x).argmax(1)
    with pytest.warns(UserWarning, match="the gradient of APGD-CE is exactly zero for .* no direction there"):
        AutoAttack(math.inf, 0.01, attacks=("apgd-ce",))(quantized, x, y)


# ---------------------------------------------------------------- settings and small inputs


def test_no_points_and_no_radius():
    model, x, y = trained()
    empty = AutoAttack().evaluate(model, x[:0], y[:0])
    assert empty.points.shape == (0, 1, 4, 4)
    assert empty.interval == (0.0, 1.0)
    none = AutoAttack(eps=0).evaluate(model, x, y)
    assert torch.equal(none.points, x)
    assert none.stages == ()
    assert none.robust_accuracy == none.clean_accuracy == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": "custom"}, "version='custom': expected 'standard', 'plus', 'rand' or 'fast'"),
        ({"attacks": ("pgd",)}, r"attacks=\('pgd',\): expected some of"),
        ({"attacks": ()}, r"attacks=\(\)"),
        ({"version": "rand", "attacks": ("square",)}, "attacks of version 'rand'"),
        ({"batch": 0}, "batch=0"),
        ({"batch": True}, "batch=True"),
        ({"norm": 3}, "norm=3"),
        ({"eps": -1}, "eps=-1"),
        ({"eps": 8}, r"did you mean 8/255\?"),
        ({"seed": 1.5}, r"seed=1\.5"),
        ({"mode": "test"}, "mode='test'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(AttackError, match=message):
        AutoAttack(**settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 3 - 1, y), "inputs range from"),
        (lambda x, y: (x.index_fill(0, torch.tensor(1), math.nan), y), "1 of 60 inputs contain NaN"),
        (lambda x, y: (x, y + 1), "labels range from"),
        (lambda x, y: (x, y[:3]), "labels of shape"),
    ],
)
def test_bad_inputs(change, message):
    model, x, y = trained()
    y[0], y[1] = 0, 4
    with pytest.raises(AttackError, match=message):
        AutoAttack().evaluate(model, *change(x, y))


def test_bad_models():
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(ModelError, match="the model returns tuple with 2 tensors"):
        AutoAttack().evaluate(Pair(), *images(4))
    with pytest.raises(ModelError, match="the model returns tuple with 2 tensors"):
        AutoAttack(version="rand").evaluate(Pair(), *images(4))


def test_the_text_of_an_attack():
    attack = autoattack(eps=4 / 255, attacks=GRADIENTS)
    assert str(spec_of(attack)) == 'autoattack(eps=4/255, attacks=("apgd-ce", "apgd-t"))'
    made = build('autoattack(norm=2, eps=0.5, version="plus")', "attack")
    assert (made.norm, made.eps, made.version) == (2, 0.5, "plus")


def test_progress_is_reported():
    model, x, y = trained()
    reported = []
    AutoAttack(attacks=GRADIENTS, batch=8).evaluate(model, x, y, progress=lambda *p: reported.append(p))
    assert {name for name, *_ in reported} == {"APGD-CE and APGD-T"}
    assert all(0 <= done <= total for _, done, total in reported)


def test_wilson_by_hand():
    assert confidence_interval(0, 0) == (0.0, 1.0)
    low, high = confidence_interval(8, 10)
    assert (low, high) == pytest.approx((0.49016, 0.94331), abs=1e-4)
    assert confidence_interval(0, 20)[0] == 0.0
    assert confidence_interval(20, 20)[1] == 1.0
    assert confidence_interval(30, 100)[0] == pytest.approx(1 - confidence_interval(70, 100)[1])


def test_a_verdict_is_a_record():
    model, x, y = trained()
    result = AutoAttack(attacks=GRADIENTS).evaluate(model, x, y)
    assert isinstance(result, AttackResult)
    assert not result.points.requires_grad
    assert {t.dtype for t in (result.correct, result.certified, result.misclassified)} == {torch.bool}


def test_how_often_apgd_starts():
    """As published, three times where searches may end early, and as often as a setting says."""
    model, (x, y) = net(2).eval(), images(6)
    y = model(x).argmax(1)

    def jobs(**settings):
        return (
            AutoAttack(math.inf, 1e-4, attacks=("apgd-ce",), **settings)
            .evaluate(model, x, y)
            .stages[0]
            .searches
        )

    assert [jobs(), jobs(version="fast"), jobs(restarts=2), jobs(version="plus")] == [1, 3, 2, 5]
    with pytest.raises(AttackError, match="restarts=0"):
        AutoAttack(restarts=0)
