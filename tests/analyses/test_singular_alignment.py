"""The alignment with singular vectors, against the same by hand."""

import math

import pytest
import torch
from torch import nn

from opnorm.analyses import singular_alignment
from opnorm.attacks import pgd
from tests.analyses.toys import features_by_hand, two_class_network, two_classes

NETWORK = two_class_network
POINTS = 30


def test_the_alignment(model, points):
    x, y = points
    z = pgd(norm=2, eps=0.5)(model, x, y, seed=0) - x
    own, random = singular_alignment(POINTS)(model, two_classes())
    Vh = torch.linalg.svd(features_by_hand(model)(x.double())[1], full_matrices=False).Vh
    cosine = (Vh @ nn.functional.normalize(z.double().flatten(1))[:, :, None]).squeeze(2).abs()
    assert own["mean"][:3] == pytest.approx(cosine.mean(0)[:3].tolist(), rel=1e-3)
    assert own["mean"][0] > 0.7 > 2 * random["mean"][0], "two classes: attacks go one way"
    assert own["chance"] == pytest.approx(math.sqrt(2 / (16 * math.pi)), rel=1e-5)
    assert (own["network"], random["network"]) == ("own", "random")
