"""Bounds of networks whose norms multiply to less than a float can be."""

import math

import pytest
import torch
from torch import nn

from opnorm import lipschitz_bound


@pytest.mark.parametrize("sizes", [(1e-200, 1e-200, 1e300, 1e200), (1e-5, 1e-305, 1e300), (1e-200, 1e-200)])
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_a_product_that_underflows_is_not_zero(sizes, ord):
    net = nn.Sequential(*(nn.Linear(2, 2, bias=False).double() for _ in sizes))
    for layer, size in zip(net, sizes, strict=True):
        layer.weight.data = size * torch.eye(2, dtype=torch.float64)
    exponent = sum(math.log10(size) for size in sizes)
    bound = lipschitz_bound(net, torch.zeros(1, 2, dtype=torch.float64), ord).value
    assert bound is not None
    assert math.log10(bound) >= exponent - 1e-9
    net[0].weight.data.zero_()
    assert lipschitz_bound(net, torch.zeros(1, 2, dtype=torch.float64), ord).value < 1e-100
