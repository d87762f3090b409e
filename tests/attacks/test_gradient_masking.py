"""The report on gradient masking: what masks gradients is named, and an honest model is cleared."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks import autoattack, fgsm, pgd
from opnorm.attacks.gradient_masking import GradientMaskingReport, Indicator, check_gradient_masking
from opnorm.attacks.result import AttackResult, StageResult
from opnorm.runs.attack_evaluation import evaluate
from tests.attacks.honest import Around, draws, honest, points, rounds, saturates
from tests.attacks.test_contract import record, same

EPS = {math.inf: 0.1, 2: 0.5, 1: 1.0}
ATTACKS = {
    "autoattack": lambda norm: autoattack(norm, EPS[norm], attacks=("apgd-ce", "apgd-t")),
    "pgd": lambda norm: pgd(norm, EPS[norm], 30),
}
BY_PGD = ["pgd", pytest.param("autoattack", marks=pytest.mark.slow)]
"""For masks that both find in the same way."""


def judged(model, attack, n=50, **settings):
    report = evaluate(model, *points(n), attack, **settings).masking
    return report, {sign.component: sign.text for sign in report.indicators if sign.suspicious}


@pytest.mark.each_value
@pytest.mark.parametrize("norm", EPS, ids="{:g}".format)
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_honest_model_is_cleared(norm, attack):
    report, bad = judged(honest(), ATTACKS[attack](norm), n=30, surrogate=honest())
    assert bad == {}
    assert report.passed
    assert report.summary == f"gradient masking: none of the {len(report.indicators)} indicators found"
    assert {"the gradient", "the softmax", "the input layer", "the random layers", "the large radius"} < {
        sign.component for sign in report.indicators
    }


@pytest.mark.parametrize("attack", BY_PGD)
def test_a_quantized_input_layer(attack):
    report, bad = judged(rounds(), ATTACKS[attack](math.inf))
    assert not report.passed
    assert {
        "the input layer",
        "the gradient",
        "the loss",
        "the large radius",
        "the gradient attack",
    } <= bad.keys()
    assert "exactly zero" in " ".join(sign.text for sign in report.indicators if sign.suspicious)
    assert "Square" in bad["the gradient attack"]
    assert "check the input layer: the logits of " in report.summary


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("attack", BY_PGD)
def test_rounding_with_a_made_up_gradient(attack):
    """A straight-through estimator gives gradients, but the model feels no small move."""
    model = Around(before=lambda x: x + ((x * 8).round() / 8 - x).detach())
    assert "the input layer" in judged(model, ATTACKS[attack](math.inf))[1]


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("attack", BY_PGD)
def test_a_saturated_softmax(attack):
    _, bad = judged(saturates(), ATTACKS[attack](math.inf))
    assert bad.keys() == {"the softmax"}
    assert "the gradient of cross-entropy is exactly zero" in bad["the softmax"]


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("attack", BY_PGD)
def test_probabilities_of_a_saturated_softmax(attack):
    model = Around(after=lambda z: (100 * z).softmax(1))
    assert {"the output", "the gradient", "the large radius"} <= judged(model, ATTACKS[attack](math.inf))[
        1
    ].keys()
    _, bad = judged(Around(after=lambda z: z.softmax(1)), ATTACKS[attack](math.inf))
    assert (
        {"the output"} <= bad.keys() <= {"the output", "the loss"}
    )  # which is flat where a probability is near 1


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("attack", BY_PGD)
def test_a_random_layer(attack):
    _, bad = judged(draws(), ATTACKS[attack](math.inf))
    assert "two passes over the same points differ" in bad["the random layers"]
    assert 'use version="rand"' in bad["the random layers"]


@pytest.mark.usefixtures("few_queries")
def test_a_random_layer_that_was_averaged_out():
    report, bad = judged(
        draws(0.02), autoattack(eps=0.02, version="rand", attacks=("apgd-ce",), batch=400), n=6
    )
    assert "the random layers" not in bad
    assert (
        Indicator("the random layers", False, "two passes over the same points differ for 5 of 5")
        in report.indicators
    )


@pytest.mark.usefixtures("few_queries")
def test_answers_that_depend_on_the_batch():
    model = nn.Sequential(nn.BatchNorm2d(1, affine=False, track_running_stats=False), Around())
    assert "depend on the batch" in judged(model, pgd(eps=0.1))[1]["the mode"]


@pytest.mark.usefixtures("few_queries")
def test_gradients_that_are_nan():
    class Breaks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    report, _ = judged(Around(before=Breaks.apply), pgd(eps=0.1))
    texts = [sign.text for sign in report.indicators if sign.suspicious and sign.component == "the gradient"]
    assert any("NaN or infinite for 44 of 44 points" in text for text in texts)


def test_a_gradient_that_points_elsewhere():
    model = Around(before=lambda x: 2 * x.detach() - x)  # the same value, the opposite gradient
    _, bad = judged(model, pgd(eps=0.1))
    assert {"the gradient", "the loss", "the large radius", "the gradient attack"} <= bad.keys()
    assert "is not the derivative of the loss for" in bad["the gradient"]


def false_gradient(x, other):
    """The same value, the gradient of another function."""
    return x.detach() + other - other.detach()


FALSE = {
    "mirrored": lambda x: false_gradient(x, x.flip(2)),
    "random": lambda x: false_gradient(x, x * torch.arange(64).view(8, 8).cos()),
    "through a corner": lambda x: false_gradient(x, x * (torch.arange(64).view(8, 8) < 3)),
    "mostly detached": lambda x: 0.8 * x.detach() + 0.2 * x,
    "twice as large": lambda x: false_gradient(x, 2.5 * x),
}


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("name", FALSE)
def test_a_gradient_that_is_not_the_derivative(name):
    report, _ = judged(Around(before=FALSE[name]), pgd(eps=0.1))
    texts = [sign.text for sign in report.indicators if sign.suspicious and sign.component == "the gradient"]
    assert any("is not the derivative of the loss for" in text for text in texts)


@pytest.mark.usefixtures("few_queries")
def test_ripples_that_an_attack_follows():
    """The gradient is the derivative, but not of what matters over the radius."""
    model = Around(before=lambda x: x + 0.01 * torch.sin(500 * x))
    report, _ = judged(model, pgd(eps=0.1))
    texts = [sign.text for sign in report.indicators if sign.suspicious and sign.component == "the loss"]
    assert any("the best of 8 random steps of length ε raises it more" in text for text in texts)


class Vote(nn.Module):
    """The votes of copies that see the image with fixed noise, and a small random linear map, which has the gradient."""

    def __init__(self, decoy):
        super().__init__()
        torch.manual_seed(1)
        self.inner, self.small, self.decoy = honest(), nn.Linear(64, 10), decoy
        self.noise = 0.1 * (2 * torch.rand(8, 1, 1, 8, 8) - 1)

    def forward(self, x):
        z = self.inner((x.detach() + self.noise).flatten(0, 1))
        votes = nn.functional.one_hot(z.argmax(1), 10).float().view(8, len(x), 10).mean(0)
        return votes + self.decoy * self.small(x.flatten(1))


@pytest.mark.usefixtures("few_queries")
@pytest.mark.each_value
@pytest.mark.parametrize("decoy", [1e-3, 0.03])
@pytest.mark.parametrize("norm", EPS, ids="{:g}".format)
def test_a_vote_with_the_gradient_of_a_decoy(norm, decoy):
    """Small steps along its gradient behave as it says: only the change over a large distance gives it away."""
    report, _ = judged(Vote(decoy), ATTACKS["pgd"](norm), n=30)
    texts = [sign.text for sign in report.indicators if sign.suspicious and sign.component == "the loss"]
    assert any("to one of another class it changes" in text for text in texts)


@pytest.mark.parametrize(
    "eps",
    [
        *(pytest.param(eps, marks=pytest.mark.slow) for eps in (0.02, 0.05)),
        0.1,
        pytest.param(0.15, marks=pytest.mark.slow),
        0.3,
    ],
)
def test_an_honest_model_shows_no_mask_at_any_radius(eps):
    """PGD may be too weak for it, which is said of the attack."""
    assert judged(honest(), pgd(eps=eps, steps=20))[1].keys() <= {"the attack"}


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize("scale", [0.01, 1, 100])
def test_the_scale_of_logits_is_no_mask(scale):
    bad = judged(Around(after=lambda z: scale * z), pgd(eps=0.05, steps=20))[1]
    assert bad.keys() <= {"the attack", *(["the softmax"] if scale == 100 else [])}


@pytest.mark.usefixtures("few_queries")
@pytest.mark.parametrize(("steepness", "flat"), [(1.0, False), (1.5, False), (3.0, True)])
def test_logits_that_level_off_are_a_mask_only_where_they_are_flat(steepness, flat):
    """As after many layer norms: the loss changes 3 and 9 times as much between images as at them; then 600 times."""
    bad = judged(Around(after=lambda z: 5 * torch.tanh(steepness * z)), pgd(eps=0.1, steps=20))[1]
    assert ("the loss" in bad) == flat
    assert flat or bad.keys() <= {"the attack"}


def test_one_point_and_one_class_are_no_crash():
    x, y = points(30)
    for rows in ([0], (y == y[0]).nonzero().squeeze(1)):
        report = evaluate(honest(), x[rows], y[rows], pgd(eps=0.05)).masking
        assert not any("another class" in sign.text for sign in report.indicators)


def test_a_weak_attack_on_an_honest_model():
    _, bad = judged(honest(), pgd(eps=0.1, steps=1, step=0.001, random_start=False))
    assert bad.keys() == {"the attack"}


def test_square_that_did_better_in_the_evaluation_itself():
    x, y = points(40)
    none = torch.zeros(40, dtype=torch.bool)
    right = honest()(x).argmax(1) == y

    def signs(broken):
        stages = (
            StageResult("APGD-CE", 1, 38, 8, 1.0, 1.0, 0, 0, {}), StageResult("Square", 1, 30, broken, 1.0, 1.0, 0, 0, {})
        )  # fmt: skip
        result = AttackResult(x, right, none, none, torch.full_like(y, -1), stages, ())
        return [
            s
            for s in check_gradient_masking(honest(), x, y, result, norm=math.inf, eps=0.1).indicators
            if "Square" in s.text
        ]

    assert [s.suspicious for s in signs(1)] == [False]
    (sign,) = signs(6)
    assert sign == Indicator(
        "the gradient attack", True,
        "Square, which uses no gradients, finds adversarial points for 6 of 30 robust ones; the attacks before it do not: "
        f"{6 / int(right.sum()):.1%} of the correct points, at most 5% expected; an attack by gradients finds less than one "
        "without them",
    )  # fmt: skip


@pytest.mark.usefixtures("few_queries")
def test_a_surrogate_that_sees_more():
    report, _ = judged(rounds(32), fgsm(0.1), surrogate=honest())
    assert not report.passed
    transfers = [s for s in report.indicators if "surrogate" in s.text]
    assert [(s.component, s.suspicious) for s in transfers] == [("the attack", True)]


def test_a_model_that_knows_nothing():
    x, _ = points(20)
    wrong = (honest()(x).argmax(1) + 1) % 10
    report = evaluate(honest(), x, wrong, pgd(eps=0.1)).masking
    assert [s.component for s in report.indicators] == ["the model"]
    assert report.summary.startswith("check the model: it classifies no clean point correctly")


def test_an_untrained_model_is_not_cleared():
    torch.manual_seed(0)
    _, bad = judged(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(), pgd(eps=0.01), n=100)
    assert "which may be guessing: is it trained?" in bad["the model"]


@pytest.mark.parametrize(
    ("correct", "classes", "cleared"),
    [(8, 10, False), (11, 10, True), (27, 2, False), (40, 2, True), (2, 50, False), (9, 50, True)],
)
def test_an_accuracy_that_is_hardly_above_guessing_is_not_cleared(correct, classes, cleared):
    """Of 50 points: weights that were never trained tell some classes apart, by their brightness."""
    x = torch.rand(50, 1, 4, 4)
    y = torch.arange(50) % classes
    answers = torch.where(torch.arange(50) < correct, y, (y + 1) % classes)
    model = Around(after=lambda z: z)
    model.forward = lambda x: nn.functional.one_hot(answers, classes).float()[: len(x)] + 0 * x.sum()
    right, none = answers == y, torch.zeros(50, dtype=torch.bool)
    result = AttackResult(x, right, none, right, torch.full_like(y, -1), (), ())
    signs = check_gradient_masking(model, x, y, result, norm=math.inf, eps=0.1).indicators
    assert [s.suspicious for s in signs if s.component == "the model"] == [not cleared]


@pytest.mark.usefixtures("few_queries")
def test_half_precision_is_not_taken_for_rounding():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).bfloat16()
    x, _ = points(40)
    x = x.bfloat16()
    report = evaluate(model, x, model(x).argmax(1), pgd(eps=0.1)).masking
    assert [s.suspicious for s in report.indicators if s.component == "the input layer"] == [False]


@pytest.mark.usefixtures("few_queries")
def test_everything_is_left_as_it_was():
    model = nn.Sequential(draws(), nn.Dropout(0.1)).train()
    before = record(model)
    judged(model, pgd(eps=0.1), n=20, surrogate=honest())
    for key in before.keys() - {"python"}:  # beartype, which checks signatures here, draws from it
        assert same(before[key], record(model)[key]), key


def test_the_summary_has_a_line_for_each_bad_sign():
    report = GradientMaskingReport(
        (Indicator("a", True, "b"), Indicator("c", False, "d"), Indicator("e", True, "f"))
    )
    assert report.summary == "check a: b\ncheck e: f"
    assert report.as_dict()["passed"] is False
