"""Deviation from linearity, against the same by hand."""

import math

import pytest
import torch

from opnorm.analyses import local_linearity
from opnorm.attacks import pgd
from tests.analyses.toys import features_by_hand, two_class_network, two_classes

NETWORK = two_class_network
POINTS = 30


def test_linearity(model, points):
    x, y = points
    z = (pgd(norm=2, eps=0.5)(model, x, y, seed=0) - x).double()
    z = z / z.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    phi = features_by_hand(model)
    here, J, _ = phi(x.double())
    found = {
        (r["direction"], r["distance"]): r for r in local_linearity(POINTS, (0, 0.1, 1))(model, two_classes())
    }
    for t in (0, 0.1, 1):
        there, J_there, _ = phi(x.double() + t * z)
        off = (there - here - t * (J @ z.flatten(1)[:, :, None]).squeeze(2)).norm(dim=1)
        row = found["adversarial", t]
        assert row["deviation"] == pytest.approx(float(off.mean()), rel=1e-4, abs=1e-12)
        assert row["deviation_sem"] == pytest.approx(
            float(off.std()) / math.sqrt(POINTS), rel=1e-4, abs=1e-12
        )
        assert row["sigma"] == pytest.approx(float(torch.linalg.svdvals(J_there)[:, 0].mean()), rel=1e-5)
    assert found["random", 0]["sigma"] == found["adversarial", 0]["sigma"]
    assert 0 < found["random", 0.1]["deviation"] < found["random", 1]["deviation"]
