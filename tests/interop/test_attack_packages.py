"""torchattacks and foolbox inside our evaluation, and our attacks inside theirs."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from opnorm.attacks import as_foolbox, as_torchattacks, external, pgd
from opnorm.errors import AttackError
from opnorm.runs.attack_evaluation import evaluate
from tests.attacks.victims import images, net

EPS = 0.3


@pytest.fixture(autouse=True)
def _installed():
    """Imported where a test runs: at the top of the file, every process of the tests would wait for them."""
    for package in ("torchattacks", "foolbox"):
        pytest.importorskip(package, reason="the extra interop is optional")


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Returns(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = net()

    def forward(self, x):
        z = self.inner(x)
        return Output(z, 2 * z)


def by_torchattacks(model, x, y):
    import torchattacks

    return torchattacks.PGD(model, eps=EPS, alpha=0.05, steps=5)(x, y)


def by_foolbox(model, x, y):
    import foolbox

    attack = foolbox.attacks.L2PGD(steps=5)
    return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=EPS)[1]


@pytest.mark.parametrize(("function", "norm"), [(by_torchattacks, math.inf), (by_foolbox, 2)])
def test_theirs_inside_ours(function, norm):
    model, (x, _) = Returns().eval(), images(24)
    y = model(x).logits.argmax(1)
    attack = external(function, norm, EPS, seed=3)
    before = torch.get_rng_state()
    found = evaluate(model, x, y, attack)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.norm == norm
    assert found.result.misclassified.any(), "the attack does something"
    moved = found.result.points.double() - x.double()
    assert (torch.linalg.vector_norm(moved.flatten(1), norm, 1) <= EPS).all(), "exactly, not up to rounding"
    assert torch.equal(attack(model, x, y), attack(model, x, y)), "the seed decides"
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_what_leaves_the_ball_is_an_error_and_not_projected():
    (x, y), model = images(4), net()
    cases = {
        "left the ball of radius 0.2 in norm inf": external(by_torchattacks, math.inf, 0.2),
        "left the ball": external(lambda m, x, y: x * float("nan"), 2, 0.2),
        "gave points of shape": external(lambda m, x, y: x[:1], 2, 0.2),
    }
    for message, attack in cases.items():
        with pytest.raises(AttackError, match=message):
            attack(model, x, y)
    with pytest.raises(AttackError, match="expected a function"):
        external("pgd", 2, 0.1)


def test_ours_inside_torchattacks():
    import torchattacks

    (x, _), model = images(12), net().eval()
    y, attack = model(x).argmax(1), pgd(eps=EPS, steps=4)
    theirs = as_torchattacks(model, attack)
    assert isinstance(theirs, torchattacks.attack.Attack)
    assert torch.equal(theirs(x, y), attack(model, x, y))
    both = torchattacks.MultiAttack([torchattacks.FGSM(model, eps=EPS), theirs])
    assert (model(both(x, y)).argmax(1) == y).sum() <= (model(attack(model, x, y)).argmax(1) == y).sum()


def test_ours_inside_foolbox():
    import foolbox

    (x, _), model = images(12), net().eval()
    y = model(x).argmax(1)
    fmodel = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = as_foolbox(lambda eps: pgd(norm=2, eps=eps, steps=4), 2)
    _, clipped, success = theirs(fmodel, x, y, epsilons=[0.1, EPS])
    for eps, points, fooled in zip((0.1, EPS), clipped, success, strict=True):
        ours = pgd(norm=2, eps=eps, steps=4)(model, x, y)
        assert torch.allclose(points, ours, atol=1e-6)
        assert torch.equal(fooled, model(points).argmax(1) != y)
    with pytest.raises(AttackError, match=r"bounds \(-1, 1\); expected \(0, 1\)"):
        theirs(foolbox.PyTorchModel(model, bounds=(-1, 1), device="cpu"), x, y, epsilons=0.1)
    with pytest.raises(AttackError, match="expected labels, or Misclassification"):
        theirs(fmodel, x, foolbox.criteria.TargetedMisclassification(y), epsilons=0.1)
