"""The size of linear regions, against probabilities by hand."""

import pytest
import torch
from torch import nn

from opnorm.analyses import relu_cells
from opnorm.data import Dataset, Split
from tests.analyses.toys import SHAPE, features_by_hand, sampled, two_class_network, two_classes

NETWORK = two_class_network


def test_relu_cells(model):
    found = {(r["around"], r["eps"]): r for r in relu_cells(30, (0, 0.1, 0.5))(model, two_classes())}
    assert len(found) == 6
    for around in ("data", "noise"):
        shares = [found[around, eps]["mean"] for eps in (0, 0.1, 0.5)]
        assert shares[0] == 1
        assert 1 > shares[1] > shares[2] > 0.3
        assert found[around, 0.1]["units"] == 24
    assert found["data", 0.5]["mean"] != found["noise", 0.5]["mean"]


def test_relu_cells_by_hand():
    """One unit, on above 1/2: noise in [-ε, ε] around 0.6 (153/255) switches it off with probability (ε - 0.1) / 2ε."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 1), nn.ReLU())
    model[1].weight.data = torch.eye(16)[:1]
    model[1].bias.data = torch.tensor([-0.5])
    images = torch.randint(0, 256, (4000, *SHAPE), generator=torch.Generator().manual_seed(0)).byte()
    images[:, 0, 0, 0] = 153
    split = Split(images, torch.zeros(4000).long())
    toy = Dataset("one pixel", split, split, ("a", "b"))
    small, large = relu_cells(4000, (0.09, 0.4))(model, toy)[:2]
    assert small["mean"] == 1
    assert large["mean"] == pytest.approx(1 - 0.3 / 0.8, abs=0.03)
    assert (small["both_on"], large["both_on"]) == (small["mean"], large["mean"]), (
        "the unit is on at all points"
    )


def test_the_intersection_of_the_paper_counts_units_that_are_on(model):
    x, _ = sampled(30)
    on = features_by_hand(model)(x)[2].double().mean()
    still, moved = relu_cells(30, (0, 0.5))(model, two_classes())[:2]
    assert still["mean"] == 1
    assert still["both_on"] == pytest.approx(float(on), rel=1e-5)
    assert moved["both_on"] < min(still["both_on"], moved["mean"])


def test_a_chart_shows_means_over_seeds():
    rows = [
        {"method": "plain", "seed": s, "around": "data", "eps": e, "mean": share, "both_on": share / 2}
        for s, shares in enumerate(([1.0, 0.5], [1.0, 0.7]))
        for e, share in zip((0, 0.1), shares, strict=True)
    ]
    values = relu_cells().chart(rows).spec["datasets"]["rows"]
    assert [(v["x"], v["value"]) for v in values] == [(0, 1.0), (0.1, 0.6), (0, 0.5), (0.1, 0.3)]
    assert values[1]["text"] == "60.0 ± 14.1 % (2 seeds)"


@pytest.mark.parametrize(
    ("data", "noise", "points", "said"),
    [
        ((0.90, 0.01), (0.80, 0.01), 20, "around the data are larger than elsewhere"),
        ((0.80, 0.01), (0.90, 0.01), 20, "around the data are smaller than elsewhere"),
        ((0.886, 0.01), (0.887, 0.01), 20, "these points do not tell"),
        ((0.90, 0.0), (0.80, 0.0), 1, "these points do not tell"),
        ((1.0, 0.0), (1.0, 0.0), 20, "these points do not tell"),
    ],
)
def test_sizes_are_compared_only_where_the_points_tell_them_apart(data, noise, points, said):
    rows = [
        {"around": around, "eps": 0.2, "points": points, "mean": mean, "sem": sem}
        for around, (mean, sem) in (("data", data), ("noise", noise))
    ]
    assert said in relu_cells().sentence(rows)
