"""The convolution with a faster gradient for its input is the same function as torch's, in every layout and geometry."""

import pytest
import torch
from torch import nn

from opnorm._core.thin_convolution import ThinConv2d, is_thin

LAYOUTS = (torch.contiguous_format, torch.channels_last)
CASES = [
    nn.Conv2d(1, 16, 3, 2, 1),
    nn.Conv2d(1, 20, 5, 3, bias=False),
    nn.Conv2d(1, 16, 1),
    nn.Conv2d(2, 40, (3, 2), stride=(1, 2), padding=(2, 0), dilation=(2, 1)),
    nn.Conv2d(3, 64, 3, padding=1),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layer", CASES, ids=str)
def test_values_and_gradients_are_those_of_torch(layer, layout):
    generator = torch.Generator().manual_seed(0)
    layer = layer.double().requires_grad_(False).to(memory_format=layout)
    assert is_thin(layer)
    thin = ThinConv2d(layer)
    for sizes in ((9, 11), (6, 7)):
        x = torch.randn(3, layer.in_channels, *sizes, generator=generator, dtype=torch.float64)
        x = x.contiguous(memory_format=layout).requires_grad_()
        expected, found = layer(x), thin(x)
        weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(found, expected)
        for grad in (weights, weights.contiguous(memory_format=torch.channels_last)):
            own, right = (
                torch.autograd.grad(out, x, grad, retain_graph=True)[0] for out in (found, expected)
            )
            torch.testing.assert_close(own, right, rtol=1e-12, atol=1e-12)


def test_a_batch_of_no_images():
    layer, x = nn.Conv2d(2, 32, 3).requires_grad_(False), torch.rand(0, 2, 5, 5, requires_grad=True)
    assert torch.autograd.grad(ThinConv2d(layer)(x).sum(), x)[0].shape == x.shape


def test_it_shares_the_weights():
    layer = nn.Conv2d(1, 16, 3).requires_grad_(False)
    thin, x = ThinConv2d(layer), torch.rand(2, 1, 5, 5)
    assert set(thin.state_dict()) == set(layer.state_dict())
    layer.weight.mul_(-3)
    layer.bias.add_(1)
    torch.testing.assert_close(thin(x), layer(x))
    torch.testing.assert_close(thin(x[0]), layer(x[0]))  # without a batch axis


def test_which_convolutions_are_thin():
    class Own(nn.Conv2d):
        pass

    for other in (
        nn.Conv2d(16, 16, 3),
        nn.Conv2d(1, 4, 3),
        nn.Conv2d(2, 64, 3, groups=2),
        nn.Conv2d(1, 64, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(1, 64, 3, padding="same"),
        nn.Conv1d(1, 64, 3),
        Own(1, 64, 3),
    ):
        assert not is_thin(other)
