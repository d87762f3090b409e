"""Accuracy, robust accuracy, margins and norms of a model, against the same by hand."""

import json
import math

import pytest
import torch
from torch import nn

from opnorm.analyses import accuracy, margins, norm_table, robust_accuracy
from opnorm.attacks import AutoAttack, pgd
from opnorm.data import Dataset, Split
from opnorm.errors import OpnormError, SpecError
from opnorm.models import mlp
from opnorm.norms import measure


def data(n=700, classes=3, seed=0):
    """More points than one batch; classes 0 and 1 by brightness, with some noise, and some labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 1, 4, 4), generator=generator, dtype=torch.uint8)
    labels = (images.float().flatten(1).mean(1) > 127).long()
    labels[: n // 10] = 2
    half = Split(images, labels)
    return Dataset("toy", Split(images[:50], labels[:50]), half, tuple("abc"[:classes]))


def trained(seed=0):
    torch.manual_seed(seed)
    model, toy = mlp((1, 4, 4), 3, 16, 1, 0.5, 0.3), data()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    x = toy.test.images.float() / 255
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), toy.test.labels).backward()
        optimizer.step()
    return model


@pytest.fixture(scope="module")
def model():
    return trained()


def pixels(split):
    return split.images.float() / 255, split.labels


@pytest.mark.parametrize("split", ["train", "test"])
def test_accuracy_by_hand(model, split):
    toy = data()
    x, y = pixels(getattr(toy, split))
    right = int((model(x).argmax(1) == y).sum())
    (row,) = accuracy(split)(model, toy)
    assert row == {"split": split, "accuracy": right / len(y), "correct": right, "points": len(y)}
    assert 0 < right < len(y) or split == "train"


def test_margins_by_hand(model):
    toy = data()
    x, y = pixels(toy.test)
    logits = model(x).tolist()
    want = [z[c] - max(v for i, v in enumerate(z) if i != c) for z, c in zip(logits, y.tolist(), strict=True)]
    (row,) = margins()(model, toy)
    assert row["points"] == 700
    assert row["margins"] == pytest.approx(want, rel=1e-4, abs=1e-5)
    (accuracy_row,) = accuracy()(model, toy)
    assert sum(m > 0 for m in row["margins"]) == accuracy_row["correct"]
    assert len(margins("train")(model, toy)[0]["margins"]) == 50


@pytest.mark.parametrize("norm", [2, math.inf])
def test_robust_accuracy_is_the_attack_by_hand(model, norm):
    toy = data()
    x, y = pixels(toy.test)
    for eps in (0.02, 0.1):
        z = pgd(norm, eps, 5, restarts=2, stop_at_success=True, seed=3)(model, x, y)
        clean, held = model(x).argmax(1) == y, model(z).argmax(1) == y
        (row,) = robust_accuracy(norm, (eps,), 5, 2, None, seed=3)(model, toy)
        assert row["correct"] == int((clean & held).sum())
        assert row["points"] == 700
        assert row["accuracy"] == row["correct"] / 700
        assert row["norm"] == f"{norm:g}"


def test_robust_accuracy_against_stronger_attacks(model):
    toy = data()
    x, y = (t[:60] for t in pixels(toy.test))
    by_name = {}
    for attack, names in (("apgd", ("apgd-ce", "apgd-t")), ("autoattack", None)):
        result = AutoAttack(math.inf, 0.05, attacks=names).evaluate(model, x, y)
        (by_name[attack],) = robust_accuracy(math.inf, (0.05,), points=60, attack=attack)(model, toy)
        assert by_name[attack]["correct"] == int(result.robust.sum())
    (weak,) = robust_accuracy(math.inf, (0.05,), 1, points=60)(model, toy)
    assert by_name["autoattack"]["correct"] <= by_name["apgd"]["correct"] <= weak["correct"]
    assert (weak["attack"], by_name["apgd"]["attack"]) == ("PGD-1, 1 start", "APGD-CE, APGD-T")


@pytest.mark.parametrize("norm", [2, math.inf])
def test_robust_accuracy_falls_with_eps_and_begins_at_the_accuracy(model, norm):
    toy = data()
    rows = robust_accuracy(norm, (0.1, 0, 0.01, 0.05, 0.5, 0.9), 3, points=None)(model, toy)
    assert [r["eps"] for r in rows] == [0, 0.01, 0.05, 0.1, 0.5, 0.9]
    correct = [r["correct"] for r in rows]
    assert correct == sorted(correct, reverse=True)
    assert correct[0] == accuracy()(model, toy)[0]["correct"]
    assert correct[-1] < correct[0]


def test_points_that_are_wrong_from_the_beginning_count_as_fooled():
    class Lucky(nn.Module):  # right nearly everywhere, but not at the data
        def forward(self, x):
            on_grid = (x * 255 - (x * 255).round()).abs().flatten(1).amax(1) < 1e-3
            score = torch.where(on_grid, -1.0, 1.0) + 0 * x.flatten(1).sum(1)
            return torch.stack([score, -score], 1)

    toy = data(40)
    toy = Dataset("zeros", toy.train, Split(toy.test.images, torch.zeros(40).long()), toy.classes)
    assert accuracy()(Lucky(), toy)[0]["correct"] == 0
    for restarts in (1, 2):
        assert robust_accuracy(math.inf, (0.1,), 2, restarts)(Lucky(), toy)[0]["correct"] == 0


def test_points_and_order_of_points(model):
    toy = data()
    (row,) = robust_accuracy(math.inf, (0.05,), 3, points=100)(model, toy)
    first = Dataset("first", toy.train, Split(toy.test.images[:100], toy.test.labels[:100]), toy.classes)
    assert row == robust_accuracy(math.inf, (0.05,), 3)(model, first)[0]
    assert row["points"] == 100
    order = torch.randperm(700, generator=torch.Generator().manual_seed(0))
    shuffled = Dataset("x", toy.train, Split(toy.test.images[order], toy.test.labels[order]), toy.classes)
    ours, theirs = (
        robust_accuracy(math.inf, (0.02, 0.05), 3, points=None)(model, d) for d in (toy, shuffled)
    )
    assert ours == theirs


def test_norm_table_is_measure(model):
    toy = data()
    rows = norm_table()(model, toy)
    assert rows == [r.as_dict() for r in measure(model, pixels(toy.test)[0][:1]).rows]
    assert all(set(r["norms"]) == {"1"} for r in norm_table((1,))(model, toy) if r["kind"] == "Linear")


@pytest.mark.parametrize("analysis", [accuracy(), margins(), norm_table(), robust_accuracy(steps=2)])
def test_rows_are_json_and_the_model_is_left_alone(analysis):
    model = trained().train()
    before, state = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    grads = [p.grad.clone() for p in model.parameters()]
    rows = analysis(model, data())
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows
    assert rows == analysis(model, data())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(m.training for m in model.modules())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("analysis", [accuracy(), margins(), robust_accuracy(steps=2)])
def test_a_model_of_nan_is_an_error_and_not_an_accuracy(analysis):
    model = mlp((1, 4, 4), 3, 4, 1)
    nn.init.constant_(model[-1].weight, math.nan)
    with pytest.raises(OpnormError, match="the model returns NaN or infinity"):
        analysis(model, data())


@pytest.mark.parametrize("analysis", [accuracy(), margins(), robust_accuracy(steps=2)])
def test_a_model_with_too_few_classes(analysis):
    with pytest.raises(OpnormError, match=r"labels range from 0 to 2, but the model has 2 classes"):
        analysis(mlp((1, 4, 4), 2, 4, 1), data())


def test_the_norms_of_a_model_of_nan_are_notes():
    model = mlp((1, 4, 4), 3, 4, 1)
    nn.init.constant_(model[-1].weight, math.nan)
    rows = norm_table()(model, data())
    assert rows[-1]["norms"] == {}
    assert "NaN" in rows[-1]["note"]
    assert rows[0]["norms"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: accuracy("validation"), "split='validation': expected 'train' or 'test'"),
        (lambda: margins("x"), "split='x'"),
        (lambda: robust_accuracy(eps=()), "at least one radius"),
        (lambda: robust_accuracy(points=0), "points=0"),
        (
            lambda: robust_accuracy(attack="bim"),
            "attack='bim' is not known; expected pgd, apgd or autoattack",
        ),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(SpecError, match=message):
        make()


def test_bad_radii_are_found_before_any_work():
    with pytest.raises(OpnormError, match=r"eps=-0\.1"):
        robust_accuracy(eps=(-0.1, 0.1))


@pytest.mark.parametrize("attack", ["pgd", "apgd", "autoattack"])
@pytest.mark.filterwarnings("ignore:the gradient of:UserWarning", "ignore:the gradient is:UserWarning")
def test_a_point_that_falls_early_does_not_rise_again(attack):
    class Moat(nn.Module):  # wrong only near the data, where a large ball rarely looks
        def forward(self, x):
            far = (x - 0.5).abs().flatten(1).amax(1)
            score = torch.where((far > 1e-2) & (far < 0.1), -1.0, 1.0) + 0 * far
            return torch.stack([score, -score], 1)

    toy = data(40)
    images = torch.full_like(toy.test.images, 128)
    images[:, 0, 0, 0] = torch.arange(40) % 3 + 127
    toy = Dataset("grey", toy.train, Split(images, torch.zeros(40).long()), toy.classes)
    small, large = robust_accuracy(math.inf, (0.05, 0.5), 1, attack=attack)(Moat(), toy)
    (alone,) = robust_accuracy(math.inf, (0.5,), 1, attack=attack)(Moat(), toy)
    assert alone["correct"] > 0
    assert (small["correct"], large["correct"]) == (0, 0)
    small, large = robust_accuracy(math.inf, (0.05, 0.5), 1, attack=attack, largest_first=True)(Moat(), toy)
    assert (small["correct"], large["correct"]) == (alone["correct"], alone["correct"])


def test_what_stands_at_the_largest_radius_is_not_attacked_again(model):
    toy, radii = data(), (0.02, 0.05, 0.1)
    every = {"points": 150, "attack": "apgd"}
    rows = robust_accuracy(math.inf, radii, **every, largest_first=True)(model, toy)
    assert rows == robust_accuracy(math.inf, radii, **every)(model, toy)
    assert rows == [robust_accuracy(math.inf, (eps,), **every)(model, toy)[0] for eps in radii]
    assert rows == robust_accuracy(math.inf, (*radii, 0.02), **every, largest_first=True)(model, toy)
    asked = list[float]()

    class Asked(nn.Module):
        def forward(self, x):
            asked.append(len(x))
            return model(x)

    robust_accuracy(math.inf, radii, **every, largest_first=True)(Asked(), toy)
    quick = sum(asked)
    robust_accuracy(math.inf, radii, **every)(Asked(), toy)
    assert quick < 0.8 * (sum(asked) - quick)
