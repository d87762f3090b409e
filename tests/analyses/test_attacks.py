"""Robustness as the papers measure it, against the same by hand."""

import json
import math

import pytest
import torch
from torch import nn

from opnorm.analyses import (
    autoattack_accuracy,
    liu_robust_accuracy,
    loss_variation,
    robustness_curve,
    wen_robust_accuracy,
)
from opnorm.attacks import AutoAttack, fgsm, pgd
from opnorm.errors import OpnormError
from opnorm.spec import build, spec_of
from tests.analyses.test_contract import data, pixels, trained


@pytest.fixture(scope="module")
def model():
    return trained().eval()


def after(model, attack, x, y):
    return model(attack(model, x, y)).argmax(1) == y


def test_wen_counts_only_points_that_are_right_at_first(model):
    x, y = pixels(data().test)
    (row,) = wen_robust_accuracy(points=None)(model, data())
    right = model(x).argmax(1) == y
    held = int(after(model, pgd(math.inf, 8 / 255, 10, 2 / 255), x[right], y[right]).sum())
    assert row == {
        "eps": 8 / 255, "accuracy": held / int(right.sum()), "correct": held, "points": int(right.sum()), "of": len(y),
        "attack": "PGD-10",
    }  # fmt: skip
    assert held < int(right.sum()) < len(y)


def test_wen_without_a_right_point(model):
    opposite = nn.Sequential(model, nn.Linear(3, 3))
    nn.init.zeros_(opposite[1].weight)
    with torch.no_grad():
        opposite[1].bias.copy_(
            torch.tensor([0.0, 0.0, 1.0])
        )  # says 2, and the first 70 points are left out here
    toy = data()
    toy.test.labels[:70] = 0
    assert wen_robust_accuracy(points=None)(opposite, toy)[0]["accuracy"] is None


def test_loss_variation_of_a_linear_model():
    """Two classes, CE = softplus of the margin, whose largest change PGD reaches in a corner of the ball."""
    toy = data()
    w = torch.randn(16, generator=torch.Generator().manual_seed(1)) / 4
    linear = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        linear[1].weight.copy_(torch.stack([w, -w, 0 * w]))
        linear[1].bias.copy_(torch.tensor([-0.2, 0.2, -1e9]))
    toy.test.labels[:70] = 0
    toy.test.images.clamp_(10, 245)  # away from the box
    x, y = pixels(toy.test)
    rows = loss_variation(points=None)(linear, toy)
    assert [row["eps"] for row in rows] == [1 / 255, 2 / 255, 4 / 255]
    sign = torch.where(y == 0, -1.0, 1.0).double()
    margin = sign * (2 * x.flatten(1).double() @ w.double() - 0.4)
    for row in rows:
        higher = margin + 2 * row["eps"] * w.double().abs().sum()
        change = nn.functional.softplus(higher) - nn.functional.softplus(margin)
        assert row["mean"] == pytest.approx(float(change.mean()), rel=1e-3)
        assert row["std"] == pytest.approx(float(change.std(correction=0)), rel=1e-3)
        assert row["points"] == len(y)


def test_loss_variation_grows_with_the_radius(model):
    rows = loss_variation(eps=(4 / 255, 0, 1 / 255), points=90)(model, data())
    assert [r["eps"] for r in rows] == [0, 1 / 255, 4 / 255]
    assert rows[0]["mean"] == rows[0]["std"] == 0
    assert rows[0]["mean"] < rows[1]["mean"] < rows[2]["mean"]
    assert rows[0]["points"] == 90


def test_liu_is_each_attack_by_hand(model):
    x, y = pixels(data().test)
    rows = liu_robust_accuracy(points=None)(model, data())
    attacks = [fgsm(e) for e in (0.01, 0.03, 0.05)] + [pgd(math.inf, e, 10) for e in (0.01, 0.03)]
    right = model(x).argmax(1) == y
    assert [(r["attack"], r["eps"]) for r in rows] == [
        ("FGSM", 0.01), ("FGSM", 0.03), ("FGSM", 0.05), ("PGD10", 0.01), ("PGD10", 0.03)
    ]  # fmt: skip
    for row, attack in zip(rows, attacks, strict=True):
        held = int((right & after(model, attack, x, y)).sum())
        assert row["correct"] == held
        assert row["accuracy"] == held / row["points"] == held / len(y)


def test_a_curve_never_rises_and_is_what_its_points_say(model):
    x, y = pixels(data().test)
    eps = (0, 2 / 255, 4 / 255, 8 / 255, 16 / 255)
    (row,) = robustness_curve(eps=eps, points=None)(model, data())
    right = model(x).argmax(1) == y
    minimal = [math.inf if d is None else d for d in row["minimal_eps"]]
    assert len(minimal) == row["points"] == len(y)
    assert [d == 0 for d in minimal] == (~right).tolist()
    assert row["eps"] == list(eps)
    assert row["accuracy"] == [sum(d > e for d in minimal) / len(y) for e in eps]
    assert row["accuracy"] == sorted(row["accuracy"], reverse=True)
    assert row["accuracy"][0] == pytest.approx(float(right.double().mean()))
    for radius, share in list(zip(eps, row["accuracy"], strict=True))[1:]:
        plain = float((right & after(model, pgd(math.inf, radius, 20), x, y)).double().mean())
        assert share <= plain + 0.02


def test_autoattack_accuracy(model):
    x, y = pixels(data().test)
    x, y = x[100:160], y[100:160]
    toy = data()
    toy = type(toy)(
        "toy", toy.train, type(toy.test)(toy.test.images[100:], toy.test.labels[100:]), toy.classes
    )
    (row,) = autoattack_accuracy(eps=4 / 255, version="rand", points=3)(model, toy)
    result = AutoAttack(eps=4 / 255, version="rand").evaluate(model, x[:3], y[:3])
    assert row["accuracy"] == result.robust_accuracy
    assert (row["low"], row["high"]) == result.interval
    assert row["points"] == 3
    assert row["misclassified"] == {stage.name: stage.misclassified for stage in result.stages}
    assert isinstance(row["masking_passed"], bool)
    json.dumps(row, allow_nan=False)


ANALYSES = (
    "autoattack_accuracy()", "wen_robust_accuracy()", "loss_variation()", "liu_robust_accuracy()", "robustness_curve()"
)  # fmt: skip


@pytest.mark.parametrize("call", ANALYSES)
def test_they_have_names(call):
    assert str(spec_of(build(call, "analysis"))) == call


@pytest.mark.parametrize(
    "call",
    [
        "autoattack_accuracy(points=0)",
        "autoattack_accuracy(eps=2)",
        "autoattack_accuracy(version='odd')",
        "wen_robust_accuracy(points=-1)",
        "wen_robust_accuracy(eps=-1)",
        "loss_variation(eps=())",
        "loss_variation(points=True)",
        "liu_robust_accuracy(fgsm_eps=(-0.1,))",
        "liu_robust_accuracy(pgd_eps='x')",
        "robustness_curve(eps=(0,))",
        "robustness_curve(halvings=-1)",
        "robustness_curve(norm=3)",
        "robustness_curve(points=1.5)",
    ],
)
def test_settings_that_make_no_sense(call):
    with pytest.raises(OpnormError, match=r"expected|did you mean"):
        build(call, "analysis")
