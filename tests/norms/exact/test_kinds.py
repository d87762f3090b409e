"""Padding modes, transposed convolutions, batch norm, pooling and the like against the explicit float64 matrix."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.convolution import pad_index
from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms import (
    conv_l1,
    conv_linf,
    conv_transpose_l1,
    conv_transpose_linf,
    fold_batch_norm,
    folded,
    l1,
    linear_l1,
    linf,
)
from opnorm.norms.exact.taps import tap_patterns
from tests.norms.cases import (
    CASES,
    PADDED_CASES,
    TRANSPOSED_CASES,
    WEIGHTLESS_CASES,
    convolutions,
    foldings,
    matrix,
    on_cases,
    paddings,
    poolings,
    pq,
    resizings,
    transposed_convolutions,
)
from tests.property_tests import examples

MODES = ("circular", "reflect", "replicate")
FAR = ("zeros", *MODES)


def check(layer, shape):
    M = matrix(copy.deepcopy(layer), shape)
    assert float(l1(layer, shape)) == pytest.approx(pq(M, 1), rel=1e-12, abs=1e-300)
    assert float(linf(layer, shape)) == pytest.approx(pq(M, math.inf), rel=1e-12, abs=1e-300)


@on_cases(PADDED_CASES + TRANSPOSED_CASES + WEIGHTLESS_CASES)
def test_equals_the_matrix(layer, shape):
    check(layer, shape)


@on_cases(CASES + PADDED_CASES + TRANSPOSED_CASES + WEIGHTLESS_CASES)
def test_without_gradients(layer, shape):
    want = [float(n(layer, shape)) for n in (l1, linf)]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert [float(n(layer, shape)) for n in (l1, linf)] == want


@given(convolutions(modes=MODES))
@examples(400)
def test_any_padding_mode(case):
    check(*case)


@given(convolutions(max_size=2, max_kernel=7, modes=MODES))
@examples(200)
def test_any_padding_mode_on_tiny_maps(case):
    check(*case)


@given(transposed_convolutions())
@examples(400)
def test_any_transposed_convolution(case):
    check(*case)


@given(st.one_of(poolings(), resizings(), paddings(), foldings()))
@examples(300)
def test_any_pooling_resizing_padding_and_folding(case):
    check(*case)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@given(
    st.one_of(
        *(convolutions(modes=FAR), convolutions(3, 7, FAR), transposed_convolutions()),
        *(poolings(), resizings(), paddings(), foldings()),
    )
)
@examples(10_000)
def test_ten_thousand_layers(case):
    check(*case)


# ---------------------------------------------------------------- tap patterns


@st.composite
def axes(draw):
    mode = draw(st.sampled_from(FAR))
    kernel, stride = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    dilation, before, after = draw(st.integers(1, 3)), draw(st.integers(0, 6)), draw(st.integers(0, 6))
    reach = dilation * (kernel - 1) + 1
    least = {"zeros": 1, "replicate": 1, "circular": max(before, after, 1), "reflect": max(before, after) + 1}
    size = max(least[mode], reach - before - after) + draw(st.integers(0, 40))
    fit = (size + before + after - reach) // stride + 1
    outputs = max(1, fit - draw(st.sampled_from([0, 0, 0, 1, 2])))
    return kernel, size, stride, before, after, dilation, mode, outputs


@given(axes())
@examples(300)
def test_patterns_are_those_of_the_whole_axis(case):
    """The short axis that stands for a long one, and the dominant patterns, lose no maximum."""
    kernel, size, stride, before, after, dilation, mode, outputs = case
    index = pad_index(size, before, after, mode)
    T = torch.zeros(kernel, outputs, size, dtype=torch.float64)
    for o in range(outputs):
        for tap in range(kernel):
            if (h := index[o * stride + tap * dilation]) >= 0:
                T[tap, o, h] = 1
    generator = torch.Generator().manual_seed(0)
    K = torch.randn(20, kernel, generator=generator, dtype=torch.float64)
    K[10:] = K[10:].abs() * 10 ** torch.randn(10, kernel, generator=generator, dtype=torch.float64)
    M = torch.einsum("bt,toh->boh", K, T).abs()
    for side, patterns in enumerate(tap_patterns(*case)):
        members = torch.tensor([[float(t in g) for t in range(kernel)] for g in patterns.groups])
        values = (K @ members.T.double()).abs() @ torch.tensor(patterns.counts).double().T
        assert torch.allclose(values.amax(1), M.sum(1 + side).amax(1), rtol=1e-12, atol=0)


def test_work_does_not_grow_with_the_image():
    for mode in FAR:
        near = tap_patterns(5, 64, 2, 2, 2, 1, mode)
        assert tap_patterns(5, 2**30, 2, 2, 2, 1, mode) == near
    zeros = tap_patterns(3, 224, 2, 1, 1)
    assert [sorted(p.counts) for p in zeros] == [[(0, 1, 0), (1, 0, 1)], [(1, 1, 1)]]
    assert all(p.single for p in zeros)
    # inside windows there is nothing to merge: rows of a padded map are those of a map with zeros
    assert tap_patterns(3, 224, 1, 1, 1, 1, "reflect")[1] == tap_patterns(3, 224, 1, 1, 1)[1]


def test_long_kernels_of_audio_nets_are_quick():
    assert len(tap_patterns(400, 160_000, 160, 200, 200)[0].counts) <= 160
    assert tap_patterns(1024, 2**20, 1, 512, 512)[1].counts == ((1,) * 1024,)


def test_groups_of_taps_on_both_axes():
    layer = nn.Conv2d(1, 2, (6, 5), (4, 3), 2, padding_mode="replicate").double()
    check(layer, (1, 7, 7))
    gradcheck(l1, layer, (1, 7, 7))


# ---------------------------------------------------------------- gradients


def gradcheck(norm, layer, shape):
    def value(weight):
        one = copy.copy(layer)
        one.__dict__["_parameters"] = {k: v for k, v in layer._parameters.items() if k != "weight"}
        one.__dict__["weight"] = weight
        return norm(one, shape)

    weight = layer.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, weight, eps=1e-7, atol=1e-6)


@on_cases(PADDED_CASES + TRANSPOSED_CASES)
@pytest.mark.parametrize("norm", [l1, linf])
def test_gradcheck(layer, shape, norm):
    gradcheck(norm, layer, shape)


@on_cases(CASES + PADDED_CASES + TRANSPOSED_CASES)
@pytest.mark.parametrize("norm", [l1, linf])
def test_euler(layer, shape, norm):
    """A norm is homogeneous, so <∂‖W‖/∂W, W> = ‖W‖; its gradient is a sub-gradient of a convex function."""
    value = norm(layer, shape)
    (grad,) = torch.autograd.grad(value, layer.weight)
    assert float((grad * layer.weight).sum()) == pytest.approx(float(value), rel=1e-12)
    with torch.no_grad():
        other = copy.deepcopy(layer)
        other.weight.add_(torch.randn_like(other.weight), alpha=0.1)
        step = other.weight - layer.weight
        assert float(norm(other, shape)) >= float(value + (grad * step).sum()) - 1e-12


def test_double_backward_is_zero():
    W = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(linear_l1(W) ** 2, W, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), W)
    sign = grad.detach().sign()
    assert torch.allclose(second, 2 * sign.sum() * sign)


def test_transforms_of_torch_func():
    K = torch.randn(5, 4, 2, 3, 3, dtype=torch.float64)
    norm = lambda k: conv_l1(k, (6, 6), 2, 1)  # noqa: E731
    values = torch.func.vmap(norm)(K)
    grads = torch.func.vmap(torch.func.grad(norm))(K)
    for k, value, grad in zip(K, values, grads, strict=True):
        k.requires_grad_()
        assert float(norm(k)) == pytest.approx(float(value), rel=1e-14)
        assert torch.equal(torch.autograd.grad(norm(k), k)[0], grad)


# ---------------------------------------------------------------- functional forms


def test_functional_padding_in_words_pairs_and_modes():
    torch.manual_seed(0)
    K = torch.randn(2, 3, 4, 3, dtype=torch.float64)
    for mode in FAR:
        layer = nn.Conv2d(3, 2, (4, 3), padding="same", bias=False, padding_mode=mode).double()
        layer.weight.data.copy_(K)
        layer.requires_grad_(False)  # with gradients the largest sum is computed anew, in another order
        for functional, norm in ((conv_l1, l1), (conv_linf, linf)):
            value = float(norm(layer, (3, 4, 5)))
            for padding in ("same", [(1, 2), (1, 1)], ((1, 2), 1)):
                assert float(functional(K, (4, 5), padding=padding, padding_mode=mode)) == value
            bare = float(functional(K, [4, 5], padding="valid", padding_mode=mode))
            assert bare == float(functional(K, torch.Size([4, 5])))


@given(transposed_convolutions())
@examples(100)
def test_functional_transposed(case):
    layer, shape = case
    sizes = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)
    assert torch.equal(conv_transpose_l1(layer.weight, shape[1:], *sizes), l1(layer, shape))
    assert torch.equal(conv_transpose_linf(layer.weight, shape[1:], *sizes), linf(layer, shape))


@pytest.mark.parametrize("norm", [conv_transpose_l1, conv_transpose_linf])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_size": (3,)}, "one entry for each axis"),
        ({"padding": "same"}, "takes numbers"),
        ({"padding": 3}, "would have an output of size"),
        ({"output_padding": 1}, "must stay below the stride"),
        ({"output_padding": -1}, "output_padding=-1"),
        ({"stride": 0}, "stride=0"),
        ({"groups": 3}, "groups=3"),
    ],
)
def test_functional_transposed_refuses(norm, arguments, message):
    with pytest.raises(NormError, match=message):
        norm(**{"weight": torch.ones(4, 2, 3, 3), "input_size": (2, 2)} | arguments)


# ---------------------------------------------------------------- laws


@given(convolutions(max_size=4, max_kernel=3))
@examples(100)
def test_transposition_swaps_the_two_norms(case):
    """The transposed convolution back to the input's size is the adjoint."""
    layer, (_, *size) = case
    geometry = (layer.stride, layer.padding, layer.dilation)
    if isinstance(layer.padding, str):
        return
    axes = list(zip(size, layer.kernel_size, *geometry, strict=True))
    out = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    back = [(m - 1) * s - 2 * p + d * (k - 1) + 1 for (_, k, s, p, d), m in zip(axes, out, strict=True)]
    extra = tuple(n - b for n, b in zip(size, back, strict=True))
    sizes = (layer.stride, layer.padding, extra, layer.groups, layer.dilation)
    assert torch.equal(conv_transpose_l1(layer.weight, out, *sizes), linf(layer, (layer.in_channels, *size)))
    assert torch.equal(conv_transpose_linf(layer.weight, out, *sizes), l1(layer, (layer.in_channels, *size)))


@given(convolutions(max_size=4, max_kernel=3, modes=FAR), st.integers(1, 3))
@examples(60)
def test_composition_is_submultiplicative(case, channels):
    layer, shape = case
    out = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    after = nn.Conv2d(out[0], channels, 1).double() if len(out) == 3 else nn.Flatten()
    both = matrix(nn.Sequential(layer, after), shape)
    for ord, norm in ((1, l1), (math.inf, linf)):
        assert pq(both, ord) <= float(norm(layer, shape)) * float(norm(after, tuple(out))) * (1 + 1e-12)


@given(convolutions(modes=FAR), st.randoms(use_true_random=False))
@examples(60)
def test_signs_and_order_of_channels_do_not_matter(case, random):
    layer, shape = case
    before = [float(n(layer, shape)) for n in (l1, linf)]
    order = list(range(layer.weight.shape[1]))
    random.shuffle(order)
    sign = torch.tensor([random.choice([-1.0, 1.0]) for _ in range(layer.out_channels)], dtype=torch.float64)
    K = layer.weight.data[:, order] * sign.view(-1, 1, *(1,) * len(layer.kernel_size))
    layer.weight.data.copy_(K)
    assert [float(n(layer, shape)) for n in (l1, linf)] == pytest.approx(before, rel=1e-12)


@given(convolutions(modes=FAR))
@examples(60)
def test_flipping_the_kernel_and_the_image_does_not_matter(case):
    layer, shape = case
    if layer.padding == "same" or any(s > 1 for s in layer.stride):
        return  # then a flip moves the border
    before = [float(n(layer, shape)) for n in (l1, linf)]
    layer.weight.data.copy_(layer.weight.data.flip(*range(2, layer.weight.ndim)))
    assert [float(n(layer, shape)) for n in (l1, linf)] == pytest.approx(before, rel=1e-12)


# ---------------------------------------------------------------- mistakes of others


def test_transposed_convolutions_are_not_taken_for_convolutions():
    """Liang's code says 1.58 for one whose norm is 5.59."""
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 2, 3, 2, 1, bias=False).double()
    check(layer, (8, 5, 5))
    assert not math.isclose(
        float(l1(layer, (8, 5, 5))), float(conv_l1(layer.weight, (5, 5), 2, 1)), rel_tol=0.1
    )


def test_circular_kernels_larger_than_the_map_overlap_with_their_signs():
    """A convolution of ones with |K| counts taps that cancel."""
    layer = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False).double()
    layer.weight.data.copy_(torch.tensor([[1.0, 2, -1], [0, 5, 0], [-3, 1, 3]]).view(1, 1, 3, 3))
    assert float(linf(layer, (1, 1, 1))) == float(l1(layer, (1, 1, 1))) == 8
    assert float(linf(layer, (1, 2, 2))) == pytest.approx(pq(matrix(layer, (1, 2, 2)), math.inf))
    assert float(linf(layer, (1, 3, 3))) == 16


def test_stride_above_the_kernel_leaves_the_weights_alone():
    """Liang's sign_() on a view overwrites them."""
    layer = nn.Conv2d(2, 2, 2, 3)
    before = layer.weight.detach().clone()
    (l1(layer, (2, 8, 8)) + linf(layer, (2, 8, 8))).backward()
    assert torch.equal(layer.weight, before)


def test_same_dilation_groups_and_a_second_size():
    layer = nn.Conv2d(4, 4, 3, padding="same", dilation=2, groups=2).double()
    for size in (1, 2, 3, 5, 1):
        check(layer, (4, size, size))


# ---------------------------------------------------------------- batch norm


def random_norm(channels, kind=nn.BatchNorm2d, **options):
    norm = kind(channels, **options).double().eval()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 2)
        if norm.affine:
            norm.weight.normal_()
            norm.bias.normal_()
    return norm


@on_cases(CASES + PADDED_CASES + TRANSPOSED_CASES)
def test_folded_batch_norm(layer, shape):
    torch.manual_seed(1)
    with torch.no_grad():
        out = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:]
    if isinstance(layer, nn.Linear) and len(out) > 1:
        return  # its channels are on another axis than those of a batch norm
    kind = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[len(out) - 1]
    norm = random_norm(out[0], kind)
    M = matrix(nn.Sequential(copy.deepcopy(layer), norm), shape)
    one = folded(layer, norm)
    x = torch.randn(2, *shape, dtype=torch.float64)
    assert torch.allclose(one(x), norm(layer(x)))
    assert float(l1(one, shape)) == pytest.approx(pq(M, 1), rel=1e-12)
    assert float(linf(one, shape)) == pytest.approx(pq(M, math.inf), rel=1e-12)
    weights = (layer.weight, norm.weight)
    grads = torch.autograd.grad(l1(one, shape), weights)
    assert all(float((g * w).sum()) == pytest.approx(pq(M, 1)) for g, w in zip(grads, weights, strict=True))


def test_fold_without_bias_or_weight_and_what_does_not_fold():
    layer = nn.Linear(3, 4, bias=False).double()
    norm = random_norm(4, nn.BatchNorm1d, affine=False)
    x = torch.randn(5, 3, dtype=torch.float64)
    assert torch.allclose(F.linear(x, *fold_batch_norm(layer, norm)), norm(layer(x)))
    with pytest.raises(NormError, match="4 output channels and the batch norm 3"):
        fold_batch_norm(layer, random_norm(3))
    with pytest.raises(NormError, match="not into ReLU"):
        fold_batch_norm(nn.ReLU(), norm)
    with pytest.raises(NormError, match="keeps no running statistics"):
        fold_batch_norm(layer, nn.BatchNorm1d(4, track_running_stats=False))


@pytest.mark.parametrize(
    ("kind", "shape"), [(nn.BatchNorm1d, (3,)), (nn.BatchNorm1d, (3, 4)), (nn.BatchNorm3d, (3, 2, 1, 2))]
)
def test_batch_norm_of_every_rank(kind, shape):
    check(random_norm(3, kind), shape)
    with pytest.raises(NormError, match="takes 3 channels"):
        l1(random_norm(3, kind), (4, *shape[1:]))


# ---------------------------------------------------------------- weights of all sorts


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_sums_in_float32(dtype):
    layer = nn.Conv2d(64, 64, 3, padding=1).to(dtype)
    layer.weight.data.fill_(300)  # the sum is past float16's largest number
    for norm in (l1, linf):
        value = norm(layer, (64, 8, 8))
        assert value.dtype == torch.float32
        assert float(value) == 300 * 64 * 9
        (grad,) = torch.autograd.grad(value, layer.weight)
        assert grad.dtype == dtype
        assert float(grad.sum(dtype=torch.float32)) == 64 * 9


def test_channels_last_and_other_strides():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, 2, 1)
    value = [float(n(layer, (4, 8, 8))) for n in (l1, linf)]
    layer = layer.to(memory_format=torch.channels_last)
    assert not layer.weight.is_contiguous()
    assert [float(n(layer, (4, 8, 8))) for n in (l1, linf)] == pytest.approx(value)
    W = torch.randn(5, 7).T
    assert float(linear_l1(W)) == pytest.approx(float(W.abs().sum(0).max()))


def test_parametrized_frozen_and_compiled_layers():
    layer = nn.Conv2d(2, 3, 3).double()
    value = float(l1(layer, (2, 5, 5)))
    frozen = copy.deepcopy(layer).requires_grad_(False)
    assert float(l1(frozen, (2, 5, 5))) == value
    assert not l1(frozen, (2, 5, 5)).requires_grad
    assert float(l1(torch.compile(layer), (2, 5, 5))) == value
    assert float(linf(torch.compile(layer), (2, 5, 5))) == float(linf(layer, (2, 5, 5)))
    half = nn.utils.parametrizations.weight_norm(copy.deepcopy(layer))
    half.parametrizations.weight.original0.data.mul_(0.5)
    norm = l1(half, (2, 5, 5))
    assert float(norm) == pytest.approx(value / 2)
    norm.backward()
    assert half.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("norm", [l1, linf])
@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.LazyConv2d(3, 3), (2, 5, 5), "lazy"),
        (nn.LazyLinear(3), (2,), "lazy"),
        (nn.LazyConvTranspose2d(3, 3), (2, 5, 5), "lazy"),
        (nn.LazyBatchNorm2d(), (2, 5, 5), "lazy"),
        (nn.Conv2d(2, 3, 3, device="meta"), (2, 5, 5), "meta device"),
        (nn.Linear(2, 3, device="meta"), (2,), "meta device"),
        (nn.BatchNorm1d(2, device="meta"), (2,), "meta device"),
        (nn.ConvTranspose2d(2, 2, 3), (3, 5, 5), "takes 2 channels"),
        (nn.ConvTranspose2d(2, 2, 3, padding=2), (2, 1, 1), "output of size"),
        (nn.Conv2d(2, 2, 3, padding=2, padding_mode="reflect"), (2, 2, 2), "torch allows at most 1"),
        (nn.Conv2d(2, 2, 3, padding=2, padding_mode="circular"), (2, 1, 1), "torch allows at most 1"),
        (nn.AvgPool2d(3), (1, 2, 2), "does not take an input of shape"),
        (nn.AvgPool2d(3), (4, 4), "takes 2 spatial axes"),
        (nn.AvgPool2d(3), (4,), "takes channels and spatial axes"),
        (nn.ReflectionPad1d(3), (1, 3), "does not take an input of shape"),
        (nn.ZeroPad2d(3), (1, 3), "pads 2 axes"),
        (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 3), "mode='bicubic' does not take 1 spatial axes"),
        (nn.Upsample(scale_factor=2, mode="linear"), (1, 3, 3), "mode='linear' does not take 2 spatial axes"),
        (nn.Unfold(3), (1, 2, 5), "does not take an input of shape"),
        (nn.Unfold(2), (1, 5), "Unfold takes 2 spatial axes"),
        (nn.Fold((3, 3), 2), (3, 4), "a multiple of 4 channels and 4 windows"),
        (nn.Fold((3, 3), 2), (4, 3), "a multiple of 4 channels and 4 windows"),
        (nn.Fold((2, 3), 3), (9, 1), "a multiple of 9 channels and 0 windows"),
        (nn.Softmax(-1), (3,), "no exact norm is known for Softmax"),
        (nn.MaxPool2d(2), (1, 4, 4), "MaxPool2d"),
        (nn.Sequential(nn.Linear(2, 2)), (2,), "Sequential"),
    ],
)
def test_refused(norm, layer, shape, message):
    with pytest.raises(NormError, match=message):
        norm(layer, shape)


@pytest.mark.parametrize("norm", [l1, linf, linear_map])
@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool])
def test_integer_weights(dtype, norm):
    for layer, shape in ((nn.Conv2d(2, 2, 3), (2, 5, 5)), (nn.Linear(2, 2), (2,))):
        layer.weight = nn.Parameter(layer.weight.to(dtype), requires_grad=False)
        with pytest.raises(NormError, match=f"{dtype}; expected floating point"):
            norm(layer, shape)


class Halved(nn.AvgPool2d):
    def forward(self, x):
        return super().forward(x) / 2


class Shifted(nn.Dropout):
    def forward(self, x):
        return x + 1


class Flipped(nn.ConvTranspose2d):
    def forward(self, x):
        return super().forward(x).flip(-1)


class Standardized(nn.Conv2d):
    def forward(self, x):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, self.weight - mean, 1e3 * self.bias)


class Masked(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


class Rectified(nn.Linear):
    def forward(self, x):
        return F.relu(super().forward(x))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (Halved(2), (1, 4, 4)),
        (Shifted(), (3,)),
        (Flipped(1, 1, 3), (1, 4, 4)),
        (Standardized(2, 3, 3, padding=1), (2, 4, 5)),
        (Masked(4, 3), (4,)),
        (Masked(4, 3, dtype=torch.float64), (2, 4)),
    ],
)
def test_affine_subclasses_with_another_forward_go_through_their_matrix(layer, shape):
    for norm, p in ((l1, 1), (linf, math.inf)):
        twin = copy.deepcopy(layer).double()
        with torch.no_grad():
            zero = torch.zeros(1, *shape, dtype=torch.float64)
            basis = torch.eye(zero.numel(), dtype=torch.float64).view(-1, *shape)
            A = (twin.eval()(basis) - twin(zero)).flatten(1).T
        found = norm(layer, shape)
        assert float(found) == pytest.approx(float(torch.linalg.matrix_norm(A, p)), rel=1e-6)
        assert found.dtype == next((w.dtype for w in layer.parameters()), torch.float64)
        assert layer.training
        weight = getattr(layer, "weight", None)
        if weight is not None:
            (gradient,) = torch.autograd.grad(found, weight)
            step = 1e-6 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0)).double()
            slopes = []
            for sign in (1, -1):
                twin.weight.data = weight.detach().double() + sign * step
                slopes.append(float(norm(twin, shape).detach()))
            assert slopes[0] - slopes[1] == pytest.approx(
                float((2 * gradient.double() * step).sum()), rel=1e-4
            )


@pytest.mark.parametrize("norm", [l1, linf])
def test_subclasses_that_are_not_affine_are_refused(norm):
    with pytest.raises(NormError, match="not linear"):
        norm(Rectified(3, 3), (3,))
    with pytest.raises(NormError, match="the matrix would be"):
        norm(Standardized(2, 3, 3, padding=1), (2, 100, 100))
