"""What training minimizes."""

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm import objectives
from opnorm.attacks import fgsm, pgd
from opnorm.errors import AttackError
from opnorm.objectives import fgsm_at, pgd_at, plain
from opnorm.spec import names

X = torch.rand(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    ).train()


@pytest.mark.parametrize("name", names("objective"))
def test_every_objective(name):
    model = net()
    outcome = getattr(objectives, name)()(model, X, Y)
    assert outcome.loss.shape == ()
    assert outcome.logits.shape == (6, 3)
    assert torch.isclose(outcome.loss, F.cross_entropy(outcome.logits, Y))
    assert all(p.grad is None for p in model.parameters())
    outcome.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(m.training for m in model.modules())
    assert model[1].num_batches_tracked == 1, "batch norm sees each batch once, the attack's passes never"


def test_plain_is_cross_entropy():
    a, b = net(), net()
    assert torch.equal(plain()(a, X, Y).loss, F.cross_entropy(b(X), Y))


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_adversarial_training_is_cross_entropy_on_the_attack(norm, mode):
    eps = 0.1
    for make, attack in (
        (lambda: fgsm_at(eps, norm, mode=mode), fgsm(eps, norm, mode=mode)),
        (lambda: pgd_at(eps, norm, 3, 0.05, False, mode), pgd(norm, eps, 3, 0.05, 1, False, mode=mode)),
    ):
        a, b = net(), net()
        got = make()(a, X, Y)
        z = attack(b, X, Y)
        assert not torch.equal(z, X)
        assert torch.equal(got.loss, F.cross_entropy(b(z), Y))
        assert got.loss > plain()(net(), X, Y).loss


def test_random_starts_follow_the_global_seed_and_differ_from_step_to_step():
    objective = pgd_at(eps=0.2, steps=1, step=1e-3)

    def losses():
        torch.manual_seed(7)
        model = net().eval()
        torch.manual_seed(7)
        return [float(objective(model, X, Y).loss.detach()) for _ in range(3)]

    first = losses()
    assert first == losses()
    assert len(set(first)) == 3


def test_settings_are_those_of_the_attack():
    assert inspect.signature(pgd_at).parameters["eps"].default == 8 / 255
    for make in (fgsm_at, pgd_at):
        with pytest.raises(AttackError, match="eps=-1"):
            make(eps=-1)
        with pytest.raises(AttackError, match="mode='x'"):
            make(mode="x")
        with pytest.raises(AttackError, match=r"inputs range from 0 to 2"):
            make()(net(), torch.full_like(X, 2).index_fill(0, torch.tensor(0), 0), Y)
