"""The smallest radius at which an attack succeeds, and curves of accuracy from it."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks import accuracy_curve, fab, fgsm, minimal_eps, pgd
from opnorm.attacks.minimum_norm import bisect_to_boundary
from opnorm.errors import AttackError
from tests.attacks.test_fab import Classes, true_distances
from tests.attacks.victims import images

NORMS = (math.inf, 2, 1)


def victims(n=30):
    model, (x, _) = Classes(2), images(n)
    y = model(x).argmax(1)
    y[::10] = 1 - y[::10]
    return model, x, y


@pytest.mark.parametrize("norm", [math.inf, 2, pytest.param(1, marks=pytest.mark.slow)])
def test_linear_models(norm):
    model, x, y = victims()
    highest = {math.inf: 0.2, 2: 0.6, 1: 1.5}[norm]
    true = true_distances(model, x, y, norm)
    true[::10] = 0  # wrong as they are
    closest = minimal_eps(
        model, x, y, lambda eps: pgd(norm, eps, steps=20), norm=norm, highest=highest, halvings=7
    )
    assert (closest.distance >= true * (1 - 1e-6)).all()
    reached = closest.distance < math.inf
    assert (true[~reached] > 0.95 * highest).all()
    assert reached.sum() > 15
    assert (closest.distance <= true * 1.05 + highest / 2**7 * 1.01)[reached].all()
    assert (model(closest.points).argmax(1) != y)[reached].all()
    gaps = torch.linalg.vector_norm((closest.points.double() - x.double()).flatten(1), norm, dim=1)
    assert torch.equal(closest.distance[reached], gaps[reached])
    assert torch.equal(closest.points[~reached], x[~reached])
    assert (closest.distance[::10] == 0).all()
    # FAB measures the same thing
    other = fab(norm, steps=20).closest(model, x, y).distance
    assert (closest.distance >= other * 0.999 - 1e-9).all()


def test_each_point_is_tried_about_as_often_as_the_grid_needs():
    model, x, y = victims()
    tried = []

    def counting(eps):
        attack = fgsm(eps)

        def act(model, x, y):
            tried.append((eps, len(x)))
            return attack(model, x, y)

        return act

    closest = minimal_eps(model, x, y, counting, highest=0.25, halvings=5)
    assert tried[0] == (0.25, 27)
    assert sum(n for _, n in tried) <= 27 * 6
    assert len({eps for eps, _ in tried}) == len(tried)  # all points with the same middle in one batch
    assert len(closest.distance.unique()) > 20  # of what was found, not of the grid
    none = minimal_eps(model, x, 1 - model(x).argmax(1), counting)
    assert (none.distance == 0).all()


def test_what_no_attack_breaks():
    class Constant(nn.Module):
        def forward(self, x):
            return torch.tensor([1.0, 0.0]).repeat(len(x), 1) + 0 * x.flatten(1)[:, :2]

    x, y = images(5)
    closest = minimal_eps(Constant(), x, torch.zeros_like(y), lambda eps: lambda m, x, y: x)
    assert closest.distance.eq(math.inf).all()
    assert torch.equal(closest.points, x)
    assert accuracy_curve(closest.distance, (0, 0.1, 10.0)).tolist() == [1, 1, 1]
    empty = minimal_eps(Constant(), x[:0], y[:0], fgsm)
    assert empty.distance.shape == (0,)


def test_accuracy_curves():
    distance = torch.tensor([0.0, 0.1, 0.1, 0.3, math.inf], dtype=torch.float64)
    radii = (0, 0.05, 0.1, 0.2, 0.3, 5)
    assert accuracy_curve(distance, radii).tolist() == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])
    for wrong in (distance[:0], torch.tensor([0.1, math.nan])):
        with pytest.raises(AttackError, match="at least one distance and no NaN"):
            accuracy_curve(wrong, radii)


def test_bisection_stops_at_the_boundary():
    model, x, y = victims()
    x, y = x[1:9], y[1:9]
    far = (model.w[1 - y] - model.w[y]).sign().view_as(x).clamp(0, 1).detach()
    found = model(far).argmax(1) != y
    found[3] = False
    with torch.no_grad():
        closest = bisect_to_boundary(model, x, y, far, found, 2)
        gap = (closest.points - x).flatten(1).norm(dim=1) / (far - x).flatten(1).norm(dim=1)
        nearer = x + (0.998 * gap - 0.001).view(-1, 1, 1, 1) * (far - x)
        assert (model(closest.points).argmax(1) != y)[found].all()
        assert (model(nearer).argmax(1) == y)[found].all()
    assert found.sum() > 4
    assert torch.equal(closest.points[3], x[3])
    assert closest.distance[3] == math.inf


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"highest": 0}, "highest=0: expected a radius above 0"),
        ({"highest": math.nan}, "highest=nan"),
        ({"halvings": -1}, "halvings=-1: expected a whole number"),
        ({"halvings": True}, "halvings=True"),
        (
            {"norm": math.inf, "attack": lambda eps: pgd(2, 4 * eps)},
            "went as far as .* does it take another norm",
        ),
    ],
)
def test_settings_that_make_no_sense(wrong, message):
    model, x, y = victims()
    with pytest.raises(AttackError, match=message):
        minimal_eps(model, x, y, **{"attack": fgsm} | wrong)


def test_bad_inputs():
    model, x, y = victims()
    with pytest.raises(AttackError, match="inputs range from"):
        minimal_eps(model, x * 2, y, fgsm)
