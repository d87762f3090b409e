"""A linear layer on features with their channels last gives what Flatten and the layer give, and takes their place only."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opnorm._core.pixel_linear import PixelLinear, pixel_linears

LAYOUTS = (torch.contiguous_format, torch.channels_last)
sizes = st.tuples(*[st.integers(1, 5)] * 3)


@settings(max_examples=40, deadline=None)
@given(
    sizes, st.integers(1, 4), st.integers(1, 6), st.booleans(), st.sampled_from(LAYOUTS), st.integers(-30, 30)
)
def test_values_and_gradients_are_those_of_the_two_layers(shape, points, classes, bias, layout, exponent):
    generator = torch.Generator().manual_seed(0)
    layer = nn.Linear(shape[0] * shape[1] * shape[2], classes, bias).double()
    x = torch.randn(points, *shape, generator=generator, dtype=torch.float64) * 10.0**exponent
    x = x.contiguous(memory_format=layout).requires_grad_()
    expected, found = layer(x.flatten(1)), PixelLinear(layer)(x)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12 * 10.0**exponent)
    own, right = (torch.autograd.grad(out, x, weights)[0] for out in (found, expected))
    torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(12,), (4, 3), (2, 3, 1, 2)])
def test_features_of_other_numbers_of_axes_are_flattened(shape):
    layer, x = nn.Linear(12, 3), torch.rand(5, *shape)
    torch.testing.assert_close(PixelLinear(layer)(x), layer(x.flatten(1)), rtol=0, atol=0)


def test_it_shares_the_weights():
    layer, x = nn.Linear(8, 3).requires_grad_(False), torch.rand(2, 2, 2, 2)
    pixel = PixelLinear(layer)
    assert set(pixel.state_dict()) == set(layer.state_dict())
    layer.weight.mul_(-3)
    layer.bias.add_(1)
    torch.testing.assert_close(pixel(x), layer(x.flatten(1)))


def test_which_layers_are_replaced():
    class Own(nn.Sequential):
        pass

    flatten, layer = nn.Flatten(), nn.Linear(4, 4)
    new = pixel_linears(nn.Sequential(nn.ReLU(), nn.Sequential(flatten, layer)))
    assert {m: type(n) for m, n in new.items()} == {flatten: nn.Identity, layer: PixelLinear}
    for network in (
        nn.Sequential(nn.Flatten(), nn.ReLU(), layer),
        nn.Sequential(nn.Flatten(2), layer),
        nn.Sequential(nn.Flatten(1, 2), layer),
        nn.Sequential(layer, nn.Flatten()),
        Own(flatten, layer),
        nn.Sequential(flatten, layer, layer),
        nn.Sequential(nn.Sequential(flatten, layer), flatten),
        nn.Sequential(flatten, nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4))),
    ):
        assert pixel_linears(network) == {}
