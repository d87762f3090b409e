"""No random network is steeper than its bound; every operation that has a rule is among those that they are made of."""

import math

import pytest
import torch
from torch import nn

from opnorm.norms import lipschitz_bound
from opnorm.norms.network.layer_rules import RULES
from tests.norms.network.random_networks import (
    COMPOUND,
    OPS,
    REFUSED,
    RandomNetwork,
    steepest,
    steepest_in_a_batch,
)

ORDS = (1, 2, math.inf)


def is_known(seed, first=""):
    """Whether the network of this seed has a bound, which then holds."""
    model, p = RandomNetwork(seed, first), ORDS[seed % 3]
    example = torch.zeros(1, *model.in_shape, dtype=torch.float64)
    bound = lipschitz_bound(model, example, p)
    if bound.value is None:
        return False
    slope = max(steepest(model, p, seed), steepest_in_a_batch(model, p, seed))
    assert slope <= bound.value * (1 + 1e-6) + 1e-7, (seed, first, p, model.names, slope, bound)
    return True


def test_every_operation_with_a_rule_is_in_random_networks():
    names = {name for name in RULES if isinstance(name, str)}
    assert names == set(OPS) - set(COMPOUND) | set(REFUSED)
    assert not set(OPS) & set(REFUSED)


@pytest.mark.parametrize("name", sorted(OPS))
def test_a_network_with_each_operation(name):
    """The bound of some network with it is known, and holds."""
    assert any(is_known(seed, name) for seed in range(100))


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_operations_without_a_bound_are_refused(name):
    class Net(nn.Module):
        def forward(self, x):
            return REFUSED[name](x)

    bound = lipschitz_bound(Net(), torch.ones(1, 2), 1)
    assert bound.value is None
    assert name in bound.reason


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_ten_thousand_random_networks():
    known = sum(is_known(seed) for seed in range(1000, 11_000))
    assert known > 3000
