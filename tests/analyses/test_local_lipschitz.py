"""The Lipschitz constants of blocks at test points, against the norms of the Jacobians."""

import pytest

from opnorm.analyses import local_lipschitz
from opnorm.analyses._local_lipschitz import sentence
from opnorm.errors import OpnormError
from opnorm.jacobian import jacobian_norm
from tests.analyses.toys import sampled, two_class_network, two_classes

NETWORK = two_class_network
POINTS = 3


def test_the_network_has_a_row_for_each_point(model):
    rows = [row for row in local_lipschitz(points=POINTS)(model, two_classes()) if not row["block"]]
    truth = jacobian_norm(model, sampled(POINTS)[0]).lower
    assert [row["lower"] for row in rows] == pytest.approx(truth.tolist(), rel=1e-5)
    wider = [row for row in local_lipschitz(0.01, POINTS)(model, two_classes()) if not row["block"]]
    assert all(row["lower"] <= row["upper"] for row in wider)


def test_a_bound_that_says_little_is_called_so():
    row = {"block": "", "radius": 0.1, "lower": 2.0, "upper": 20.0, "ratio": 10.0, "reason": ""}
    assert "says little" not in sentence([row])
    assert "says little; take a smaller radius" in sentence([row, row | {"upper": 2000.0, "ratio": 1000.0}])


def test_a_negative_radius_is_an_error():
    with pytest.raises(OpnormError, match="radius"):
        local_lipschitz(radius=-1)
