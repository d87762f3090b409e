"""The one list of layers that every norm is checked on, and matrices that owe nothing to opnorm."""

import itertools
import math

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _layer(make, *args, **kwargs):
    torch.manual_seed(0)
    return make(*args, **kwargs).double()


# id, layer, shape of one input
CASES = [
    ("linear", _layer(nn.Linear, 7, 4), (7,)),
    ("linear over time", _layer(nn.Linear, 3, 5), (2, 3)),
    ("1x1", _layer(nn.Conv2d, 3, 4, 1), (3, 4, 5)),
    ("3x3", _layer(nn.Conv2d, 2, 3, 3, padding=1), (2, 5, 6)),
    ("3x3, stride (1, 2)", _layer(nn.Conv2d, 2, 3, 3, stride=(1, 2), padding=1), (2, 6, 7)),
    ("3x3, stride (2, 1)", _layer(nn.Conv2d, 2, 3, 3, stride=(2, 1), padding=1), (2, 6, 7)),
    ("2x5, stride (3, 2)", _layer(nn.Conv2d, 2, 2, (2, 5), stride=(3, 2), padding=(1, 0)), (2, 7, 8)),
    ("stride above kernel", _layer(nn.Conv2d, 2, 2, 2, stride=3), (2, 8, 8)),
    ("no window inside", _layer(nn.Conv2d, 1, 2, 3, stride=4, padding=1), (1, 2, 2)),
    ("kernel above input", _layer(nn.Conv2d, 2, 2, 5, padding=2), (2, 2, 3)),
    ("padding above kernel", _layer(nn.Conv2d, 1, 2, 2, stride=2, padding=4), (1, 3, 3)),
    ("dilation", _layer(nn.Conv2d, 2, 2, 3, dilation=(2, 3), padding=(2, 1)), (2, 6, 7)),
    ("groups", _layer(nn.Conv2d, 4, 6, 3, groups=2, padding=1), (4, 4, 4)),
    ("depthwise", _layer(nn.Conv2d, 4, 8, 3, groups=4, stride=2, padding=1), (4, 5, 5)),
    ("same, even kernel", _layer(nn.Conv2d, 2, 2, (4, 2), padding="same"), (2, 5, 4)),
    ("same, dilated", _layer(nn.Conv2d, 1, 2, 3, padding="same", dilation=3), (1, 4, 5)),
    ("valid", _layer(nn.Conv2d, 2, 2, 2, padding="valid"), (2, 3, 3)),
    ("1d", _layer(nn.Conv1d, 2, 3, 4, stride=3, padding=2), (2, 9)),
    ("3d", _layer(nn.Conv3d, 2, 2, (2, 3, 1), stride=(1, 2, 1), padding=1), (2, 3, 4, 3)),
]


_wrap = {"padding_mode": "circular"}
PADDED_CASES = [
    ("circular", _layer(nn.Conv2d, 2, 3, 3, padding=1, **_wrap), (2, 4, 5)),
    ("circular on 1x1", _layer(nn.Conv2d, 2, 3, 3, padding=1, **_wrap), (2, 1, 1)),
    ("circular on 2x2", _layer(nn.Conv2d, 2, 2, 5, padding=2, **_wrap), (2, 2, 2)),
    ("circular, kernel of 7 on 3x3", _layer(nn.Conv2d, 1, 2, 7, padding=3, **_wrap), (1, 3, 3)),
    ("circular, strided", _layer(nn.Conv2d, 2, 2, 3, stride=2, padding=1, **_wrap), (2, 5, 4)),
    ("circular, dilated", _layer(nn.Conv2d, 1, 2, 3, dilation=2, padding=2, **_wrap), (1, 4, 3)),
    ("circular, same, even", _layer(nn.Conv2d, 1, 2, (2, 4), padding="same", **_wrap), (1, 3, 3)),
    ("reflect", _layer(nn.Conv2d, 2, 2, 3, padding=1, padding_mode="reflect"), (2, 4, 2)),
    ("reflect, wide", _layer(nn.Conv2d, 1, 2, 7, padding=3, padding_mode="reflect"), (1, 4, 5)),
    ("reflect, groups", _layer(nn.Conv2d, 2, 4, 3, 2, 1, 1, 2, padding_mode="reflect"), (2, 5, 4)),
    ("replicate", _layer(nn.Conv2d, 2, 2, 3, padding=1, padding_mode="replicate"), (2, 3, 4)),
    ("replicate on 1x1", _layer(nn.Conv2d, 2, 2, 3, padding=4, padding_mode="replicate"), (2, 1, 1)),
    ("replicate, 1d", _layer(nn.Conv1d, 2, 2, 5, 3, 4, padding_mode="replicate"), (2, 6)),
    ("circular, 3d", _layer(nn.Conv3d, 1, 2, (3, 1, 2), padding=(1, 0, 1), **_wrap), (1, 2, 2, 3)),
]

TRANSPOSED_CASES = [
    ("transposed", _layer(nn.ConvTranspose2d, 2, 3, 3), (2, 3, 4)),
    ("transposed, stride 2", _layer(nn.ConvTranspose2d, 2, 3, 4, 2, 1), (2, 3, 3)),
    ("transposed, output padding", _layer(nn.ConvTranspose2d, 2, 3, 3, 2, 1, 1), (2, 3, 2)),
    ("transposed, (1, 2)", _layer(nn.ConvTranspose2d, 1, 2, 3, (1, 2), 1, (0, 1)), (1, 4, 3)),
    ("transposed, groups", _layer(nn.ConvTranspose2d, 4, 6, 3, 2, 1, 0, 2), (4, 3, 3)),
    ("transposed, depthwise", _layer(nn.ConvTranspose2d, 3, 6, 2, 2, 0, 0, 3), (3, 2, 3)),
    ("transposed on 1x1", _layer(nn.ConvTranspose2d, 3, 2, 4, 1, 0), (3, 1, 1)),
    ("transposed, cropped", _layer(nn.ConvTranspose2d, 2, 2, 5, 1, 2), (2, 1, 2)),
    (
        "transposed, padding above the stride",
        _layer(nn.ConvTranspose2d, 1, 2, 3, 1, 1, 2, dilation=3),
        (1, 3, 2),
    ),
    ("transposed, stride above kernel", _layer(nn.ConvTranspose2d, 2, 2, 2, 4, 0, 3), (2, 2, 2)),
    ("transposed, 1d", _layer(nn.ConvTranspose1d, 2, 3, 8, 4, 2), (2, 5)),
    ("transposed, 3d", _layer(nn.ConvTranspose3d, 2, 2, (2, 3, 1), (1, 2, 1), 0, (0, 1, 0)), (2, 2, 3, 2)),
]

WEIGHTLESS_CASES = [
    ("identity", nn.Identity(), (2, 3)),
    ("flatten", nn.Flatten(), (2, 3, 2)),
    ("unflatten", nn.Unflatten(1, (2, 3)), (6,)),
    ("dropout", nn.Dropout(0.9), (5,)),
    ("dropout of channels", nn.Dropout2d(), (2, 3, 3)),
    ("pixel shuffle", nn.PixelShuffle(2), (4, 2, 3)),
    ("pixel unshuffle", nn.PixelUnshuffle(2), (1, 4, 2)),
    ("channel shuffle", nn.ChannelShuffle(2), (4, 2, 2)),
    ("average", nn.AvgPool2d(2), (2, 5, 4)),
    ("average, padded", nn.AvgPool2d(3, 2, 1), (1, 5, 4)),
    ("average, padding not counted", nn.AvgPool2d(3, 1, 1, count_include_pad=False), (1, 4, 3)),
    ("average, ceil", nn.AvgPool2d((2, 3), (3, 2), (1, 1), ceil_mode=True), (1, 6, 6)),
    ("average, ceil, not counted", nn.AvgPool2d(4, 3, 2, ceil_mode=True, count_include_pad=False), (1, 6, 5)),
    ("average, divisor", nn.AvgPool2d(3, 2, 1, divisor_override=5), (1, 5, 5)),
    ("average, negative divisor", nn.AvgPool3d(2, 1, divisor_override=-3), (1, 3, 2, 3)),
    ("average, 1d", nn.AvgPool1d(4, 3, 2, ceil_mode=True), (2, 9)),
    ("average, 3d", nn.AvgPool3d((1, 2, 3), (1, 1, 2), (0, 1, 1)), (1, 2, 3, 4)),
    ("adaptive", nn.AdaptiveAvgPool2d((3, None)), (2, 7, 3)),
    ("adaptive, larger", nn.AdaptiveAvgPool2d(5), (1, 3, 2)),
    ("adaptive, 1d", nn.AdaptiveAvgPool1d(4), (2, 7)),
    ("adaptive, 3d", nn.AdaptiveAvgPool3d(2), (1, 3, 4, 5)),
    ("zero padding", nn.ZeroPad2d((1, 2, 0, 3)), (1, 2, 3)),
    ("zero padding that crops", nn.ZeroPad2d((-1, 2, 0, -1)), (1, 3, 3)),
    ("constant padding", nn.ConstantPad1d(2, 3.5), (2, 3)),
    ("circular padding", nn.CircularPad2d((1, 2, 3, 0)), (1, 3, 2)),
    ("reflection padding", nn.ReflectionPad2d((1, 2, 0, 1)), (1, 2, 3)),
    ("replication padding", nn.ReplicationPad3d(2), (1, 1, 2, 2)),
    ("nearest", nn.Upsample(scale_factor=2), (2, 2, 3)),
    ("nearest, uneven", nn.Upsample(scale_factor=(1.7, 0.6)), (1, 5, 6)),
    ("nearest, recomputed", nn.Upsample(scale_factor=1.7, recompute_scale_factor=True), (1, 5, 6)),
    ("nearest, size", nn.Upsample((4, 7)), (1, 3, 3)),
    ("nearest-exact", nn.Upsample((4, 7), mode="nearest-exact"), (1, 3, 5)),
    ("linear", nn.Upsample(7, mode="linear"), (1, 3)),
    ("bilinear", nn.Upsample(scale_factor=(2, 1.5), mode="bilinear"), (1, 3, 4)),
    ("bilinear, corners", nn.UpsamplingBilinear2d((5, 2)), (1, 3, 4)),
    ("trilinear", nn.Upsample(3, mode="trilinear"), (1, 2, 4, 2)),
    ("bicubic", nn.Upsample(scale_factor=(2, 1.5), mode="bicubic"), (1, 3, 4)),
    ("bicubic, corners", nn.Upsample((5, 2), mode="bicubic", align_corners=True), (1, 3, 4)),
    ("area", nn.Upsample((5, 2), mode="area"), (2, 3, 4)),
    ("unfold", nn.Unfold((3, 2), (1, 2), 1, (2, 1)), (2, 4, 5)),
    ("unfold, windows in the padding only", nn.Unfold(1, 1, 2, 5), (1, 2, 2)),
    ("fold", nn.Fold((4, 5), (3, 2), (1, 2), 1, (2, 1)), (12, 10)),
]


def on_cases(cases, parametrize=pytest.mark.parametrize):
    return parametrize("layer, shape", [c[1:] for c in cases], ids=[c[0] for c in cases])


def on_all_cases(parametrize):
    return parametrize("layer, shape", [c[1:] for c in CASES], ids=[c[0] for c in CASES])


def matrix(layer: nn.Module, shape: tuple[int, ...]) -> torch.Tensor:
    """The matrix of a layer: its real forward pass in float64 on each basis vector, minus that on zero."""
    layer = layer.double().eval()
    size = math.prod(shape)
    with torch.no_grad():
        zero = layer(torch.zeros(1, *shape, dtype=torch.float64))
        columns = layer(torch.eye(size, dtype=torch.float64).view(size, *shape)) - zero
    return columns.reshape(size, -1).T


def pq(M: torch.Tensor, ord: float) -> float:
    """The ℓ1 or ℓ∞ norm of an explicit matrix."""
    return float(M.abs().sum(0 if ord == 1 else 1).max())


def _weights(draw, layer):
    """Normal weights, some of them zero, some drawn from few values so that they tie and cancel."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    K = torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["normal", "normal", "signs", "negative", "zeros"]))
    if kind == "signs":
        K = K.sign()
    elif kind == "negative":
        K = -K.abs()
    elif kind == "zeros":
        K[K.abs() < 0.7] = 0
    with torch.no_grad():
        layer.weight.copy_(K)
    return layer


@st.composite
def convolutions(draw, max_size=6, max_kernel=5, modes=("zeros",)):
    """A Conv1d, Conv2d or Conv3d in float64 with a shape that it takes."""
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    if axes == 3:
        max_size, max_kernel = 3, 3

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    mode = draw(st.sampled_from(modes))
    kernel, dilation, size = per_axis(1, max_kernel), per_axis(1, 3), per_axis(1, max_size)
    stride, padding = per_axis(1, max_kernel + 2), per_axis(0, 4)
    word = draw(st.sampled_from(["same", "valid", None, None, None]))
    if word == "same":
        stride = (1,) * axes
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    before = [0] * axes if word == "valid" else padding
    if word == "same":
        before = [r // 2 for r in reach]
    else:  # as large as it must be for one output
        size = tuple(max(n, r - 2 * p) for n, r, p in zip(size, reach, before, strict=True))
    if mode in ("circular", "reflect"):  # as large as torch wants it
        size = tuple(max(n, p + (mode == "reflect")) for n, p in zip(size, before, strict=True))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    layer = CONVS[axes - 1](
        c_in, c_out, kernel, stride, word or padding, dilation, groups, padding_mode=mode
    ).double()
    return _weights(draw, layer), (c_in, *size)


@st.composite
def transposed_convolutions(draw, max_size=4, max_kernel=5):
    """A ConvTranspose1d, 2d or 3d in float64 with a shape that it takes."""
    axes = draw(st.sampled_from([1, 2, 2, 2, 3]))
    if axes == 3:
        max_size, max_kernel = 2, 3

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    kernel, dilation, size = per_axis(1, max_kernel), per_axis(1, 3), per_axis(1, max_size)
    stride = per_axis(1, max_kernel + 1)
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    full = [
        (n - 1) * s + d * (k - 1) + 1 + e
        for n, s, d, k, e in zip(size, stride, dilation, kernel, extra, strict=True)
    ]
    padding = tuple(draw(st.integers(0, min(4, (f - 1) // 2))) for f in full)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    c_in, c_out = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    layer = TRANSPOSED[axes - 1](
        c_in, c_out, kernel, stride, padding, extra, groups, dilation=dilation
    ).double()
    return _weights(draw, layer), (c_in, *size)


@st.composite
def poolings(draw):
    """An average pooling of any kind with a shape that it takes."""
    axes = draw(st.sampled_from([1, 2, 2, 3]))

    def per_axis(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(axes))

    top = 4 if axes == 3 else 7
    if draw(st.booleans()):
        kind = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[axes - 1]
        return kind(per_axis(1, top)), (draw(st.integers(1, 2)), *per_axis(1, top))
    kernel, stride = per_axis(1, 4), per_axis(1, 5)
    padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
    size = tuple(
        max(n, k if axes == 3 else k - 2 * p)  # torch's AvgPool3d does not count the padding here
        for n, k, p in zip(per_axis(1, top), kernel, padding, strict=True)
    )
    options = {"ceil_mode": draw(st.booleans()), "count_include_pad": draw(st.booleans())}
    if axes > 1:
        options["divisor_override"] = draw(st.sampled_from([None, None, 1, 3, -2]))
    kind = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)[axes - 1]
    return kind(kernel, stride, padding, **options), (draw(st.integers(1, 2)), *size)


@st.composite
def resizings(draw):
    """An ``nn.Upsample`` of any kind with a shape that it takes."""
    axes = draw(st.integers(1, 3))
    linear = ("linear", "bilinear", "trilinear")[axes - 1]
    mode = draw(st.sampled_from(["nearest", "nearest-exact", "area", linear, *["bicubic"] * (axes == 2)]))
    size = tuple(draw(st.integers(1, 4 if axes == 3 else 9)) for _ in range(axes))
    options = {"mode": mode}
    if mode not in ("nearest", "nearest-exact", "area"):
        options["align_corners"] = draw(st.sampled_from([None, False, True]))
    if draw(st.booleans()):
        return nn.Upsample(tuple(draw(st.integers(1, 9)) for _ in size), **options), (1, *size)
    factors = tuple(max(draw(st.sampled_from([0.3, 0.5, 1.0, 1.7, 2.0, 3.1])), 1 / n) for n in size)
    if draw(st.booleans()):
        options["recompute_scale_factor"] = True
    return nn.Upsample(scale_factor=factors, **options), (1, *size)


@st.composite
def paddings(draw):
    """A padding layer of any kind with a shape that it takes."""
    axes = draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["Zero", "Constant", "Circular", "Reflection", "Replication"]))
    size = [draw(st.integers(1, 4)) for _ in range(axes)]
    most = {"Circular": 0, "Reflection": -1}
    pads = []
    for n in reversed(size):  # the last axis comes first
        low = -(n - 1) if kind in ("Zero", "Constant") else 0
        first = draw(st.integers(low, n + most[kind] if kind in most else 3))
        after = draw(st.integers(min(0, low - min(first, 0)), n + most[kind] if kind in most else 3))
        pads += [first, after]
    values = (0.5,) if kind == "Constant" else ()
    return getattr(nn, f"{kind}Pad{axes}d")(tuple(pads), *values), (draw(st.integers(1, 2)), *size)


@st.composite
def foldings(draw):
    """An ``nn.Unfold`` or ``nn.Fold`` with a shape that it takes."""
    kernel, dilation, padding, stride = (
        (draw(st.integers(low, 3)), draw(st.integers(low, 3))) for low in (1, 1, 0, 1)
    )
    span = [d * (k - 1) + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = [max(draw(st.integers(1, 6)), n) for n in span]
    windows = math.prod((n - m) // s + 1 for n, m, s in zip(size, span, stride, strict=True))
    channels = draw(st.integers(1, 2))
    if draw(st.booleans()):
        return nn.Unfold(kernel, dilation, padding, stride), (channels, *size)
    return nn.Fold(size, kernel, dilation, padding, stride), (channels * math.prod(kernel), windows)


def small_strides():
    """Liang's squares and rectangles: kernel, stride, padding and size per axis, two axes."""
    axis = [
        (k, s, p, n)
        for k, s, p, n in itertools.product((1, 2, 3), (1, 2, 4), (0, 1, 2), (1, 3, 4))
        if n + 2 * p >= k
    ]
    return list(itertools.product(axis[::5], axis[::7]))
