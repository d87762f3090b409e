"""ℓ1 and ℓ∞ equal those of the explicit float64 matrix, and their gradients finite differences."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms import (
    BOUNDS,
    bound,
    conv_l1,
    conv_linf,
    induced_norm,
    l1,
    linear_l1,
    linear_linf,
    linf,
    operator_norm,
    spectral_norm,
    vs_norm,
)
from tests.norms.cases import CASES, convolutions, matrix, on_all_cases, small_strides
from tests.property_tests import examples


def truth(M):
    return float(M.abs().sum(0).max()), float(M.abs().sum(1).max())


def check(layer, shape):
    want = truth(matrix(layer, shape))
    got = l1(layer, shape).item(), linf(layer, shape).item()
    assert got == pytest.approx(want, rel=1e-12, abs=0)
    by_map = truth(linear_map(layer, shape).to_dense())
    assert by_map == pytest.approx(want, rel=1e-12, abs=0)
    for ord, value in ((1, want[0]), (math.inf, want[1])):
        norm = operator_norm(layer, ord, shape)
        assert norm.exact
        assert float(norm.lower) == pytest.approx(value, rel=1e-12, abs=0)


@on_all_cases(pytest.mark.parametrize)
def test_equals_the_matrix(layer, shape):
    check(layer, shape)


@given(convolutions())
@examples(250)
def test_any_convolution_equals_its_matrix(case):
    check(*case)


def test_small_rectangles_and_strides():
    torch.manual_seed(0)
    for (k1, s1, p1, n1), (k2, s2, p2, n2) in small_strides():
        layer = nn.Conv2d(1, 1, (k1, k2), (s1, s2), (p1, p2)).double()
        M = matrix(layer, (1, n1, n2))
        got = l1(layer, (1, n1, n2)).item(), linf(layer, (1, n1, n2)).item()
        assert got == pytest.approx(truth(M), rel=1e-12), (k1, s1, p1, n1, k2, s2, p2, n2)


@given(convolutions(max_size=4, max_kernel=3), st.sampled_from([l1, linf]))
@examples(25)
def test_gradient_is_that_of_finite_differences(case, norm):
    layer, shape = case
    value = norm(layer, shape)
    (grad,) = torch.autograd.grad(value, layer.weight)
    flat, step = layer.weight.data.view(-1), 1e-7  # the norm is piecewise linear: exact between the kinks
    for i in range(0, len(flat), max(1, len(flat) // 12)):
        kept = float(flat[i])
        flat[i] = kept + step
        up = float(norm(layer, shape))
        flat[i] = kept - step
        down = float(norm(layer, shape))
        flat[i] = kept
        assert (up - down) / (2 * step) == pytest.approx(float(grad.view(-1)[i]), abs=1e-6)


@on_all_cases(pytest.mark.parametrize)
def test_gradcheck(layer, shape):
    def at(norm):
        def value(weight):
            return norm(_with_weight(layer, weight), shape)

        return value

    weight = layer.weight.detach().clone().requires_grad_()
    for norm in (l1, linf):
        assert torch.autograd.gradcheck(at(norm), weight, eps=1e-7, atol=1e-6)


def _with_weight(layer, weight):
    """The layer with a weight that has a history, which nn.Module does not allow."""
    clone = object.__new__(type(layer))
    clone.__dict__.update(layer.__dict__)
    clone.__dict__["_parameters"] = {k: v for k, v in layer._parameters.items() if k != "weight"}
    clone.__dict__["weight"] = weight
    return clone


def test_ties_give_one_sparse_sign_gradient():
    layer = nn.Linear(3, 2, bias=False)
    nn.init.ones_(layer.weight)
    (grad,) = torch.autograd.grad(l1(layer, (3,)), layer.weight)
    assert sorted(grad.sum(0).tolist()) == [0, 0, 2]
    conv = nn.Conv2d(2, 3, 2, stride=2, bias=False)
    nn.init.ones_(conv.weight)
    (grad,) = torch.autograd.grad(l1(conv, (2, 4, 4)), conv.weight)
    assert sorted(grad.flatten().tolist()) == [0] * 21 + [1] * 3
    (grad,) = torch.autograd.grad(linf(conv, (2, 4, 4)), conv.weight)
    assert sorted(grad.flatten().tolist()) == [0] * 16 + [1] * 8


def test_functional_form_and_per_axis_arguments():
    torch.manual_seed(0)
    K = torch.randn(4, 2, 3, 2, dtype=torch.float64)
    layer = nn.Conv2d(4, 4, (3, 2), (2, 1), (1, 2), (1, 2), groups=2, bias=False).double()
    layer.weight.data.copy_(K)
    want = truth(matrix(layer, (4, 6, 5)))
    args = ((6, 5), (2, 1), (1, 2), (1, 2), 2)
    assert (float(conv_l1(K, *args)), float(conv_linf(K, *args))) == pytest.approx(want, rel=1e-12)
    pairs = ((6, 5), [2, 1], [(1, 1), (2, 2)], [1, 2], 2)
    assert (float(conv_l1(K, *pairs)), float(conv_linf(K, *pairs))) == pytest.approx(want, rel=1e-12)
    W = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert (float(linear_l1(W)), float(linear_linf(W))) == (6.0, 7.0)


# ---------------------------------------------------------------- what every norm obeys


@given(convolutions(), st.floats(-1e6, 1e6).filter(lambda c: abs(c) > 1e-6))
@examples(30)
def test_scaling(case, factor):
    layer, shape = case
    before = [float(n(layer, shape)) for n in (l1, linf)]
    layer.weight.data.mul_(factor)
    assert [float(n(layer, shape)) for n in (l1, linf)] == pytest.approx(
        [abs(factor) * b for b in before], rel=1e-12
    )


@given(convolutions(), st.randoms(use_true_random=False))
@examples(30)
def test_order_of_output_channels_does_not_matter(case, random):
    layer, shape = case
    before = [float(n(layer, shape)) for n in (l1, linf)]
    per_group = layer.out_channels // layer.groups
    groups, within = list(range(layer.groups)), list(range(per_group))
    random.shuffle(groups)
    random.shuffle(within)
    order = [g * per_group + i for g in groups for i in within]
    layer.weight.data.copy_(layer.weight.data[order].clone())
    assert [float(n(layer, shape)) for n in (l1, linf)] == pytest.approx(before, rel=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@examples(30)
def test_transposition_swaps_l1_and_linf(rows, columns, seed):
    W = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(linear_l1(W)) == pytest.approx(float(linear_linf(W.T)), rel=1e-14)
    kernel = W[:, :, None, None]
    assert float(conv_l1(kernel, (4, 4))) == pytest.approx(float(conv_linf(kernel.transpose(0, 1), (4, 4))))


# ---------------------------------------------------------------- mistakes of others


def test_rectangular_strides_are_not_mixed_up():
    """Liang's code partitions the taps column-major: 17.6 % too high for 3x3 with stride (1, 2)."""
    layer = nn.Conv2d(1, 1, 3, (1, 2), 1, bias=False).double()
    layer.weight.data.copy_(torch.arange(9.0).view(1, 1, 3, 3))
    # stride 2 on the last axis: columns {0, 2} meet one input pixel, column 1 another
    assert float(l1(layer, (1, 8, 8))) == 0 + 2 + 3 + 5 + 6 + 8
    assert float(linf(layer, (1, 8, 8))) == 36


def test_taps_that_no_output_reads_do_not_count():
    layer = nn.Conv2d(1, 1, 3, 4, 1, bias=False).double()
    nn.init.ones_(layer.weight)
    assert float(linf(layer, (1, 2, 2))) == 4  # of the 9 taps only the lower right 2x2 meet the input


def test_groups_are_not_multiplied():
    layer = nn.Conv2d(4, 4, 1, groups=4, bias=False).double()
    layer.weight.data.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]).view(4, 1, 1, 1))
    for ord in (1, 2, math.inf):
        assert float(operator_norm(layer, ord, (4, 3, 3)).lower) == pytest.approx(0.4, rel=1e-6)


@on_all_cases(pytest.mark.parametrize)
def test_weights_are_not_overwritten_and_get_no_gradient(layer, shape):
    before = layer.weight.detach().clone()
    for ord in (1, 2, math.inf):
        operator_norm(layer, ord, shape)
    (l1(layer, shape) + linf(layer, shape)).detach()
    assert torch.equal(layer.weight, before)
    assert layer.weight.grad is None
    assert layer.weight.requires_grad
    assert layer.weight.dtype == torch.float64


def test_a_second_input_size_has_its_own_norm():
    layer = nn.Conv2d(1, 1, 5, padding=2, bias=False).double()
    nn.init.ones_(layer.weight)
    assert [float(linf(layer, (1, n, n))) for n in (1, 2, 9, 1)] == [1, 4, 25, 1]


def test_low_precision_weights_are_measured_in_float64():
    layer = nn.Conv2d(3, 4, 3, padding=1)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        low = layer.to(dtype)
        kept = low.weight.detach().clone()
        want = truth(matrix(_copy(low), (3, 5, 5)))
        assert float(operator_norm(low, 1, (3, 5, 5)).lower) == pytest.approx(want[0], rel=1e-12)
        assert float(operator_norm(low, math.inf, (3, 5, 5)).lower) == pytest.approx(want[1], rel=1e-12)
        assert low.weight.dtype == dtype
        assert torch.equal(low.weight, kept)


def _copy(layer):
    copy = nn.Conv2d(3, 4, 3, padding=1).double()
    copy.load_state_dict({k: v.double() for k, v in layer.state_dict().items()})
    return copy


@pytest.mark.parametrize("norm", [l1, linf])
def test_batch_norm_is_diagonal(norm):
    layer = nn.BatchNorm2d(3).double()
    layer.weight.data.copy_(torch.tensor([1.0, -5.0, 2.0]))
    layer.running_var.copy_(torch.tensor([0.01, 4.0, 1.0]))
    want = float(matrix(layer, (3, 2, 2)).diagonal().abs().max())
    assert float(norm(layer, (3, 2, 2))) == pytest.approx(want, rel=1e-12)


def test_batch_norm_without_weight_and_in_float32_agree_for_every_ord():
    for layer in (nn.BatchNorm2d(3, affine=False), nn.BatchNorm2d(3)):
        layer.running_var.copy_(torch.tensor([0.3, 0.7, 1.1]))
        if layer.affine:
            layer.weight.data.copy_(torch.tensor([1.3, 0.7, 0.1]))
        norms = [operator_norm(layer, p, (3, 2, 2)) for p in (1, 2, math.inf)]
        assert all(n.exact for n in norms)
        assert len({float(n.lower) for n in norms}) == 1
    with pytest.raises(NormError, match="BatchNorm2d keeps no running statistics"):
        operator_norm(nn.BatchNorm2d(3, track_running_stats=False), 1, (3, 2, 2))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ord", [1, 2, math.inf])
def test_nan_and_infinite_weights(value, ord):
    layer = nn.Conv2d(2, 2, 3)
    layer.weight.data[0, 0, 0, 0] = value
    with pytest.raises(NormError, match="weight has 1 of 36 entries that are NaN or infinite"):
        operator_norm(layer, ord, (2, 5, 5))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [lambda: nn.Linear(5, 4), lambda: nn.Conv2d(5, 4, 3, groups=1, padding=1)])
def test_nan_and_infinite_weights_are_named_by_every_norm(value, make):
    layer = make()
    layer.weight.data.flatten()[7] = value
    shape = (5, 6, 6)[: layer.weight.ndim - 1]
    calls = [lambda: spectral_norm(layer, shape), lambda: vs_norm(layer, shape)]
    calls += [
        lambda p=p, q=q: induced_norm(layer, p, q, shape) for p in (1, 2, math.inf) for q in (1, 2, math.inf)
    ]
    calls += [lambda name=name: bound(layer, shape, name) for name in BOUNDS]
    for call in calls:
        with pytest.raises(NormError, match=r"weight has 1 of \d+ entries that are NaN or infinite"):
            call()


@pytest.mark.parametrize("ord", [1, 2, math.inf])
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Conv2d(2, 2, 5), (2, 3, 3), r"input of size \(3, 3\) is smaller than the kernel \(5, 5\)"),
        (nn.Conv2d(2, 2, 3), (3, 5, 5), r"Conv2d takes 2 channels .* got an input of shape \(3, 5, 5\)"),
        (nn.Conv2d(2, 2, 3), (5, 5), "Conv2d takes 2 channels and 2 spatial axes"),
        (nn.Linear(4, 2), (5,), r"Linear takes 4 features, got an input of shape \(5,\)"),
        (nn.ReLU(), (4,), "ReLU"),
        (nn.Hardtanh(-10, 10), (4,), "Hardtanh"),
        (nn.LSTM(4, 4), (4, 4), "LSTM"),
        (nn.Bilinear(4, 4, 2), (4,), "Bilinear"),
    ],
)
def test_layers_and_shapes_without_a_norm(layer, shape, ord, message):
    with pytest.raises(NormError, match=message):
        operator_norm(layer, ord, shape)


@pytest.mark.parametrize("ord", [0, 3, -1, "fro", None, math.nan])
def test_unknown_ord(ord):
    with pytest.raises(NormError, match="expected 1, 2,"):
        operator_norm(nn.Linear(2, 2), ord, (2,))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (5,)}, "one entry for each axis"),
        ({"stride": 0}, "stride=0"),
        ({"stride": (1, 2, 3)}, "stride="),
        ({"padding": -1}, "padding=-1"),
        ({"padding": "same", "stride": 2}, "padding='same'"),
        ({"padding": "full"}, "padding='full'"),
        ({"padding_mode": "wrap"}, "padding_mode='wrap'"),
        ({"padding": 6, "padding_mode": "circular"}, "torch allows at most 5"),
        ({"padding": 5, "padding_mode": "reflect"}, "torch allows at most 4"),
        ({"dilation": (1, 0)}, "dilation="),
        ({"groups": 3}, "groups=3"),
        ({"groups": 0}, "groups=0"),
        ({"input_size": (0, 5)}, "smaller than the kernel"),
        ({"weight": torch.ones(4, 4)}, "not a convolution"),
    ],
)
@pytest.mark.parametrize("norm", [conv_l1, conv_linf])
def test_functional_form_refuses(norm, arguments, message):
    with pytest.raises(NormError, match=message):
        norm(**{"weight": torch.ones(4, 2, 3, 3), "input_size": (5, 5)} | arguments)


def test_all_cases_have_different_names():
    assert len({c[0] for c in CASES}) == len(CASES)
