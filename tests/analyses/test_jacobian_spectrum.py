"""The Jacobian's spectrum, against singular values by hand."""

import math

import pytest
import torch

from opnorm.analyses import jacobian_spectrum
from opnorm.attacks import pgd
from tests.analyses.toys import features_by_hand, two_class_network, two_classes

NETWORK = two_class_network
POINTS = 30


def test_the_spectrum(model, points):
    x, y = points
    z = pgd(norm=2, eps=0.5)(model, x, y, seed=0)
    clean, attacked = jacobian_spectrum(POINTS)(model, two_classes())
    for row, at, where in ((clean, "clean", x), (attacked, "attacked", z)):
        S = torch.linalg.svdvals(features_by_hand(model)(where)[1])
        assert row["at"] == at
        assert row["mean"] == pytest.approx(S.mean(0).tolist(), rel=1e-4, abs=1e-5)
        assert row["sem"] == pytest.approx((S.std(0) / math.sqrt(POINTS)).tolist(), rel=1e-3, abs=1e-5)
        assert (row["layer"], row["points"]) == ("6", POINTS)
    assert clean["mean"] != attacked["mean"]


def test_the_end_of_a_spectrum_that_is_rounding_alone_is_not_drawn():
    row = {"at": "clean", "mean": [2.0, 0.5, 1e-6, 1e-9, 0.0]}
    drawn = jacobian_spectrum().chart([row]).spec["datasets"]["rows"]
    assert [(v["x"], v["value"]) for v in drawn] == [(1, 2.0), (2, 0.5), (3, 1e-6)]
    assert jacobian_spectrum().chart([row | {"mean": [0.0, 0.0]}]).empty
