"""Average pooling, padding, resizing, unfolding and folding: Kronecker products of maps of one axis each.

The norm of a Kronecker product is the product of the norms, and that of a matrix A >= 0 is max Aᵀ1 (ℓ1) or max A1 (ℓ∞).
So one run of the layer's own operation on a line of ones, axis by axis, gives both norms: O(n) and not O(image). Cubic
interpolation has negative entries: of each axis the matrix is read off (``axis_matrix``).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape, check_forward
from opnorm._core.pull_back import pull_back
from opnorm.errors import NormError

__all__ = ["SEPARABLE", "Resize", "axis_maps", "axis_matrix", "separable_norm"]

AVERAGE: tuple[Any, ...] = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
ADAPTIVE: tuple[Any, ...] = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
PADDING: dict[Any, str] = {
    getattr(nn, f"{kind}Pad{axes}d"): mode
    for kind, mode in [
        ("Zero", "constant"),
        ("Constant", "constant"),
        ("Circular", "circular"),
        ("Reflection", "reflect"),
        ("Replication", "replicate"),
    ]
    for axes in (1, 2, 3)
}


class Resize(nn.Module):
    """``torch.nn.functional.interpolate`` with antialiasing, which ``nn.Upsample`` lacks."""

    def __init__(self, size: Any, scale_factor: Any, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.size, self.scale_factor, self.mode, self.align_corners = size, scale_factor, mode, align_corners
        self.recompute_scale_factor = None

    def forward(self, x: Tensor) -> Tensor:
        """The resized input."""
        return F.interpolate(x, self.size, self.scale_factor, self.mode, self.align_corners, antialias=True)


UPSAMPLE: tuple[Any, ...] = (nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, Resize)
FOLDING: tuple[Any, ...] = (nn.Fold, nn.Unfold)
SEPARABLE: tuple[type[nn.Module], ...] = (*AVERAGE, *ADAPTIVE, *PADDING, *UPSAMPLE, *FOLDING)

Axis = Callable[[Tensor], Tensor]  # (B, 1, 1, n) -> (B, ...), m numbers each
COMB = 4  # the first distance of two probes on a line


def separable_norm(layer: nn.Module, in_shape: Shape, side: int) -> Tensor:
    """The exact ℓ1 norm (side 0) or ℓ∞ norm (side 1) of a layer among ``SEPARABLE`` for inputs (C, *size), in float64.

    Raises:
        NormError: the layer does not take such inputs.
    """
    axes, divisor = axis_maps(layer, in_shape)
    of_axis = _signed_norm if getattr(layer, "mode", "") == "bicubic" else _norm
    return torch.tensor(math.prod(of_axis(*axis, side) for axis in axes) / divisor, dtype=torch.float64)


def axis_maps(layer: nn.Module, in_shape: Shape) -> tuple[list[tuple[Axis, int]], float]:
    """A layer among ``SEPARABLE``: a map for each spatial axis with its input size, and what their product is divided by.

    Raises:
        NormError: the layer does not take such inputs.
    """
    kind = type(layer).__name__
    check_forward(layer, *SEPARABLE)
    if isinstance(layer, nn.Fold):
        axes = _folded(layer, in_shape)
    else:
        if not 2 <= len(in_shape) <= 4 or min(in_shape) < 1:
            raise NormError(f"{kind} takes channels and spatial axes, got an input of shape {in_shape}")
        axes = list(zip(_axes(layer, len(in_shape) - 1), in_shape[1:], strict=True))
    for apply, n in axes:
        try:
            apply(torch.ones(1, 1, 1, n, dtype=torch.float64))
        except RuntimeError as e:
            raise NormError(f"{kind} does not take an input of shape {in_shape}: {e}") from None
    # of average pooling: its axes are sums then
    return axes, abs(getattr(layer, "divisor_override", None) or 1)


def _norm(apply: Axis, n: int, side: int) -> float:
    """Of an axis without negative entries."""
    with torch.inference_mode(False), torch.enable_grad():
        ones = torch.ones(1, 1, 1, n, dtype=torch.float64, requires_grad=side == 0)
        out = apply(ones)
        if side == 0:
            (out,) = torch.autograd.grad(out.sum(), ones)
    return float(out.max())


def _signed_norm(apply: Axis, n: int, side: int) -> float:
    return float(abs(axis_matrix(apply, n)).sum(side).max())


@torch.inference_mode(False)
def axis_matrix(apply: Axis, n: int) -> Any:
    """The matrix (m, n) of one axis as a ``scipy.sparse`` one, read off the operation itself.

    On the shorter side, every c-th entry is set to 1, and then to its number. Where no place on the other side depends on
    two such entries, the ratio of the two results is the number of the entry that it depends on. That is checked with
    random numbers; otherwise c is doubled. So a long axis costs O(c n), not O(m n).
    """
    from scipy.sparse import coo_array

    zeros = torch.zeros(1, 1, 1, n, dtype=torch.float64)

    def forward(v: Tensor) -> Tensor:
        return apply(v[:, None, None]).flatten(1)

    def adjoint(u: Tensor) -> Tensor:
        x = zeros.expand(len(u), 1, 1, n).clone().requires_grad_()
        with torch.enable_grad():
            back = pull_back(apply(x).flatten(1), x, u)
        return back.flatten(1)

    m = forward(zeros[0, 0]).shape[1]
    run, short, long = (adjoint, m, n) if m < n else (forward, n, m)
    z = torch.rand(1, short, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5
    c = COMB
    image = run(z)[0].numpy()
    while True:
        A = coo_array(_entries(run, short, min(c, short)), (long, short)).tocsr()
        error = np.abs(A @ z[0].numpy() - image)
        if c >= short or (error <= 1e-12 * (abs(A) @ z[0].numpy())).all():
            return A.T.tocsr() if m < n else A
        c *= 2


def _entries(run: Callable[[Tensor], Tensor], short: int, c: int) -> tuple[np.ndarray, tuple[Any, Any]]:
    """Values, and places on the long and on the short side, by probes whose entries are c apart."""
    values, rows, columns = [], [], []
    for first in range(c):
        probe = torch.zeros(2, short, dtype=torch.float64)
        probe[:, first::c] = 1
        probe[1] *= torch.arange(1, short + 1)
        image, numbered = run(probe).numpy()
        place = np.flatnonzero(image)
        values.append(image[place])
        rows.append(place)
        number = np.rint(numbered[place] / image[place]).astype(int) - 1
        columns.append(np.clip(number, 0, short - 1))
    return np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))


def _axes(layer: Any, axes: int) -> list[Axis]:
    """The layer as a product of maps of one axis each."""
    for families, of_family in ((AVERAGE, _average), (ADAPTIVE, _adaptive)):
        if isinstance(layer, families):
            known = next(i for i, kind in enumerate(families, 1) if isinstance(layer, kind))
            if known != axes:
                raise NormError(f"{type(layer).__name__} takes {known} spatial axes, got {axes}")
            return of_family(layer, axes)
    if isinstance(layer, nn.Unfold):
        return _unfolded(layer, axes)
    return _upsampled(layer, axes) if isinstance(layer, UPSAMPLE) else _padded(layer, axes)


def _tuple(value: Any, axes: int, layer: nn.Module) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) == 1:
        values *= axes
    if len(values) != axes:
        raise NormError(f"{type(layer).__name__} does not take an input of {axes} spatial axes")
    return values


def _average(layer: Any, axes: int) -> list[Axis]:
    divisor = 1 if getattr(layer, "divisor_override", None) else None

    def axis(k: int, s: int, p: int) -> Axis:
        return lambda x: F.avg_pool2d(
            x, (1, k), (1, s), (0, p), layer.ceil_mode, layer.count_include_pad, divisor
        )

    sizes = [_tuple(v, axes, layer) for v in (layer.kernel_size, layer.stride, layer.padding)]
    return [axis(*each) for each in zip(*sizes, strict=True)]


def _adaptive(layer: Any, axes: int) -> list[Axis]:
    def axis(m: int | None) -> Axis:
        return lambda x: F.adaptive_avg_pool2d(x, (1, x.shape[-1] if m is None else m))

    return [axis(m) for m in _tuple(layer.output_size, axes, layer)]


def _padded(layer: Any, axes: int) -> list[Axis]:
    flat, mode = layer.padding, next(mode for kind, mode in PADDING.items() if isinstance(layer, kind))
    if len(flat) != 2 * axes:
        raise NormError(f"{type(layer).__name__} pads {len(flat) // 2} axes, got an input of {axes}")

    def axis(before: int, after: int) -> Axis:
        return lambda x: F.pad(x[:, 0], (before, after), mode)

    return [axis(flat[i], flat[i + 1]) for i in range(len(flat) - 2, -1, -2)]


def _upsampled(layer: Any, axes: int) -> list[Axis]:
    known = {1: "linear", 2: "bilinear", 3: "trilinear"}[axes]
    cubic = axes == 2 and layer.mode == "bicubic"
    if layer.mode not in ("nearest", "nearest-exact", "area", known) and not cubic:
        raise NormError(f"{type(layer).__name__} with mode={layer.mode!r} does not take {axes} spatial axes")
    sizes, factors = _tuple(layer.size, axes, layer), _tuple(layer.scale_factor, axes, layer)
    corners, recompute = layer.align_corners, layer.recompute_scale_factor
    plane = layer.mode == "bicubic" or isinstance(layer, Resize)  # torch knows these for two axes only
    mode = layer.mode if plane or layer.mode != known else "linear"

    def axis(size: int | None, factor: float | None) -> Axis:
        if not plane:
            return lambda x: F.interpolate(x[:, 0], size, factor, mode, corners, recompute)
        pair = (None if size is None else (1, size)), (None if factor is None else (1.0, factor))
        return lambda x: F.interpolate(x, *pair, mode, corners, recompute, isinstance(layer, Resize))

    return [axis(*each) for each in zip(sizes, factors, strict=True)]


def _unfolded(layer: nn.Unfold, axes: int) -> list[Axis]:
    """Of each axis, the windows one after another."""

    def axis(k: int, d: int, p: int, s: int) -> Axis:
        return lambda x: F.unfold(x, (1, k), (1, d), (0, p), (1, s))

    if axes != 2:
        raise NormError(f"Unfold takes 2 spatial axes, got {axes}")
    sizes = [_tuple(v, 2, layer) for v in (layer.kernel_size, layer.dilation, layer.padding, layer.stride)]
    return [axis(*each) for each in zip(*sizes, strict=True)]


def _folded(layer: nn.Fold, in_shape: Shape) -> list[tuple[Axis, int]]:
    """Of each axis, the adjoint of unfolding."""

    def axis(n: int, k: int, d: int, p: int, s: int) -> tuple[Axis, int]:
        windows = max(0, (n + 2 * p - d * (k - 1) - 1) // s + 1)
        return lambda x: F.fold(x.view(-1, k, windows), (1, n), (1, k), (1, d), (0, p), (1, s)), windows * k

    settings = layer.output_size, layer.kernel_size, layer.dilation, layer.padding, layer.stride
    each = list(zip(*(_tuple(v, 2, layer) for v in settings), strict=True))
    axes, entries = [axis(*sizes) for sizes in each], math.prod(k for _, k, *_ in each)
    windows = math.prod(n for _, n in axes) // entries
    if (
        len(in_shape) != 2
        or in_shape[0] < 1
        or in_shape[0] % entries
        or in_shape[1] != windows
        or not windows
    ):
        raise NormError(
            f"Fold takes a multiple of {entries} channels and {windows} windows, got an input of shape {in_shape}"
        )
    return axes
