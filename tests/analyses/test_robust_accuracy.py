"""Robust accuracy, against attacks by hand."""

import math

import pytest
import torch
from torch import nn

from opnorm._core.confidence import confidence_interval
from opnorm.analyses import accuracy, robust_accuracy
from opnorm.analyses._shared.by_point import unpack
from opnorm.attacks import AutoAttack, pgd
from opnorm.data import Dataset, Split
from opnorm.errors import OpnormError
from tests.analyses.toys import data, pixels, trained

NETWORK = trained


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
    assert weak["attack"] == "pgd(norm=inf, eps=0.05, steps=1, stop_at_success=True)"
    assert by_name["autoattack"]["attack"] == 'autoattack(norm=inf, eps=0.05, version="standard")'


@pytest.mark.parametrize("norm", [2, math.inf])
def test_robust_accuracy_falls_with_eps_and_begins_at_the_accuracy(model, norm):
    toy = data()
    rows = robust_accuracy(norm, (0.1, 0, 0.01, 0.05, 0.5, 0.9), 3, points=None)(model, toy)
    assert [r["eps"] for r in rows] == [0, 0.01, 0.05, 0.1, 0.5, 0.9]
    correct = [r["correct"] for r in rows]
    assert correct == sorted(correct, reverse=True)
    assert correct[0] == accuracy()(model, toy)[0]["correct"]
    assert correct[-1] < correct[0]


def test_points_that_are_misclassified_without_an_attack_are_not_robust():
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
    for row, other in zip(ours, theirs, strict=True):
        robust, moved = (unpack(r.pop("by_point"), 700) for r in (row, other))
        assert (robust[order.numpy()] == moved).all()
        assert row == other


def test_a_row_has_the_clean_accuracy_of_its_own_points(model):
    """That of all points can be lower than the robust accuracy of some of them."""
    toy = data()
    for points in (10, 100):
        x, y = (t[:points] for t in pixels(toy.test))
        right = int((model(x).argmax(1) == y).sum())
        rows = robust_accuracy(math.inf, (0.01, 0.05), 3, points=points)(model, toy)
        (clean, share), (_, robust) = robust_accuracy().columns(rows)
        assert clean.label == f"clean, first {points}"
        assert (share.points, round(share.mean * points)) == (points, right)
        assert share.mean >= robust.mean
        assert share.points == robust.points


def test_bad_radii_are_found_before_any_work():
    with pytest.raises(OpnormError, match=r"eps=\(-0\.1, 0\.1\)"):
        robust_accuracy(eps=(-0.1, 0.1))


@pytest.mark.parametrize("attack", ["pgd", "apgd", pytest.param("autoattack", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:the gradient of:UserWarning", "ignore:the gradient is:UserWarning")
def test_a_point_that_is_misclassified_at_one_radius_is_so_at_larger_ones(attack):
    class Moat(nn.Module):  # wrong only near the data, where a large ball rarely looks
        def forward(self, x):
            far = (x - 0.5).abs().flatten(1).amax(1)
            score = torch.where((far > 1e-2) & (far < 0.1), -1.0, 1.0) + 0 * far
            return torch.stack([score, -score], 1)

    toy = data(40)
    images = torch.full_like(toy.test.images, 128)
    images[:, 0, 0, 0] = torch.arange(40) % 3 + 127
    toy = Dataset("grey", toy.train, Split(images, torch.zeros(40).long()), toy.classes)
    settings = {"attack": attack, "version": "fast"}
    small, large = robust_accuracy(math.inf, (0.05, 0.5), 1, **settings)(Moat(), toy)
    (alone,) = robust_accuracy(math.inf, (0.5,), 1, **settings)(Moat(), toy)
    assert alone["correct"] > 0
    assert (small["correct"], large["correct"]) == (0, 0)
    small, large = robust_accuracy(math.inf, (0.05, 0.5), 1, **settings, largest_first=True)(Moat(), toy)
    assert (small["correct"], large["correct"]) == (alone["correct"], alone["correct"])


def test_points_robust_at_the_largest_radius_are_not_attacked_again(model):
    toy, radii = data(), (0.02, 0.05, 0.1)
    every = {"points": 150, "attack": "apgd", "version": "fast", "restarts": 1}
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


@pytest.mark.parametrize("version", ["standard", "fast"])
def test_the_version_is_the_one_that_runs(model, version):
    toy = data()
    x, y = (t[:40] for t in pixels(toy.test))
    names = ("apgd-ce", "apgd-t")
    (row,) = robust_accuracy(2, (0.3,), points=40, attack="apgd", version=version)(model, toy)
    result = AutoAttack(2, 0.3, version, attacks=names).evaluate(model, x, y)
    assert row["correct"] == int(result.robust.sum())
    call = f'autoattack(norm=2, eps=0.3, version="{version}", attacks=("apgd-ce", "apgd-t"))'
    assert row["attack"] == call
    assert f"APGD {version}" in robust_accuracy().columns([row])[1][0].label


@pytest.mark.parametrize(
    ("attack", "label"),
    [
        ("pgd(norm=inf, eps=0.1, steps=20, stop_at_success=True)", "PGD ℓ∞ 0.1"),
        ('autoattack(norm=inf, eps=0.1, version="fast", attacks=("apgd-ce", "apgd-t"))', "APGD fast ℓ∞ 0.1"),
        ('autoattack(norm=inf, eps=0.1, version="standard")', "AutoAttack standard ℓ∞ 0.1"),
    ],
)
def test_a_column_of_robust_accuracy_names_its_attack(attack, label):
    row = {"norm": "inf", "eps": 0.1, "accuracy": 0.6, "correct": 6, "points": 10, "attack": attack}
    ((column, cell),) = robust_accuracy().columns(
        [row]
    )  # a row as it was kept before it had the clean accuracy
    assert column.label == label
    assert attack in column.help
    assert (cell.mean, cell.points) == (0.6, 10)
    assert cell.interval == confidence_interval(6, 10)
    assert attack.replace("eps=0.1, ", "") in robust_accuracy().sentence([row])
