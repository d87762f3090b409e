"""Geometry of convolutions: sizes, strides and padding, one entry per spatial axis."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape
from opnorm.errors import NormError

__all__ = [
    "ConvGeometry",
    "check_padding",
    "conv_geometry",
    "pad_index",
    "pad_or_crop",
    "padding_maps",
    "same_padding",
    "transpose_geometry",
    "transposed_size",
]

MODES = ("zeros", "circular", "reflect", "replicate")


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


def conv_geometry(layer: nn.modules.conv._ConvNd) -> ConvGeometry:
    """Read the geometry off a Conv1d, Conv2d or Conv3d."""
    return _geometry(
        layer.kernel_size, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    )


@functools.lru_cache(maxsize=4096)
def _geometry(
    kernel: Shape, stride: Shape, padding: str | Shape, dilation: Shape, groups: int, mode: str
) -> ConvGeometry:
    """From a layer's attributes; kept, because training computes norms in every step."""
    pads: tuple[tuple[int, int], ...]
    if padding == "valid":
        pads = ((0, 0),) * len(kernel)
    elif padding == "same":
        pads = same_padding(kernel, dilation)
    else:
        pads = tuple((int(p), int(p)) for p in padding)
    return ConvGeometry(kernel, stride, pads, dilation, groups, mode)


def same_padding(kernel: Shape, dilation: Shape) -> tuple[tuple[int, int], ...]:
    """The padding of padding="same": (before, after) per axis, the odd one after."""
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
    """NormError for an unknown padding mode, and for more padding than torch allows on an axis of this size."""
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
    """The input position that each position of a padded axis copies; -1 for a zero. Modes and errors as ``nn.Conv2d``."""
    check_padding(size, before, after, mode)
    positions = range(-before, size + after)
    if mode == "zeros":
        return tuple(h if 0 <= h < size else -1 for h in positions)
    if mode == "circular":
        return tuple(h % size for h in positions)
    if mode == "replicate":
        return tuple(min(max(h, 0), size - 1) for h in positions)
    return tuple(size - 1 - abs(size - 1 - abs(h)) for h in positions)


def pad_or_crop(v: Tensor, pads: Sequence[int]) -> Tensor:
    """Zeros on the sides where the number is positive, less entries where it is negative, in the order of ``F.pad``.

    ``F.pad`` crops first, and fails where one side loses more than there is before the other side gets its zeros.
    """
    if min(pads) < 0 < max(pads):
        v = F.pad(v, [max(p, 0) for p in pads])
        pads = [min(p, 0) for p in pads]
    return F.pad(v, list(pads))


def padding_maps(
    geometry: ConvGeometry, in_size: Shape, device: torch.device
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The padding of the spatial axes, and its adjoint, which adds every copy of a pixel back onto it."""
    if geometry.mode == "zeros":
        pads = [p for pair in reversed(geometry.padding) for p in pair]
        return lambda v: pad_or_crop(v, pads), lambda u: pad_or_crop(u, [-p for p in pads])
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
