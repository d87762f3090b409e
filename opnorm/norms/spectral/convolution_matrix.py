"""The matrix of a convolution, zero-padded or not, by its kernel: Frobenius norm, circular form and sparse entries."""

import functools
import itertools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.convolution import ConvGeometry, conv_geometry, pad_index, transpose_geometry
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import CONV, TRANSPOSED, Shape, is_standard
from opnorm._core.linear_map import LinearMap, convolution_map, linear_map
from opnorm.norms.spectral.block_gram import BlockGram
from opnorm.norms.spectral.frequency_response import Polyphase, polyphase

__all__ = ["ConvolutionMatrix", "as_convolution", "plain_convolution"]


class ConvolutionMatrix(NamedTuple):
    """A convolution with everything that its matrix depends on.

    Attributes:
        K: kernel (c_out, c_in / groups, *kernel), float64.
        geometry: stride, padding, dilation and groups.
        in_size: input size per axis.
        out_size: output size per axis.
    """

    K: Tensor
    geometry: ConvGeometry
    in_size: Shape
    out_size: Shape

    def linear(self) -> LinearMap:
        """The map itself."""
        return convolution_map(self.K, self.geometry, self.in_size, self.out_size)

    def of_groups(self, K: Tensor) -> "ConvolutionMatrix":
        """The same convolution with other groups, kernels (groups, c_out, c_in, *kernel)."""
        return self._replace(K=K.flatten(0, 1), geometry=self.geometry._replace(groups=len(K)))

    @property
    def circle(self) -> Shape:
        """Output positions of the circular form per axis: the input's size over the stride, rounded up."""
        return tuple(-(-n // s) for n, s in zip(self.in_size, self.geometry.stride, strict=True))

    @property
    def closes(self) -> bool:
        """Whether inputs and outputs fit around the same circle."""
        whole = all(n % s == 0 for n, s in zip(self.in_size, self.geometry.stride, strict=True))
        return whole and self.out_size == self.circle

    def circular_symbol(self) -> Polyphase:
        """The polyphase form with every kernel entry; its symbol is the convolution's on any circle, up to a shift."""
        stride, padding = self.geometry.stride, self.geometry.padding
        ahead = tuple((-((-p) % s), 0) for (p, _), s in zip(padding, stride, strict=True))
        each = zip(stride, self.geometry.kernel, self.geometry.dilation, strict=True)
        enough = tuple(s + k * d for s, k, d in each)
        bare = self.geometry._replace(padding=ahead, mode="zeros")
        return polyphase(self.K, bare, enough, (1,) * len(stride))

    def inner_product(self, mode: str, other_mode: str) -> float:
        """<M, M'>_F of the matrices with two padding modes, in closed form.

        Σ_{κ, κ'} <K_κ, K_κ'> ∏_axes (number of output positions at which κ and κ' read the same input position).
        """
        taps = self.K.flatten(2).permute(2, 0, 1).flatten(1)
        counts = torch.ones(1, 1, dtype=taps.dtype)
        for axis in range(len(self.in_size)):
            first, second = self.reads(axis, mode), self.reads(axis, other_mode)
            same = (first[:, None] == second) & (first[:, None] >= 0)
            counts = torch.kron(counts, torch.from_numpy(same.sum(-1)).to(counts))
        return float((taps @ taps.mT * counts.to(taps.device)).sum())

    def scaled(self) -> tuple["ConvolutionMatrix", float]:
        """The convolution over a power of two, so that no square overflows or underflows, and that power."""
        scale = math.ldexp(1.0, math.frexp(float(self.K.abs().max()))[1])
        return self._replace(K=self.K / scale), scale

    def distance_from_circular(self) -> float:
        """‖M - M'‖_F for this matrix and that with circular padding; 0 where only rounding is left."""
        one, scale = self.scaled()
        mode = one.geometry.mode
        squares = one.inner_product(mode, mode) + one.inner_product("circular", "circular")
        distance = squares - 2 * one.inner_product(mode, "circular")
        return scale * math.sqrt(distance) if distance > 1e-13 * squares else 0.0

    def reads(self, axis: int, mode: str) -> np.ndarray:
        """The input position that each kernel entry reads for each output position, (kernel, out); -1 for a zero."""
        geometry, n = self.geometry, self.in_size[axis]
        before, after = geometry.padding[axis]
        entries, outputs = np.arange(geometry.kernel[axis]), np.arange(self.out_size[axis])
        at = (
            entries[:, None] * geometry.dilation[axis] + outputs * geometry.stride[axis]
        )  # on the padded axis
        if mode == "circular":
            return (at - before) % n
        return np.array(pad_index(n, before, after, mode))[at]

    def block_gram(self) -> BlockGram:
        """Its Gram matrix with the blocks that are the least work."""
        reads = [self.reads(axis, self.geometry.mode) for axis in range(len(self.in_size))]
        return BlockGram.cheapest(self.K.unflatten(0, (self.geometry.groups, -1)), reads, self.in_size)

    def to_sparse(self) -> Any:
        """The matrix as a ``scipy.sparse`` one; rows and columns are ordered by the first spatial axis, then the channel."""
        from scipy.sparse import coo_array

        groups, axes = self.geometry.groups, range(len(self.in_size))
        c_out, c_in = len(self.K), self.K.shape[1]
        channels = (
            np.arange(c_out)[:, None],
            np.arange(c_out)[:, None] // (c_out // groups) * c_in + np.arange(c_in),
        )
        kernel, reads = self.K.cpu().numpy(), [self.reads(axis, self.geometry.mode) for axis in axes]
        rows, columns, values = [], [], []
        for tap in itertools.product(*map(range, self.geometry.kernel)):
            sources = [reads[axis][tap[axis]] for axis in axes]
            places = [np.flatnonzero(source >= 0) for source in sources]
            targets = [source[place] for source, place in zip(sources, places, strict=True)]
            row = _numbers(channels[0], places, c_out, self.out_size)
            column = _numbers(channels[1], targets, c_in * groups, self.in_size)
            rows.append(np.broadcast_to(row, column.shape).ravel())
            columns.append(column.ravel())
            values.append(np.broadcast_to(kernel[(..., *tap, *[None] * len(axes))], column.shape).ravel())
        shape = math.prod(self.out_size) * c_out, math.prod(self.in_size) * c_in * groups
        parts = (np.concatenate(part) for part in (values, rows, columns))
        entries, row_of, column_of = parts
        return coo_array((entries, (row_of, column_of)), shape).tocsr()


def _numbers(channels: np.ndarray, places: list[np.ndarray], count: int, size: Shape) -> np.ndarray:
    """The numbers of entries (..., *places) in the order first axis, channel, other axes."""
    axes = len(places)
    first, *others = np.ix_(*places)
    number = first * count + channels[(..., *[None] * axes)]
    return functools.reduce(lambda n, axis: n * size[axis] + others[axis - 1], range(1, axes), number)


def as_convolution(layer: nn.Module, in_shape: Shape) -> ConvolutionMatrix | None:
    """The convolution with a layer's matrix, or with its transpose for transposed convolutions; None for other layers.

    Raises:
        NormError: the layer does not take such inputs.
    """
    size = tuple(in_shape[1:])
    if is_standard(layer, *CONV):
        linear_map(layer, in_shape)  # checks the layer and the shape
        geometry = conv_geometry(layer)  # type: ignore[arg-type]
        return ConvolutionMatrix(weight_of(layer).detach().double(), geometry, size, geometry.out_size(size))
    if is_standard(layer, *TRANSPOSED):
        linear_map(layer, in_shape)
        geometry, in_size = transpose_geometry(layer, size)  # type: ignore[arg-type]
        return ConvolutionMatrix(weight_of(layer).detach().double(), geometry, in_size, size)
    return None


def plain_convolution(layer: nn.Module, K: Tensor, groups: int) -> nn.Module:
    """The convolution with the settings of a layer, another number of groups, and without a bias.

    Args:
        layer: a Conv1d, Conv2d or Conv3d.
        K: kernel (c_out, c_in / groups, *kernel).
        groups: how many.
    """
    kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[K.ndim - 3]
    settings = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    sizes = K.shape[1] * groups, len(K)
    plain = kind(*sizes, *settings, groups, False, layer.padding_mode, "meta", torch.float64)
    plain.weight = nn.Parameter(K, requires_grad=False)
    return plain
