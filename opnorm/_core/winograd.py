"""3x3 convolutions of many channels with a quarter of the multiplications, for frozen weights on a CPU.

The 4 outputs of a filter of 3 weights at 6 inputs are a linear map of 6 products, those of values at 6 points that two
linear maps make of the inputs and of the weights. In two dimensions these are 36 products for 16 outputs of 9 weights each.
Summed over the channels they are 36 matrix products, and with many channels the maps before and after them cost little.
Rounding errors are about twice those of a usual convolution.

Source: Winograd 1980; Lavin & Gray 2016, Fast Algorithms for Convolutional Neural Networks.
"""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from opnorm._core.frozen_layers import FrozenConv2d, WeightForm, is_plain

__all__ = ["WinogradConv2d", "is_wide"]

KERNEL, OUTPUTS = 3, 4  # along an axis of a tile
INPUTS = OUTPUTS + KERNEL - 1
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)  # and infinity; with these the rounding errors are small
CHANNELS = 96  # with fewer, the maps take longer than the products save
ROWS = 16  # tiles of all images; with fewer, reading 36 numbers for 9 weights takes longer
WITHIN = 0.75  # of the outputs of all tiles are those of the image; with less (maps of 6x6, 10x10) only 256 channels gain
BLOCK = 2**18  # numbers of a block of tiles for each thread: they stay in its cache
SHARE = 0.5  # of the filters' numbers, which are read once for each block; where that is more, a block has as many
BLOCKS = 4  # at most, with several threads, which wait for each other after each operation on a block


def is_wide(layer: nn.Module) -> bool:
    """Whether the layer is a convolution for which :class:`WinogradConv2d` is faster on a CPU."""
    return (
        is_plain(layer)
        and layer.kernel_size == (KERNEL, KERNEL)
        and layer.stride == layer.dilation == (1, 1)
        and all(n < KERNEL for n in cast(tuple[int, int], layer.padding))
        and min(layer.in_channels, layer.out_channels) >= CHANNELS
    )


class WinogradConv2d(FrozenConv2d):
    """The same function as a convolution with frozen weights, with which it shares them, up to rounding."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.filters, self.transposed_filters = WeightForm(_filters), WeightForm(_transposed_filters)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, F, H', W')."""
        if x.ndim != 4 or not x.dtype == self.weight.dtype == torch.float32 or not self._pays(x):
            return super().forward(x)
        out: Tensor = _Convolution.apply(x, self)
        return out

    def _pays(self, x: Tensor) -> bool:
        """Whether there are many tiles, most of whose outputs are within the image, in few blocks."""
        sizes = _output_sizes(x, self.padding)
        tiles = math.prod(-(-n // OUTPUTS) for n in sizes)
        blocks = len(x) / _block(tiles, self.in_channels, self.out_channels)
        return (
            len(x) * tiles >= ROWS
            and math.prod(sizes) >= WITHIN * OUTPUTS**2 * tiles
            and (blocks <= BLOCKS or torch.get_num_threads() == 1)
        )


class _Convolution(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: WinogradConv2d) -> Tensor:
        ctx.layer = layer
        return _correlation(x, layer.filters(layer.weight), layer.padding, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer, (grad,) = ctx.layer, grads
        margins = [KERNEL - 1 - n for n in layer.padding]
        return _correlation(grad, layer.transposed_filters(layer.weight), margins, None), None


@cache
def _maps() -> tuple[Tensor, Tensor, Tensor]:
    """Of tiles to their values at the points (36, 36), of kernels to theirs (36, 9), of products to outputs (16, 36).

    A polynomial of k coefficients has the values ``at(k)`` times them; its value at infinity is the last one. The product of
    polynomials of 4 and 3 coefficients is at(6)^-1 of the products of their values. The transpose of that map, for fixed
    coefficients of the second one, is the correlation.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)[:, None]

    def at(count: int) -> Tensor:
        return torch.cat([points ** torch.arange(count), torch.eye(count, dtype=torch.float64)[-1:]])

    along_an_axis = torch.linalg.inv(at(INPUTS)).T, at(KERNEL), at(OUTPUTS).T
    of_tiles, of_kernels, of_products = (torch.kron(m, m).float() for m in along_an_axis)
    return of_tiles, of_kernels, of_products


def _filters(weight: Tensor) -> Tensor:
    """The values (36, C, F) of kernels (F, C, 3, 3) at the points."""
    _, of_kernels, _ = _maps()
    return (of_kernels @ weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)).view(
        INPUTS**2, *weight.shape[1::-1]
    )


def _transposed_filters(weight: Tensor) -> Tensor:
    """The same (36, F, C) for the transpose of the convolution."""
    return _filters(weight.flip(2, 3).transpose(0, 1))


def _output_sizes(x: Tensor, margins: Sequence[Any]) -> list[int]:
    return [n + 2 * margin - KERNEL + 1 for n, margin in zip(x.shape[2:], margins, strict=True)]


def _block(tiles: int, channels: int, features: int) -> int:
    """How many images of so many tiles are computed at a time."""
    numbers = max(BLOCK * torch.get_num_threads(), SHARE * INPUTS**2 * channels * features)
    return max(1, int(numbers / (INPUTS**2 * tiles * max(channels, features))))


def _correlation(x: Tensor, filters: Tensor, margins: Sequence[Any], bias: Tensor | None) -> Tensor:
    """Sums over windows of x (B, C, H, W), times filters by their values at the points (36, C, F); channels last."""
    of_tiles, _, of_products = _maps()
    points, channels, features = filters.shape
    height, width = _output_sizes(x, margins)
    down, across = (-(-n // OUTPUTS) for n in (height, width))
    block = min(len(x), _block(down * across, channels, features))
    # each takes what is computed from the other
    one, other = x.new_empty(2, points * block * down * across * max(channels, features))
    padded = x.new_zeros(block, down * OUTPUTS + KERNEL - 1, across * OUTPUTS + KERNEL - 1, channels)
    inside = padded[:, margins[0] :, margins[1] :][:, : x.shape[2], : x.shape[3]]
    out = x.new_empty(len(x), down * OUTPUTS, across * OUTPUTS, features)
    for images, places in zip(x.permute(0, 2, 3, 1).split(block), out.split(block), strict=True):
        count = len(images)
        rows = count * down * across
        inside[:count] = images
        windows = (
            padded[:count].unfold(1, INPUTS, OUTPUTS).unfold(2, INPUTS, OUTPUTS).permute(4, 5, 0, 1, 2, 3)
        )
        tiles = _view(one, *windows.shape).copy_(windows).view(points, -1)
        values = torch.mm(of_tiles, tiles, out=_view(other, *tiles.shape)).view(points, rows, channels)
        products = torch.bmm(values, filters, out=_view(one, points, rows, features)).view(points, -1)
        sums = torch.mm(of_products, products, out=_view(other, len(of_products), rows * features))
        tiled = places.view(count, down, OUTPUTS, across, OUTPUTS, features).permute(2, 4, 0, 1, 3, 5)
        torch.add(sums.view(tiled.shape), 0 if bias is None else bias, out=tiled)
    return out[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _view(buffer: Tensor, *shape: int) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)
