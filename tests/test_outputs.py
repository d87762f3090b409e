"""Models that return an object with logits, a dict or a tuple: the results are those of the logits alone."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from opnorm import jacobian
from opnorm._core.outputs import one_tensor
from opnorm.attacks import fab
from opnorm.attacks.gradient_masking import check_transfer
from opnorm.certificates import certified, lipschitz_radius
from opnorm.errors import ModelError
from opnorm.runs.attack_evaluation import evaluate
from opnorm.spec import build, names
from opnorm.training import TrainingSettings, train
from tests.analyses.toys import data
from tests.attacks.victims import images, make, net


@dataclass
class Output:
    logits: Tensor
    hidden: Any = None


class Named(NamedTuple):
    logits: Tensor
    aux: Tensor


KINDS = {
    "dataclass": lambda z: Output(z, (z, z)),
    "named tuple": lambda z: Named(z, 2 * z),
    "dict": lambda z: {"loss": z.sum(), "logits": z},
    "ordered": lambda z: OrderedDict(out=z),
    "tuple": lambda z: (z,),
    "list": lambda z: [z],
}


class Returns(nn.Module):
    def __init__(self, inner, kind):
        super().__init__()
        self.inner, self.kind = inner, kind

    def forward(self, x):
        return KINDS[self.kind](self.inner(x))


on_all_kinds = pytest.mark.parametrize("kind", KINDS)
quiet = pytest.mark.filterwarnings("ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning")


@quiet
@on_all_kinds
@pytest.mark.parametrize("name", names("attack"))
def test_attacks(name, kind):
    plain = net().eval()
    x, _ = images(4)
    y, attack = plain(x).argmax(1), make(name, 2, eps=0.5, steps=3)
    assert torch.equal(attack(Returns(plain, kind), x, y), attack(plain, x, y))


@on_all_kinds
def test_evaluations_certificates_and_jacobians(kind):
    plain = net().eval()
    other = Returns(plain, kind)
    x, _ = images(6)
    y = plain(x).argmax(1)
    ours, theirs = (evaluate(m, x, y, make("pgd", 2, eps=0.5, steps=2)) for m in (other, plain))
    assert torch.equal(ours.result.points, theirs.result.points)
    assert ours.masking == theirs.masking
    assert check_transfer(plain, other, x, y, theirs.result, 2, 0.5) == check_transfer(
        plain, plain, x, y, theirs.result, 2, 0.5
    )
    closest = fab(norm=2, steps=2, targets=2).closest
    assert torch.equal(closest(other, x, y).points, closest(plain, x, y).points)
    assert certified(plain, x, y, 1e-4).any()
    assert lipschitz_radius(other, x, y).shape == y.shape
    assert torch.equal(jacobian.explicit(other, x), jacobian.explicit(plain, x))
    assert torch.equal(jacobian.jacobian_norm(other, x).upper, jacobian.jacobian_norm(plain, x).upper)


@on_all_kinds
def test_objectives_and_training(kind):
    plain = net().eval()
    x, y = images(6)
    for name in names("objective"):
        losses = []
        for model in (Returns(plain, kind), plain):
            torch.manual_seed(0)
            losses.append(build(f"{name}()", "objective")(model, x, y).loss)
        assert torch.equal(*losses)
    toy, settings = data(60), TrainingSettings(epochs=1, batch=25)
    (ours,), (theirs,) = (train(m, toy, settings) for m in (Returns(net(), kind), net()))
    assert ours["loss"] == theirs["loss"]


def test_several_tensors_are_named_and_none_is_said():
    z = torch.zeros(2, 3)
    with pytest.raises(
        ModelError, match=r"dict with 2 tensors: out \(2, 3\), aux \(2, 3\); expected one tensor"
    ):
        one_tensor({"out": z, "aux": z})
    for nothing in (None, 3, (), {"logits": None}):
        with pytest.raises(ModelError, match="without a tensor; expected logits"):
            one_tensor(nothing)
