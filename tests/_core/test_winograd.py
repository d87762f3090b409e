"""Convolutions with fewer multiplications are those of torch up to rounding, in every size, and take their place only."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from opnorm._core import winograd
from opnorm._core.fast_convolutions import fast_convolutions
from opnorm._core.surrogate import Surrogate, replace_modules
from opnorm._core.winograd import WinogradConv2d, is_wide

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def wide(channels: int = 96, filters: int = 96, **how) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(channels, filters, 3, **{"padding": 1} | how).requires_grad_(False)


def relative_error(found: torch.Tensor, right: torch.Tensor) -> float:
    found, right = found.detach().double(), right.detach().double()
    return float((found - right).norm() / right.norm())


@settings(max_examples=30, deadline=None)
@given(
    st.tuples(st.integers(2, 40), st.integers(2, 40)),
    st.tuples(st.integers(3, 14), st.integers(3, 14)),
    st.tuples(st.integers(0, 2), st.integers(0, 2)),
    st.integers(1, 6),
    st.booleans(),
    st.sampled_from(LAYOUTS),
    st.integers(-30, 30),
    st.sampled_from((1, 2**14, 2**18)),
)
def test_values_and_gradients_are_those_of_the_convolution(
    features, sizes, padding, images, bias, layout, exponent, block
):
    layer = wide(*features, padding=padding, bias=bias).to(memory_format=layout)
    exact = copy.deepcopy(layer).double()
    x = torch.randn(images, features[0], *sizes) * 10.0**exponent
    layer.weight.mul_(10.0**-exponent)
    exact.weight.copy_(layer.weight)
    x = x.contiguous(memory_format=layout).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "BLOCK", block)
        patch.setattr(WinogradConv2d, "_pays", lambda self, x: True)
        found = WinogradConv2d(layer)(x)
        right = exact(x.double())
        grad = torch.randn(right.shape).contiguous(memory_format=layout)
        (own,) = torch.autograd.grad(found, x, grad)
        (expected,) = torch.autograd.grad(right, x, grad.double())
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(found, right) < 5e-6
    assert relative_error(own, expected) < 5e-6


def test_rounding_errors_are_about_twice_those_of_torch():
    layer, x = wide(128, 128), torch.randn(4, 128, 16, 16)
    right = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    assert relative_error(WinogradConv2d(layer)(x), right) < 2e-6


def test_a_zero_gradient_stays_zero_and_what_is_not_finite_is_seen():
    layer = wide(bias=False)
    x = torch.zeros(2, 96, 8, 8, requires_grad=True)
    out = WinogradConv2d(layer)(x)
    (grad,) = torch.autograd.grad(out, x, torch.zeros_like(out))
    assert not out.any()
    assert not grad.any()
    for value in (float("nan"), float("inf")):
        image = torch.ones(2, 96, 8, 8)
        image[1, 3, 6, 6] = value
        expected, found = layer(image).isfinite(), WinogradConv2d(layer)(image).isfinite()
        assert not found[~expected].any()
        assert found[0].all()


def test_it_computes_with_the_present_weights():
    layer = wide()
    fast, x = WinogradConv2d(layer), torch.rand(4, 96, 8, 8)
    assert set(fast.state_dict()) == set(layer.state_dict())
    own = copy.deepcopy(fast)
    for change in (layer.weight.mul_, layer.weight.add_):
        before = fast(x.requires_grad_()).detach()
        change(-3)
        right, found = layer(x), fast(x)
        torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            *(torch.autograd.grad(out.sum(), x)[0] for out in (found, right)), rtol=1e-3, atol=1e-3
        )
        assert not torch.allclose(found, before, atol=0.1)
    assert not torch.allclose(own(x), fast(x), atol=0.1)


@pytest.mark.parametrize(
    "shape", [(96, 8, 8), (0, 96, 8, 8), (1, 96, 8, 8), (16, 96, 6, 6), (16, 96, 10, 10), (2, 96, 1, 300)]
)
def test_where_it_does_not_pay_it_is_the_convolution_itself(shape):
    layer, x = wide(), torch.rand(shape, requires_grad=True)
    out = WinogradConv2d(layer)(x)
    assert torch.equal(out, layer(x))
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


def test_other_precisions_are_those_of_the_convolution():
    layer, x = wide().double(), torch.rand(4, 96, 8, 8, dtype=torch.float64)
    assert torch.equal(WinogradConv2d(layer)(x), layer(x))


def test_with_several_threads_it_computes_a_few_blocks_at_most(monkeypatch):
    layer, x = wide(), torch.rand(10, 96, 8, 8)
    image = 36 * 4 * 96
    for threads, images, few in ((1, 1, True), (2, 1, False), (2, 3, True)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(winograd, "BLOCK", images * image // threads)
        monkeypatch.setattr(winograd, "SHARE", 0)
        assert torch.equal(WinogradConv2d(layer)(x), layer(x)) != few


def test_which_convolutions_are_wide():
    class Own(nn.Conv2d):
        pass

    assert all(is_wide(layer) for layer in (wide(), wide(padding=0), wide(100, 300, padding=(2, 1))))
    for other in (
        wide(95), wide(96, 95), wide(padding=3), wide(stride=2), wide(dilation=2), wide(groups=2), wide(padding="same"),
        wide(padding_mode="circular"), nn.Conv2d(96, 96, 5), nn.Conv2d(96, 96, (3, 1)), nn.Conv1d(96, 96, 3), Own(96, 96, 3),
    ):  # fmt: skip
        assert not is_wide(other)


@pytest.mark.parametrize(("instructions", "count"), [("AVX2", 2), ("AVX512", 0)])
def test_a_surrogate_has_them_where_they_are_faster(monkeypatch, instructions, count):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    torch.manual_seed(0)
    blocks = [m for _ in range(2) for m in (nn.Conv2d(96, 96, 3, padding=1), nn.BatchNorm2d(96), nn.ReLU())]
    model = nn.Sequential(
        nn.Conv2d(3, 96, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(96 * 64, 10)
    ).eval()
    x = torch.rand(4, 3, 8, 8, requires_grad=True)
    surrogate = Surrogate(model, x)
    replace_modules(surrogate.network, fast_convolutions(surrogate.network))
    surrogate.check(model, x)
    assert sum(isinstance(m, WinogradConv2d) for m in surrogate.modules()) == count
    for _ in range(2):
        own, right = (torch.autograd.grad(network(x).square().sum(), x)[0] for network in (surrogate, model))
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-4 * float(right.abs().max()))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.9)
        surrogate.refresh(model)
