"""Every attack, the evaluation and the check for gradient masking, on inputs of every shape."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks import fab, minimal_eps, pgd
from opnorm.errors import AttackError
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.image_sheet import contact_sheet
from opnorm.spec import names
from tests.attacks.test_contract import exactly_inside
from tests.attacks.victims import OTHERS, make

SHAPES = {
    "vectors": (12,), "sequences": (2, 7), "images": (1, 4, 4), "volumes": (2, 3, 2, 3), "videos": (1, 2, 2, 3, 2),
}  # fmt: skip
RADII = {math.inf: 0.4, 2: 0.8, 1: 2.0}
pytestmark = pytest.mark.filterwarnings(
    "ignore:with 3 classes:UserWarning", "ignore:the DLR loss:UserWarning"
)


def network(shape, seed=0):
    """Its logits are equal where all values are 0.5, so that every class is found nearby."""
    torch.manual_seed(seed)
    first = nn.Linear(math.prod(shape), 16)
    first.bias.data = -first.weight.data.sum(1) / 2
    return nn.Sequential(nn.Flatten(), first, nn.Tanh(), nn.Linear(16, 3, bias=False)).eval()


def points(model, shape, count=6):
    x = torch.rand(count, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return x, model(x).argmax(1)


@pytest.mark.each_pair
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("name", names("attack"))
def test_every_attack_takes_every_shape(name, norm, shape):
    model = network(shape)
    x, y = points(model, shape)
    attack = make(name, norm, eps=RADII[norm], steps=5)
    z = attack(model, x, y)
    exactly_inside(x, z, RADII[norm], norm)
    assert (z != x).any()
    assert attack(model, x[:1], y[:1]).shape == (1, *shape)
    assert attack(model, x[:0], y[:0]).shape == (0, *shape)
    for wrong in (x[:, :0], x.flatten(1)[:, 0]):
        with pytest.raises(AttackError, match=r"expected \(B, \.\.\.\)"):
            attack(model, wrong, y)


@pytest.mark.parametrize("name", [name for name in names("attack") if name not in OTHERS])
@pytest.mark.parametrize("norm", RADII)
def test_attacks_with_gradients_see_only_the_values(name, norm):
    """The same values in other shapes give the same points."""
    vector = network((24,))
    x, y = points(vector, (24,))
    attack = make(name, norm, eps=RADII[norm], steps=5)
    found = attack(vector, x, y)
    for shape in ((2, 12), (2, 3, 4), (1, 2, 3, 4)):
        assert torch.equal(attack(vector, x.view(-1, *shape), y).flatten(1), found)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_evaluations_and_the_check_for_masking_take_every_shape(shape, tmp_path):
    model = network(shape)
    x, y = points(model, shape, 20)
    found = evaluate(model, x, y, pgd(eps=0.01))
    assert found.result.points.shape == x.shape
    assert found.masking.passed, found.masking.summary
    assert {"the large radius", "the attack"} <= {one.component for one in found.masking.indicators}
    if len(shape) != 3:
        with pytest.raises(AttackError, match=r"no images to draw; expected \(B, C, H, W\)"):
            contact_sheet(tmp_path / "sheet.png", x, found)
    closest = fab(norm=2, targets=0, steps=5).closest(model, x, y)
    assert closest.points.shape == x.shape
    assert minimal_eps(model, x, y, lambda eps: pgd(eps=eps, steps=2), halvings=2).points.shape == x.shape
