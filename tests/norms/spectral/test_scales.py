"""Norms, bounds and singular values follow the scale of the weights, where squares would leave the range of float64."""

import math

import pytest
import torch
from torch import nn

from opnorm.errors import NormError
from opnorm.norms import (
    induced_norm,
    singular_value_spread,
    singular_values,
    smallest_singular_value,
    spectral_norm,
)
from opnorm.norms.spectral.cheap_bounds import BOUNDS, bound, vs_norm


class Sums(nn.Module):
    """An affine layer that is known through its forward alone."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(20))

    def forward(self, x):
        return x.cumsum(1) * self.weight


LAYERS = {
    "linear": (lambda: nn.Linear(20, 15), (20,)),
    "convolution": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 8, 8)),
    "large": (lambda: nn.Conv2d(4, 4, 3, padding=1), (4, 40, 40)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4), (4, 12, 12)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 3, 2), (2, 8, 8)),
    "circular": (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 14, 14)),
    "reflect": (lambda: nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), (3, 14, 14)),
    "own": (Sums, (20,)),
}
MEASURED = {
    "spectral_norm": spectral_norm,
    "singular_values": lambda layer, shape: singular_values(layer, shape).values[[0, -1]],
    "singular_value_spread": lambda layer, shape: (lambda s: [s.lower, s.std, s.upper])(
        singular_value_spread(layer, shape)
    ),
    "smallest_singular_value": smallest_singular_value,
    "induced_norm": lambda layer, shape: induced_norm(layer, math.inf, 2, shape),
    "vs_norm": vs_norm,
    **{name: lambda layer, shape, name=name: bound(layer, shape, name) for name in BOUNDS},
}


def ends(value):
    if isinstance(value, tuple):
        return float(value.lower), float(value.upper)
    return tuple(torch.as_tensor(value, dtype=torch.float64).flatten().tolist())


@pytest.mark.each_value
@pytest.mark.parametrize("measured", MEASURED)
@pytest.mark.parametrize("name", LAYERS)
def test_everything_follows_the_scale_of_the_weights(name, measured):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make().double()
    for p in layer.parameters():
        p.requires_grad_(False)
    if isinstance(getattr(layer, "bias", None), nn.Parameter):
        layer.bias.zero_()
    weight = layer.weight.clone()
    try:
        unit = ends(MEASURED[measured](layer, shape))
    except NormError:
        pytest.skip("not known for this layer")
    for exponent in (-990, -600, -500, 500, 600, 990):
        layer.weight.copy_(torch.ldexp(weight, torch.tensor(float(exponent))))
        found = [math.ldexp(end, -exponent) for end in ends(MEASURED[measured](layer, shape))]
        assert found == pytest.approx(unit, rel=1e-6, abs=1e-12), exponent
