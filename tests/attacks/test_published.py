"""The numbers of published methods, each written out: Croce & Hein 2020 (AutoAttack, FAB), Andriushchenko et al. 2020."""

import math

import pytest
import torch
from torch import nn

from opnorm.attacks import autoattack, pgd
from tests.attacks.victims import Linear, images


class Robust(nn.Module):
    """Always class 0 of 12, with a slope; it keeps the points that it evaluates."""

    def __init__(self, pixels):
        super().__init__()
        weight = torch.randn(12, pixels, generator=torch.Generator().manual_seed(0))
        self.weight, self.evaluated = nn.Parameter(0.1 * weight / pixels), []

    def forward(self, x):
        self.evaluated.append(x.detach().clone())
        return x.flatten(1) @ self.weight.T + 10 * torch.eye(12)[0]


@pytest.mark.parametrize(
    ("norm", "version", "searches"),
    [
        (math.inf, "standard", {"APGD-CE": 1, "APGD-T": 9, "FAB-T": 9}),
        pytest.param(2, "standard", {"APGD-CE": 1, "APGD-T": 9, "FAB-T": 9}, marks=pytest.mark.slow),
        (1, "standard", {"APGD-CE": 5, "APGD-T": 5, "FAB-T": 9}),
        (math.inf, "plus", {"APGD-CE": 5, "APGD-DLR": 5, "APGD-T": 9, "FAB-T": 9, "FAB": 5}),
    ],
)
def test_targets_restarts_and_steps_of_autoattack(norm, version, searches):
    x, y = images(2)[0], torch.zeros(2, dtype=torch.long)
    names = [name.lower() for name in searches]
    attack = autoattack(norm, 0.1, version=version, attacks=names)
    stages = attack.evaluate(Robust(16).eval(), x, y).stages
    assert {stage.name: stage.searches for stage in stages} == searches
    # 100 steps, and the end of the last one (ℓ1 APGD: the ends of three phases); FAB evaluates its linearization apart
    steps = {name: 2 * 101 if name.startswith("FAB") else (103 if norm == 1 else 101) for name in searches}
    for stage in stages:
        assert stage.counts["forward"] == 2 * searches[stage.name] * steps[stage.name]
        assert stage.counts["stopped_early"] == 0


def test_autoattack_computes_in_the_precision_of_the_model():
    x, y = images(2)[0], torch.zeros(2, dtype=torch.long)
    model = Robust(16).eval()
    autoattack(eps=0.1, attacks=("apgd-ce",)).evaluate(model, x, y)
    # the clean points once more for randomness, 101 points of APGD, and its result
    assert len(model.evaluated) == 2 + 101 + 1
    assert {z.dtype for z in model.evaluated} == {torch.float32}


def test_queries_and_squares_of_autoattack():
    """The squares are those of 10,000 queries, cut off after 5,000: 3 pixels wide at the end on 32 x 32."""
    model = Robust(1024).eval()
    x = torch.full((1, 1, 32, 32), 0.5)
    with torch.no_grad():
        model.weight.zero_()  # no query raises the margin, so that all change the same stripes
    autoattack(eps=0.1, attacks=("square",)).evaluate(model, x, torch.zeros(1, dtype=torch.long))
    queries = torch.cat(model.evaluated)[2:-1]  # after the clean point, twice, and before the result
    assert 5000 <= len(queries) < 5064  # the last batch has up to 63 that do not count
    changed = (queries != queries[0]).any(3).flatten(1).sum(1)  # rows; of columns those with the other sign
    sides = ((11, 29), (51, 20), (201, 14), (501, 10), (1001, 7), (2001, 5), (4001, 4), (5000, 3))
    first = 1
    for (
        last,
        side,
    ) in sides:  # side = round(32 √(0.8 / 2^j)) after j of 10, 50, 200, 500, 1000, 2000, 4000 queries
        assert set(changed[first:last].tolist()) == {side}
        first = last


def test_the_step_of_roth():
    """Eq. 17: x + α sign(g) |g|^(p* - 1) / ‖g‖_p*^(p* - 1), projected; for p = 1 all weight on the largest coordinates."""
    g = torch.tensor([0.5, -2.0, 1.0, 2.0]).view(1, 1, 2, 2)
    x = torch.tensor([0.5, 0.5, 0.5, 0.99]).view(1, 1, 2, 2)
    y = torch.zeros(1, dtype=torch.long)
    model, alpha = Linear(g), 0.1
    steps = {
        1: [0, -0.05, 0, 0.01],  # half a step each way; what leaves the box is lost
        math.inf: [0.1, -0.1, 0.1, 0.01],
    }
    g = g.flatten().double()
    power = g.sign() * g.abs() ** 0.5 / (g.abs() ** 1.5).sum() ** (1 / 3)  # p = 3: p* = 1.5
    steps[3] = (alpha * power).tolist()
    steps[3][3] = 0.01
    for p, step in steps.items():
        attack = pgd(p, 0.3, steps=1, step=alpha, random_start=False, ascent="roth")
        moved = (attack(model, x, y) - x).flatten().double()
        assert torch.allclose(moved, torch.tensor(step, dtype=torch.float64), atol=1e-6)
    box = pgd(1, 0.3, steps=1, step=alpha, random_start=False)(model, x, y) - x
    assert torch.allclose(box.flatten(), torch.tensor([0, -0.1, 0, 0.0]), atol=1e-6)


def test_iterates_of_fab():
    """α_max = 0.1, η = 1.05 and β = 0.9, on a curved boundary in ℓ2, away from the box."""
    w, m = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    m, evaluated = 0.5 + 0.1 * m, []

    def gap(z):
        d = (z - m).flatten(1)
        return 0.3 * (d * w.flatten()).sum(1) + 3 * (d**2).sum(1) + 0.1 * (8 * d).sin().sum(1) - 1

    class Curved(nn.Module):
        def forward(self, z):
            evaluated.append(z.detach().clone())
            return torch.stack([torch.zeros_like(gap(z)), gap(z)], 1)

    x = m[None]
    attack = autoattack(2, 1e-3, attacks=("fab-t",))
    attack.evaluate(Curved(), x, torch.zeros(1, dtype=torch.long))
    z, capped = x.clone(), 0
    for step in range(20):
        assert torch.allclose(evaluated[2 + 2 * step], z, atol=1e-9)
        begin = (x + 0.9 * (z - x) if gap(z) > 0 else z).requires_grad_()
        (slope,) = torch.autograd.grad(gap(begin).sum(), begin)
        unit, value = slope / slope.norm() ** 2, gap(begin).detach()
        d, d_x = -value * unit, -(value - (slope * (begin - x)).sum()) * unit
        share = d.norm() / (d.norm() + d_x.norm())
        capped += bool(share > 0.1) and step > 0
        z = (1 - share.clamp(max=0.1)) * (begin + 1.05 * d) + share.clamp(max=0.1) * (x + 1.05 * d_x)
        z = z.detach()
        assert ((z > 0) & (z < 1)).all()
    assert capped
