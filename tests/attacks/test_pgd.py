"""PGD's steps, restarts and early stop."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.attacks import _pgd as module
from opnorm.attacks import apgd, fab, fgsm, pgd
from opnorm.errors import AttackError
from tests.attacks.victims import EPS, Linear, images, net


def loss_of(model, x, y):
    model.eval()
    with torch.no_grad():
        return F.cross_entropy(model(x), y, reduction="none")


def test_fgsm_by_hand():
    model, (x, y) = net().eval(), images(5)
    x.requires_grad_()
    F.cross_entropy(model(x), y).backward()
    want = (x + 8 / 255 * x.grad.sign()).clamp(0, 1).detach()
    assert torch.allclose(fgsm()(model, x.detach(), y), want, atol=1e-7)


def test_pgd_by_hand():
    model, (x, y) = net().eval(), images(5)
    z = x.clone()
    for _ in range(4):
        z.requires_grad_()
        (grad,) = torch.autograd.grad(F.cross_entropy(model(z), y), z)
        z = (z.detach() + 0.01 * grad.sign()).clamp(min=x - 0.03, max=x + 0.03).clamp(0, 1)
    got = pgd(eps=0.03, steps=4, step=0.01, random_start=False)(model, x, y)
    assert torch.allclose(got, z, atol=1e-7)


@pytest.mark.parametrize("norm", [2, math.inf])
def test_more_is_worse_for_the_model(norm):
    model, (x, y) = net(1), images(60)
    y = model.eval()(x).argmax(1)
    losses = [
        loss_of(model, pgd(norm, EPS[norm], steps=n, random_start=False)(model, x, y), y).mean()
        for n in (0, 1, 20)
    ]
    assert losses[0] < losses[1] <= losses[2] * 1.001


class Maze(nn.Module):
    """One pixel, whose class is 1 in a small window: only some starts find it."""

    def __init__(self, center=0.83, width=0.02):
        super().__init__()
        self.center, self.width = center, width

    def forward(self, x):
        score = (self.width - (x.flatten(1) - self.center).abs()).clamp(min=-0.1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def test_restarts_keep_the_worst():
    x, y = (
        torch.full((40, 1, 1, 1), 0.5) + torch.linspace(0, 1e-3, 40).view(-1, 1, 1, 1),
        torch.zeros(40).long(),
    )
    model = Maze()
    found = []
    for restarts in (1, 2, 5, 20):
        z = pgd(math.inf, 0.4, steps=5, step=0.01, restarts=restarts)(model, x, y)
        found.append(loss_of(model, z, y))
    for few, many in itertools.pairwise(found):
        assert (many >= few - 1e-6).all()
    assert (found[-1] > math.log(2)).sum() > 1.5 * (found[0] > math.log(2)).sum() > 0


@pytest.mark.parametrize("restarts", [1, 4])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_points_that_it_stops_at_are_misclassified(norm, restarts):
    model, (x, y) = net(2).double(), images(80)
    x = x.double()
    clean_wrong = model.eval()(x).argmax(1) != y
    z = pgd(norm, EPS[norm] * 2, steps=10, restarts=restarts, stop_at_success=True)(model, x, y)
    wrong = model(z).argmax(1) != y
    assert (wrong | ~clean_wrong).all()
    to_the_end = pgd(norm, EPS[norm] * 2, steps=10, restarts=restarts)(model, x, y)
    wrong_at_the_end = model(to_the_end).argmax(1) != y
    assert (wrong | ~wrong_at_the_end).all()
    assert clean_wrong.sum() < wrong.sum() < 80


def test_points_that_are_wrong_without_any_attack_stay():
    """Moving up the loss of a point on the wrong side can bring it to the right one."""

    class Twist(nn.Module):  # class 0 but in a narrow window: the gradient of its far side points away
        def forward(self, x):
            score = torch.where((x - 0.5).abs() < 1e-3, 1.0, -1.0 - x).flatten(1).sum(1)
            return torch.stack([torch.zeros_like(score), score], 1)

    x, y = torch.full((1, 1, 1, 1), 0.5), torch.zeros(1).long()
    for restarts in (1, 3):
        z = pgd(math.inf, 0.3, restarts=restarts, stop_at_success=True)(Twist(), x, y)
        assert torch.equal(z, x)


@pytest.mark.parametrize("settings", [{}, {"restarts": 2, "stop_at_success": True}])
def test_a_batch_in_parts_is_the_same_batch(settings, monkeypatch):
    """A large batch on a CPU is attacked a part at a time; the first three points are where the gradient is 0."""

    class Hinge(nn.Module):
        def forward(self, x):
            score = (x.flatten(1).mean(1) - 0.2).clamp(min=0)
            return torch.stack([torch.full_like(score, 0.1), score], 1)

    parts = []

    def count(module, args):
        parts.append(len(args[0]))

    x, y = images(20)[0], (torch.arange(20) >= 3).long()
    x[:3] = 0
    model = Hinge().double().eval()
    model.register_forward_pre_hook(count)
    attack = pgd(2, 0.5, steps=3, random_start=False, bf16=False, **settings)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = []
    for points in (1000, 3):
        monkeypatch.setattr(module, "POINTS_A_THREAD", points)
        parts.clear()
        with pytest.warns(UserWarning, match="exactly zero for 3 of 20 points"):
            found.append(attack(model, x.double(), y))
    assert max(parts) == 3
    assert torch.allclose(*found, atol=1e-12)
    assert not torch.equal(found[0][3:], x[3:].double())


def test_stopping_saves_passes():
    class Count(nn.Module):
        seen = 0

        def __init__(self):
            super().__init__()
            self.inner = net(2)

        def forward(self, x):
            Count.seen += len(x)
            return self.inner(x)

    model, (x, y) = Count(), images(50)
    pgd(eps=0.3, steps=20, stop_at_success=True, bf16=False)(model, x, y)
    early, Count.seen = Count.seen, 0
    pgd(eps=0.3, steps=20, bf16=False)(model, x, y)
    assert 0 <= Count.seen - 50 * 20 <= 4 * 16  # the copy that gives the gradients is compared with the model
    assert early < Count.seen / 4


def test_no_steps_is_the_random_start():
    model, (x, y) = Linear(torch.ones(1, 4, 4)), images(8)
    z = pgd(eps=0.1, steps=0)(model, x, y % 2)
    assert 0 < (z - x).abs().max() <= 0.1
    assert torch.equal(pgd(eps=0.1, steps=0, random_start=False)(model, x, y % 2), x)


def test_a_sure_model_is_attacked_all_the_same():
    """From a margin of 17 on, 1 - softmax is 0 in float32, and with it cross-entropy's gradient."""
    for margin in (20, 60, 1e4):
        model = Linear(torch.full((1, 4, 4), margin / 8))
        x, y = images(6, low=0.4, high=0.6)
        y = torch.ones_like(y)
        for norm, best in ((math.inf, 16), (2, 4)):
            z = pgd(norm, 0.1, step=0.1, steps=20)(model, x, y)
            drop = (model(x) - model(z))[:, 1]
            assert torch.allclose(drop, torch.full_like(drop, best * 0.1 * margin / 8), rtol=1e-3)


class Decoy(nn.Module):
    """One pixel: class 1 seems closest but cannot be reached, class 2 can, a little further down."""

    def forward(self, x):
        v = x.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(v), (v - 0.61).clamp(max=-0.01), (0.45 - v) / 2], 1)


@pytest.mark.parametrize("loss", ["ce", "cw", "dlr"])
def test_targets_go_where_the_loss_alone_would_not(loss):
    x, y = torch.full((6, 1, 1, 1), 0.58), torch.zeros(6).long()
    settings = {"eps": 0.2, "steps": 20, "random_start": False}
    if loss != "ce":  # cross-entropy sums over the classes, and feels both
        blind = pgd(**settings, loss=loss)(Decoy(), x, y)
        assert (Decoy()(blind).argmax(1) == 0).all()
    one = pgd(**settings, loss=loss, targets=1)(Decoy(), x, y)
    assert (Decoy()(one).argmax(1) == 0).all()
    for many in (2, 9):
        both = pgd(**settings, loss=loss, targets=many, stop_at_success=many == 2)(Decoy(), x, y)
        assert (Decoy()(both).argmax(1) == 2).all()


def test_targets_start_at_places_of_their_own():
    starts = []

    class Note(nn.Module):
        def forward(self, x):
            starts.append(x.detach().clone())
            return torch.stack([x.flatten(1).sum(1), *(x.flatten(1).sum(1) - 9,) * 3], 1)

    x = torch.full((1, 1, 2, 2), 0.5)
    pgd(eps=0.1, steps=0, targets=3, restarts=2)(Note(), x, torch.zeros(1).long())
    assert len({z.numpy().tobytes() for z in starts if not torch.equal(z, x)}) == 6


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ("constant", [0.04, 0.04, 0.04, 0.04]),
        ("linear", [0.04, 0.03, 0.02, 0.01]),
        ("cosine", [0.04, 0.02 + 0.02 * math.sqrt(0.5), 0.02, 0.02 - 0.02 * math.sqrt(0.5)]),
    ],
)
@pytest.mark.parametrize("settings", [{}, {"restarts": 2}, {"stop_at_success": True}])
def test_step_rules_by_hand(rule, lengths, settings):
    seen = []

    class Note(nn.Module):
        def forward(self, x):
            seen.append(float(x.detach()))
            return torch.stack([x.flatten(1).sum(1), torch.zeros(len(x)) - 9], 1)

    x = torch.full((1, 1, 1, 1), 0.5)
    attack = pgd(eps=0.4, steps=4, step=0.04, step_rule=rule, random_start=False, **settings)
    end = attack(Note(), x, torch.zeros(1).long())
    path = [0.5]
    for length in lengths:
        path.append(path[-1] - length)
    for place in path[1:4]:
        assert any(abs(place - other) < 1e-6 for other in seen)
    assert float(end) == pytest.approx(path[-1], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"targets": -1}, "targets=-1"),
        ({"targets": 1.5}, "targets=1.5: expected a whole number"),
        ({"targets": 2, "loss": "kl"}, "loss='kl' has no target classes"),
    ],
)
def test_settings_of_targets_and_steps_that_make_no_sense(settings, said):
    with pytest.raises(AttackError, match=said):
        pgd(**settings)


def test_one_class_has_no_target():
    for attack in (pgd(targets=1), apgd(targets=1), fab(targets=1)):
        with pytest.raises(AttackError, match="the model has 1 class"):
            attack(
                nn.Sequential(nn.Flatten(), nn.Linear(16, 1)), torch.rand(2, 1, 4, 4), torch.zeros(2).long()
            )
