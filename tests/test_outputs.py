"""Models that return an object with logits, a dict or a tuple: the results are those of the logits alone."""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from opnorm import jacobian
from opnorm._core.outputs import one_tensor
from opnorm.analyses import accuracy
from opnorm.attacks import fab, minimal_eps, pgd
from opnorm.attacks.gradient_masking import check_transfer
from opnorm.certificates import certified, lipschitz_radius
from opnorm.errors import AttackError, ModelError
from opnorm.regularizers import input_gradient
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
    "encoder": lambda z: {"pooler_output": 2 * z, "last_hidden_state": z},
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


class OneLogit(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.linear, self.flat = nn.Linear(16, 1), flat

    def forward(self, x):
        z = self.linear(x.flatten(1))
        return z[:, 0] if self.flat else z


ON_LOGITS = {
    **{f"attack {name}": lambda m, x, y, name=name: make(name, 2)(m, x, y) for name in names("attack")},
    **{
        f"objective {name}": lambda *a, name=name: build(f"{name}()", "objective")(*a)
        for name in names("objective")
    },
    "closest": lambda *a: fab(norm=2).closest(*a),
    "minimal_eps": lambda *a: minimal_eps(*a, lambda eps: pgd(eps=eps)),
    "evaluate": lambda *a: evaluate(*a, pgd(eps=0.1)),
    "certified": lambda *a: certified(*a, 0.1),
    "lipschitz_radius": lipschitz_radius,
    "input_gradient": lambda m, x, y: input_gradient()(m, x).penalty(m, x, y),
    "train": lambda m, *_: train(m, data(20), TrainingSettings(epochs=1)),
    "accuracy": lambda m, *_: accuracy()(m, data(20)),
}


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("name", ON_LOGITS)
def test_one_logit_is_refused_with_the_remedy(name, flat):
    (x, _), model = images(4), OneLogit(flat)
    remedy = f"torch.{'stack' if flat else 'cat'}([torch.zeros_like(z), z], 1)"
    with pytest.raises(AttackError, match=re.escape(remedy)):
        ON_LOGITS[name](model, x, torch.zeros(4, dtype=torch.long))


class NoLogits(nn.Sequential):
    """Whole or complex numbers in place of logits."""

    def __init__(self, kind):
        super().__init__(nn.Flatten(), nn.Linear(16, 3))
        self.kind = kind

    def forward(self, x):
        z = super().forward(x)
        return (10 * z).long() if self.kind == "whole" else torch.complex(z, z)


@pytest.mark.parametrize("name", ON_LOGITS)
@pytest.mark.parametrize(("kind", "says"), [("whole", "int64"), ("complex", "complex64")])
def test_whole_and_complex_numbers_are_no_logits(name, kind, says):
    x, _ = images(4)
    with pytest.raises(
        (AttackError, ModelError),
        match=f"returns torch.{says}|does not depend on the input in a differentiable way",
    ):
        ON_LOGITS[name](NoLogits(kind), x, torch.zeros(4, dtype=torch.long))


def test_one_output_has_a_jacobian():
    x, _ = images(4)
    for flat in (False, True):
        model = OneLogit(flat)
        weight = model.linear.weight.detach()
        assert torch.allclose(jacobian.explicit(model, x), weight.view(1, 1, 1, 4, 4).expand(4, 1, 1, 4, 4))
        assert torch.allclose(jacobian.jacobian_norm(model, x).upper, weight.double().norm().expand(4))
