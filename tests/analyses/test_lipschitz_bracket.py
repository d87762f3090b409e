"""The interval around the Lipschitz constant, against dense Jacobians."""

import copy
import math

import pytest
import torch

from opnorm.analyses import lipschitz_bracket
from opnorm.data import Dataset
from opnorm.data.dataset import Split
from opnorm.errors import SpecError
from opnorm.jacobian import jacobian_norm, secant_ascent
from opnorm.norms import lipschitz_bound
from opnorm.theory import memorizer
from tests.analyses.toys import SHAPE, sampled, two_class_network, two_classes

NETWORK = two_class_network
POINTS = 30


@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_the_bracket_holds_the_lipschitz_constant(model, norm):
    (row,) = lipschitz_bracket(norm, points=POINTS, steps=5)(model, two_classes())
    assert row["jacobian_mean"] <= row["jacobian"] <= row["upper"]
    assert row["secant_mean"] <= row["secant"] <= row["upper"] * (1 + 1e-6)
    assert row["secant"] > 0.9 * row["jacobian"]
    assert row["upper"] == lipschitz_bound(model, torch.zeros(1, *SHAPE), norm).value
    x = sampled(POINTS)[0].double()
    double = copy.deepcopy(model).double().eval()
    J = torch.stack([torch.func.jacrev(lambda v: double(v[None])[0])(z).flatten(1) for z in x])
    size = [torch.linalg.matrix_norm(A.detach(), norm) for A in J]
    assert row["jacobian"] == pytest.approx(float(max(size)), rel=1e-5)
    start = jacobian_norm(double, x, norm, norm).v
    best = torch.zeros(POINTS).double()
    for v, _ in secant_ascent(double, x, start, 0.1, norm, norm, steps=5):
        slope = (double(x + 0.1 * v) - double(x)).detach().norm(norm, dim=1) / 0.1
        best = torch.maximum(best, slope)
    assert row["secant_mean"] == pytest.approx(float(best.mean()), rel=1e-3)
    assert row["secant"] == pytest.approx(float(best.max()), rel=1e-3)


def test_a_slope_far_from_the_data():
    """That of a built network is past its points; the line through the first coordinate finds it."""
    points = torch.tensor([[[[0.1, 0.2], [0.0, 0.3]]], [[[0.9, 0.2], [0.5, 0.3]]]])
    labels = torch.tensor([0, 1])
    split = Split((points * 255).to(torch.uint8), labels)
    network = memorizer(points, labels, eps=0.05, lipschitz=1000.0).eval()
    (row,) = lipschitz_bracket(math.inf, 0.05, points=2, steps=3, along=4.0)(
        network, Dataset("two", split, split, ("a", "b"))
    )
    assert max(row["jacobian"], row["secant"]) < 1000
    assert 1000 <= row["along"] <= row["upper"] * (1 + 1e-6)
    assert "at the data 0 was" not in lipschitz_bracket().sentence([row])
    with pytest.raises(SpecError, match="along=-1"):
        lipschitz_bracket(along=-1)


class Kink(torch.nn.Module):
    """Logits (a · relu(x_0 - start), 0), which are flat from 0 to ``start``."""

    def __init__(self, start: float, slope: float) -> None:
        super().__init__()
        self.start, self.slope = start, slope

    def forward(self, x):
        first = self.slope * torch.relu(x.flatten(1)[:, :1] - self.start)
        return torch.cat([first, torch.zeros_like(first)], 1)


@pytest.mark.parametrize(("start", "slope", "end"), [(3.0, 7.0, 4.0), (1.5, 250.0, 2.0), (0.0, 0.5, 1e3)])
@pytest.mark.parametrize("norm", [1, 2, math.inf])
def test_a_slope_far_from_the_data_is_found_along_the_line(start, slope, end, norm):
    (row,) = lipschitz_bracket(norm, points=3, steps=2, along=end)(Kink(start, slope).eval(), two_classes())
    assert row["along"] == pytest.approx(slope, rel=1e-3)
    (short,) = lipschitz_bracket(norm, points=3, steps=2, along=max(start, 1e-9))(
        Kink(start + 1, slope).eval(), two_classes()
    )
    assert short["along"] == 0
