"""The interval around the robust radius, against margins and distances by hand."""

import math
import warnings

import pytest
import torch
from torch import nn

from opnorm.analyses import lipschitz_bracket, robust_radius
from opnorm.certificates import lipschitz_radius
from tests.analyses.toys import two_class_network, two_classes

NETWORK = two_class_network
POINTS = 30


@pytest.mark.parametrize("norm", [pytest.param(1, marks=pytest.mark.slow), 2, math.inf])
def test_the_robust_radius_is_an_interval(model, points, norm):
    highest = {1: 4.0, 2: 2.0, math.inf: 0.5}[norm]
    (row,) = robust_radius(norm, highest, POINTS, 5)(model, two_classes())
    x, y = points
    logits = model(x).double()
    margin = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    stretch = {1: 1, 2: math.sqrt(2), math.inf: 2}[norm] * row["lipschitz"]
    assert row["certified"] == lipschitz_radius(model, x, y, norm).tolist()
    plain = (
        margin.clamp(min=0) / stretch
    ).tolist()  # without a closer look at the last layer, and without rounding
    assert all(c >= 0.99 * m - 1e-3 for c, m in zip(row["certified"], plain, strict=True))
    assert sum(row["certified"]) > 0
    assert len(row["attacked"]) == POINTS
    for low, high in zip(row["certified"], row["attacked"], strict=True):
        assert high is None or low <= high
    assert sum(d is not None for d in row["attacked"]) > POINTS / 2


def test_the_robust_radius_is_tight_for_a_linear_network():
    """f = (a·x, -a·x): the distance to the boundary is 2 |a·x - b| / ‖2a‖, and the norm of the logits is √2 ‖a‖."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    a = torch.randn(16) / 4
    model[1].weight.data, model[1].bias.data = torch.stack([-a, a]), torch.zeros(2)
    toy = two_classes(24)
    (row,) = robust_radius(2, 4.0, 24, 10)(model, toy)
    x, y = toy.test.images.float().flatten(1) / 255, toy.test.labels
    distance = (x @ a) * (2 * y - 1) / a.norm()
    want = distance.clamp(min=0).tolist()
    assert row["certified"] == pytest.approx(want, rel=1e-3, abs=1e-5)  # less the rounding of the logits
    assert all(c <= w * (1 + 1e-6) for c, w in zip(row["certified"], want, strict=True))
    pairs = [(d, w) for d, w in zip(row["attacked"], want, strict=True) if d is not None]
    assert all(d >= w * (1 - 1e-5) for d, w in pairs)
    assert sum(d <= 1.2 * w + 0.02 for d, w in pairs) > 8


def test_no_bound_certifies_nothing_and_a_constant_network_everything(points):
    class Product(nn.Module):
        def forward(self, x):
            x = x.flatten(1)[:, :2]
            return x * x.flip(1)

    (row,) = robust_radius(2, 0.1, 5, 1)(Product(), two_classes())
    assert row["lipschitz"] is None
    assert "product" in row["reason"]
    assert row["certified"] == [0] * 5
    assert "bound is not known" in lipschitz_bracket().sentence(
        lipschitz_bracket(points=5)(Product(), two_classes())
    )
    constant = nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
    nn.init.zeros_(constant[1].weight)
    constant[1].bias.data = torch.tensor([1.0, 0.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the attack says that it is blind
        (row,) = robust_radius(2, 0.1, 60, 1)(constant, two_classes())
    labels = two_classes().test.labels.tolist()
    assert row["certified"] == [0 if label else 4 for label in labels], "the whole box, or nothing"
    assert row["attacked"] == [0 if label else None for label in labels]


def test_the_shares_of_the_chart():
    row = {"norm": "2", "highest": 3.0, "certified": [0.0, 1.0], "attacked": [2.0, None]}
    values = robust_radius().chart([row]).spec["datasets"]["rows"]
    at = {(v["panel"], v["x"]): v["value"] for v in values}
    assert [at["certified 2", e] for e in (0, 0.9, 1.0, 3.0)] == [0.5, 0.5, 0, 0]
    assert [at["attacked 2", e] for e in (0, 1.9, 2.0, 3.0)] == [1, 1, 0.5, 0.5]


def test_the_sentence_of_points_that_no_attack_changes():
    row = {"norm": "inf", "highest": 0.3, "certified": [0.0, 0.1, 0.2], "attacked": [0.2, None, None]}
    assert robust_radius().sentence([row]) == (
        "In ℓ∞ half of the images are proven robust to changes of 0.1, and half are not misclassified up to 0.3."
    )
