"""A layer as a linear map: ``x -> layer(x) - layer(0)``, with its adjoint and, for small ones, its matrix.

Everything that opnorm proves about a norm it proves against :func:`dense`, the explicit matrix of the map. New
layer types join by ``@linear_map.register(MyLayer)``; a layer without an entry that turns out to be affine goes
through autograd, slower and just as right.
"""

import copy
import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as conv_grad
from torch.nn.parameter import is_lazy

from opnorm.errors import NormError

__all__ = [
    "ConvGeometry",
    "LinearMap",
    "check_features",
    "check_forward",
    "check_lazy",
    "check_padding",
    "check_weight",
    "conv_geometry",
    "dense",
    "in_float64",
    "linear_map",
    "overrides",
    "pad_index",
    "through_autograd",
    "transpose_geometry",
    "unwrap",
]

Shape = tuple[int, ...]
ConvLayer = nn.Conv1d | nn.Conv2d | nn.Conv3d
ConvTransposeLayer = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
MODES = ("zeros", "circular", "reflect", "replicate")
Layer = TypeVar("Layer", bound=nn.Module)


class LinearMap(NamedTuple):
    """A layer without its bias.

    Attributes:
        apply: (B, *in_shape) -> (B, *out_shape).
        adjoint: (B, *out_shape) -> (B, *in_shape), with <apply(v), u> = <v, adjoint(u)>.
        in_shape: without the batch axis.
        out_shape: without the batch axis.
        device: where it takes its vectors, in float64.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    in_shape: Shape
    out_shape: Shape
    device: torch.device = torch.device("cpu")


class ConvGeometry(NamedTuple):
    """Everything about a convolution but its kernel; one entry per spatial axis."""

    kernel: Shape
    stride: Shape
    padding: tuple[tuple[int, int], ...]  # (before, after): padding="same" can be uneven
    dilation: Shape
    groups: int
    mode: str = "zeros"  # of the padding

    def out_size(self, in_size: Shape) -> Shape:
        """Output size per axis; NormError when the kernel does not fit the padded input."""
        size = tuple(
            (n + sum(p) - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(
                in_size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        if min(size) < 1:
            raise NormError(
                f"input of size {in_size} is smaller than the kernel {self.kernel} (dilation {self.dilation}, "
                f"padding {self.padding}): the output would be empty"
            )
        return size


def conv_geometry(layer: nn.modules.conv._ConvNd, any_mode: bool = False) -> ConvGeometry:
    """Read the geometry off a Conv1d, Conv2d or Conv3d.

    Args:
        layer: the convolution.
        any_mode: take every padding mode; by default only zeros.

    Raises:
        NormError: another padding mode, unless ``any_mode``.
    """
    if layer.padding_mode != "zeros" and not any_mode:
        raise NormError(f"padding_mode={layer.padding_mode!r} is not known here; expected 'zeros'")
    return _geometry(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    )


@functools.lru_cache(maxsize=4096)
def _geometry(
    kernel: Shape, stride: Shape, padding: str | Shape, dilation: Shape, groups: int, mode: str
) -> ConvGeometry:
    """From a layer's attributes; kept, because norms are asked for in every step of a training."""
    pads: tuple[tuple[int, int], ...]
    if padding == "valid":
        pads = ((0, 0),) * len(kernel)
    elif padding == "same":
        pads = same_padding(kernel, dilation)
    else:
        pads = tuple((int(p), int(p)) for p in padding)
    return ConvGeometry(kernel, stride, pads, dilation, groups, mode)


def same_padding(kernel: Shape, dilation: Shape) -> tuple[tuple[int, int], ...]:
    """What padding="same" stands for: (before, after) per axis, the odd one after."""
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple((t // 2, t - t // 2) for t in total)


def transpose_geometry(layer: nn.modules.conv._ConvTransposeNd, in_size: Shape) -> tuple[ConvGeometry, Shape]:
    """The convolution whose adjoint a transposed convolution is, and the size of that convolution's input.

    That input is the transposed convolution's output; of the convolution's own output positions only the first
    ``in_size`` count (there are more only where output_padding is at least the stride, which a dilation allows).

    Raises:
        NormError: the output would be empty.
    """
    geometry = _geometry(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, "zeros"
    )
    return geometry, transposed_size(geometry, in_size, layer.output_padding)


@functools.lru_cache(maxsize=4096)
def transposed_size(geometry: ConvGeometry, in_size: Shape, output_padding: Shape) -> Shape:
    """Output size of a transposed convolution per axis; NormError when it would be empty."""
    axes = zip(in_size, geometry.kernel, geometry.stride, geometry.padding, geometry.dilation, strict=True)
    size = tuple(
        (n - 1) * s - sum(p) + d * (k - 1) + 1 + extra
        for (n, k, s, p, d), extra in zip(axes, output_padding, strict=True)
    )
    limits = (max(s, d) for s, d in zip(geometry.stride, geometry.dilation, strict=True))
    if any(extra >= limit for extra, limit in zip(output_padding, limits, strict=True)):
        raise NormError(
            f"output_padding {output_padding} must stay below the stride {geometry.stride} or the dilation "
            f"{geometry.dilation}"
        )
    if min(in_size) < 1 or min(size) < 1:
        raise NormError(
            f"a transposed convolution of an input of size {in_size} with padding {geometry.padding} would have an "
            f"output of size {size}"
        )
    return size


def check_padding(size: int, before: int, after: int, mode: str) -> None:
    """NormError for an unknown padding mode, and for more padding than it allows on an axis of this size.

    A circle is gone round at most once, and a reflection needs a position to reflect.
    """
    most = {"zeros": None, "circular": size, "reflect": size - 1, "replicate": None}
    if mode not in most:
        raise NormError(f"padding_mode={mode!r}: expected one of {', '.join(map(repr, MODES))}")
    limit = most[mode]
    if limit is not None and max(before, after) > limit:
        raise NormError(
            f"{mode} padding of {max(before, after)} on an input of size {size}: torch allows at most {limit}"
        )


@functools.lru_cache(maxsize=4096)
def pad_index(size: int, before: int, after: int, mode: str = "zeros") -> tuple[int, ...]:
    """Which input position each position of a padded axis shows; -1 for a zero.

    Args:
        size: of the axis.
        before: padding before it.
        after: padding after it.
        mode: "zeros", "circular", "reflect" (without repeating the border) or "replicate", as in ``nn.Conv2d``.

    Raises:
        NormError: as :func:`check_padding`.
    """
    check_padding(size, before, after, mode)
    positions = range(-before, size + after)
    if mode == "zeros":
        return tuple(h if 0 <= h < size else -1 for h in positions)
    if mode == "circular":
        return tuple(h % size for h in positions)
    if mode == "replicate":
        return tuple(min(max(h, 0), size - 1) for h in positions)
    return tuple(size - 1 - abs(size - 1 - abs(h)) for h in positions)


@functools.singledispatch
def linear_map(layer: nn.Module, in_shape: Shape) -> LinearMap:
    """The layer as a linear map in float64, on the layer's device.

    Args:
        layer: any affine module, in eval mode where that matters.
        in_shape: shape of one input, without the batch axis.

    Raises:
        NormError: the layer is not affine, or does not take such inputs.
    """
    inner = unwrap(layer)
    return through_autograd(layer, in_shape) if inner is layer else linear_map(inner, in_shape)


def unwrap(layer: nn.Module) -> nn.Module:
    """The layer that ``torch.compile`` wrapped; any other layer itself."""
    inner = layer
    while isinstance(kept := vars(inner).get("_modules", {}).get("_orig_mod"), nn.Module):
        inner = kept
    return inner


def through_autograd(layer: nn.Module, in_shape: Shape) -> LinearMap:
    """Any affine layer; arguments and errors as :func:`linear_map`."""
    check_lazy(layer)
    layer = in_float64(layer)
    first = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)
    device = first.device if first is not None else torch.device("cpu")
    zero = torch.zeros(1, *in_shape, dtype=torch.float64, device=device)
    try:
        offset = layer(zero)
    except Exception as e:  # whatever the user's own layer raises
        raise NormError(f"{type(layer).__name__} does not take an input of shape {in_shape}: {e}") from e
    if not isinstance(offset, Tensor):
        raise NormError(f"{type(layer).__name__} returns {type(offset).__name__}; expected one tensor")

    def apply(v: Tensor) -> Tensor:
        return layer(v) - offset

    _check_affine(apply, zero, type(layer).__name__)

    def adjoint(u: Tensor) -> Tensor:
        pull_back = torch.func.vjp(apply, zero.expand(len(u), *in_shape))[1]
        return pull_back(u)[0]

    return LinearMap(apply, adjoint, tuple(in_shape), tuple(offset.shape[1:]), device)


def in_float64(layer: Layer) -> Layer:
    """A copy in float64 and eval mode, without gradients; weights that are computed from others (pruned ones) too."""
    computed = {
        id(t): t.detach().double().clone()
        for module in layer.modules()
        for t in vars(module).values()
        if isinstance(t, Tensor)
    }  # deepcopy refuses tensors with a history, and takes these in their place
    return copy.deepcopy(layer, computed).double().eval().requires_grad_(False)


def _check_affine(apply: Callable[[Tensor], Tensor], zero: Tensor, name: str) -> None:
    """An affine map obeys f(a + b) = f(a) + f(b), near zero and far from it; random pairs leave no room for luck."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 1e3, 1e6):
        a, b = (
            scale * torch.randn(3, *zero.shape[1:], generator=generator, dtype=zero.dtype).to(zero.device)
            for _ in "ab"
        )
        with torch.no_grad():
            together, apart = apply(a + b), apply(a) + apply(b)
        if not torch.isfinite(apart).all():
            raise NormError(f"{name} gives NaN or infinite values; are its weights finite?")
        if not torch.allclose(
            together, apart, rtol=1e-9, atol=1e-9 * float(apart.abs().max().clamp(min=1e-300))
        ):
            raise NormError(f"{name} is not linear")


def overrides(layer: nn.Module, *bases: type[nn.Module]) -> bool:
    """Whether a subclass computes something else than its base, so that the base's formula says nothing about it."""
    own = vars(layer).get("forward")  # set on the one layer, as some libraries do
    forward = type(layer).forward if own is None else getattr(own, "__func__", own)
    return not any(forward is base.forward for base in bases)


def check_forward(layer: nn.Module, *bases: type[nn.Module]) -> None:
    """NormError when the layer overrides the forward of its base, as a convolution of standardized weights does."""
    if overrides(layer, *bases):
        raise NormError(f"{type(layer).__name__} has a forward of its own, so its norm is not known")


def check_features(layer: nn.Linear, in_shape: Shape) -> None:
    """NormError unless the last axis is what the layer takes."""
    if tuple(in_shape[-1:]) != (layer.in_features,):
        raise NormError(f"Linear takes {layer.in_features} features, got an input of shape {in_shape}")


def check_channels(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> None:
    """NormError unless the input has the channels and the spatial axes that a convolution takes."""
    axes = len(layer.kernel_size)
    if len(in_shape) != axes + 1 or in_shape[0] != layer.in_channels:
        raise NormError(
            f"{type(layer).__name__} takes {layer.in_channels} channels and {axes} spatial axes, "
            f"got an input of shape {in_shape}"
        )


def check_lazy(layer: nn.Module) -> None:
    """NormError when a parameter or buffer is not there yet."""
    for name, tensor in itertools.chain(layer.named_parameters(), layer.named_buffers()):
        if is_lazy(tensor):
            check_weight(tensor, name)


def check_weight(weight: Tensor, name: str = "weight") -> None:
    """NormError for weights that are no numbers to compute with: lazy, meta, integer or quantized ones."""
    if is_lazy(weight):
        raise NormError(f"{name} is not there yet: a lazy layer has none before its first forward pass")
    if weight.is_meta:
        raise NormError(
            f"{name} is on the meta device: it has a shape and no numbers; load the weights first"
        )
    if not weight.is_floating_point():
        raise NormError(
            f"{name} has dtype {weight.dtype}; expected floating point, so dequantize or convert it"
        )


@linear_map.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> LinearMap:
    if overrides(layer, nn.Linear):
        return through_autograd(layer, in_shape)
    check_weight(layer.weight)
    check_features(layer, in_shape)
    W = layer.weight.detach().double()
    out_shape = (*in_shape[:-1], layer.out_features)
    return LinearMap(lambda v: v @ W.T, lambda u: u @ W, tuple(in_shape), out_shape, W.device)


@linear_map.register(nn.Conv1d)
@linear_map.register(nn.Conv2d)
@linear_map.register(nn.Conv3d)
def _(layer: ConvLayer, in_shape: Shape) -> LinearMap:
    if overrides(layer, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return through_autograd(layer, in_shape)
    check_weight(layer.weight)
    check_channels(layer, in_shape)
    geometry = conv_geometry(layer, any_mode=True)
    axes = len(geometry.kernel)
    K = layer.weight.detach().double()
    conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    conv_input = (conv_grad.conv1d_input, conv_grad.conv2d_input, conv_grad.conv3d_input)[axes - 1]
    out_shape = (layer.out_channels, *geometry.out_size(in_shape[1:]))
    padded = tuple(n + sum(p) for n, p in zip(in_shape[1:], geometry.padding, strict=True))
    pad, unpad = _padding(geometry, in_shape[1:], K.device)

    def apply(v: Tensor) -> Tensor:
        return conv(pad(v), K, None, geometry.stride, 0, geometry.dilation, geometry.groups)

    def adjoint(u: Tensor) -> Tensor:
        size = (len(u), layer.in_channels, *padded)
        return unpad(conv_input(size, K, u, geometry.stride, 0, geometry.dilation, geometry.groups))

    return LinearMap(apply, adjoint, tuple(in_shape), out_shape, K.device)


def _padding(
    geometry: ConvGeometry, in_size: Shape, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The padding of the spatial axes, and its adjoint, which adds every copy of a pixel back onto it."""
    if geometry.mode == "zeros":
        before_after = [p for pair in reversed(geometry.padding) for p in pair]
        inside = [slice(p[0], p[0] + n) for n, p in zip(in_size, geometry.padding, strict=True)]
        return lambda v: F.pad(v, before_after), lambda u: u[:, :, *inside]
    index = [
        torch.tensor(pad_index(n, *p, geometry.mode), device=device)
        for n, p in zip(in_size, geometry.padding, strict=True)
    ]

    def pad(v: Tensor) -> Tensor:
        for axis, i in enumerate(index):
            v = v.index_select(axis + 2, i)
        return v

    def unpad(u: Tensor) -> Tensor:
        for axis, (i, n) in enumerate(zip(index, in_size, strict=True)):
            shape = (*u.shape[: axis + 2], n, *u.shape[axis + 3 :])
            u = u.new_zeros(shape).index_add_(axis + 2, i, u)
        return u

    return pad, unpad


@linear_map.register(nn.ConvTranspose1d)
@linear_map.register(nn.ConvTranspose2d)
@linear_map.register(nn.ConvTranspose3d)
def _(layer: ConvTransposeLayer, in_shape: Shape) -> LinearMap:
    if overrides(layer, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
        return through_autograd(layer, in_shape)
    check_weight(layer.weight)
    check_channels(layer, in_shape)
    geometry, out_size = transpose_geometry(layer, in_shape[1:])
    axes = len(geometry.kernel)
    K = layer.weight.detach().double()
    transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
    conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    padding = tuple(p[0] for p in geometry.padding)
    first = [slice(n) for n in in_shape[1:]]

    def apply(v: Tensor) -> Tensor:
        return transposed(
            v, K, None, geometry.stride, padding, layer.output_padding, geometry.groups, geometry.dilation
        )

    def adjoint(u: Tensor) -> Tensor:
        return conv(u, K, None, geometry.stride, padding, geometry.dilation, geometry.groups)[:, :, *first]

    return LinearMap(apply, adjoint, tuple(in_shape), (layer.out_channels, *out_size), K.device)


def dense(linear: LinearMap, limit: int = 2**27) -> Tensor:
    """The explicit float64 matrix, of shape (prod(out_shape), prod(in_shape)).

    Raises:
        NormError: it would have more than ``limit`` entries (1 GiB).
    """
    rows, columns = math.prod(linear.out_shape), math.prod(linear.in_shape)
    if rows * columns > limit:
        raise NormError(f"the matrix would be {rows:,} x {columns:,}; at most {limit:,} entries")
    basis = torch.eye(columns, dtype=torch.float64, device=linear.device).reshape(columns, *linear.in_shape)
    with torch.no_grad():
        return linear.apply(basis).reshape(columns, rows).T
