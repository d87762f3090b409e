"""One rule for the norm of a ball in attacks and in training: PGD and FGSM take any p from 1 on, the others 1, 2 and inf."""

import inspect

import pytest
import torch

from opnorm import spec
from opnorm._core.lp import lp_norm
from opnorm.attacks import pgd
from opnorm.errors import AttackError
from opnorm.runs.attack_evaluation import evaluate
from tests.attacks.victims import images, net

WITH_NORM = [
    (kind, name)
    for kind in ("attack", "objective")
    for name in spec.names(kind)
    if "norm" in inspect.signature(spec.resolve(spec.parse(name), kind)).parameters
]
NO_OTHER = {"apgd", "autoattack", "fab", "square"}


def make(kind, name, norm):
    radius = {} if name == "mmc" else {"eps": 0.1}
    return spec.build(name, kind, norm=norm, **radius)


@pytest.mark.parametrize(("kind", "name"), WITH_NORM)
def test_which_norms_are_taken(kind, name):
    for norm in (0.5, 0, -2, float("nan"), True, "2"):
        expected = r"expected (1, 2 or inf(; a number has no quotes)?$|a number from 1 on)"
        with pytest.raises(AttackError, match=rf"norm={norm!r}: {expected}"):
            make(kind, name, norm)
    if name in NO_OTHER:
        with pytest.raises(
            AttackError, match=r"norm=3: expected 1, 2 or inf; pgd and fgsm, and training on them, take"
        ):
            make(kind, name, 3)
    else:
        assert make(kind, name, 3) is not None


def test_a_ball_of_another_norm_is_evaluated_like_any_other():
    x, y = images(8)
    model = net().eval()
    done = evaluate(model, x, y, pgd(norm=3, eps=0.3, steps=2))
    lengths = lp_norm((done.result.points - x).flatten(1).double(), 3)
    assert (lengths <= 0.3).all()
    assert done.as_dict()["norm"] == "3"
    assert torch.equal(done.labels, y)
