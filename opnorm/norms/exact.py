r"""Exact ℓ1 and ℓ∞ operator norms in one pass over the weights (Liang & Huang 2021, Thm 1, without its assumption).

For a convolution, only which taps of the kernel can act together matters. On one axis with input size n, output
size m, stride s, dilation d and p zeros before the input, the taps that touch input position h, and the taps that
output position o really reads, are

    R_h = {κ : h + p - κ d = o s for some 0 ≤ o < m},     C_o = {κ : 0 ≤ o s + κ d - p < n}.

Then, with i over output and j over input channels of a group,

    ‖conv‖_1 = max_j max_{R ∈ ∏ axes {R_h}} Σ_i Σ_{κ ∈ R} |K[i, j, κ]|
    ‖conv‖_∞ = max_i max_{C ∈ ∏ axes {C_o}} Σ_j Σ_{κ ∈ C} |K[i, j, κ]|

and only the inclusion-maximal sets need a look: about s of them per axis. Liang's formulae are the special case in
which the kernel fits inside the unpadded input; without that, summing all taps over-counts.
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from opnorm.errors import NormError
from opnorm.linear import ConvGeometry, Shape, conv_geometry

__all__ = ["conv_l1", "conv_linf", "l1", "linear_l1", "linear_linf", "linf", "tap_sets"]

Masks = tuple[tuple[float, ...], ...]


@functools.cache
def tap_sets(
    kernel: int, size: int, stride: int, before: int, after: int, dilation: int
) -> tuple[Masks, Masks]:
    """The maximal sets R (taps that share an input position) and C (taps that share an output position) of one axis.

    Returns:
        Two lists of 0/1 rows of length ``kernel``; no row of a list is covered by another one.

    Raises:
        NormError: the output would be empty.
    """
    (m,) = ConvGeometry((kernel,), (stride,), ((before, after),), (dilation,), 1).out_size((size,))
    taps = torch.arange(kernel) * dilation
    reach = torch.arange(size)[:, None] + before - taps  # = o * stride, where a tap of o touches h
    touches = (reach % stride == 0) & (reach >= 0) & (reach <= (m - 1) * stride)
    place = torch.arange(m)[:, None] * stride + taps - before
    return _maximal(touches), _maximal((place >= 0) & (place < size))


def _maximal(rows: Tensor) -> Masks:
    """The distinct rows that no other row covers."""
    distinct = {tuple(r) for r in rows.unique(dim=0).tolist()}
    sets = [frozenset(i for i, x in enumerate(r) if x) for r in distinct]
    kept = sorted(sorted(s) for s in sets if not any(s < other for other in sets))
    return tuple(tuple(float(i in s) for i in range(rows.shape[1])) for s in kept)


def conv_l1(
    weight: Float[Tensor, "c_out c_in_per_group *kernel"],
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, ""]:
    """Exact ℓ1→ℓ1 norm of a zero-padded convolution, in 1, 2 or 3 dimensions; differentiable.

    Args:
        weight: kernel (C_out, C_in / groups, *kernel).
        input_size: spatial size of the input, one entry per axis.
        stride: as in ``torch.nn.functional.conv2d``; one number or one per axis.
        padding: zeros on both sides, or a pair (before, after) per axis.
        dilation: spacing of the taps.
        groups: number of groups.

    Returns:
        max_j max_R Σ_i Σ_{κ∈R} |K[i, j, κ]|: the largest ℓ1 norm of a column of the explicit matrix.

    Raises:
        NormError: empty output, or sizes that do not fit the kernel.

    Source: Liang & Huang 2021, Theorem 1, Eq. (1), without its Assumption 1.
    """
    geometry = _geometry(weight, stride, padding, dilation, groups)
    per_input = weight.abs().unflatten(0, (groups, -1)).sum(1).flatten(0, 1)
    return _largest(per_input, geometry, input_size, side=0)


def conv_linf(
    weight: Float[Tensor, "c_out c_in_per_group *kernel"],
    input_size: Sequence[int],
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int | tuple[int, int]] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Float[Tensor, ""]:
    """Exact ℓ∞→ℓ∞ norm of a zero-padded convolution; arguments and errors as :func:`conv_l1`.

    Returns:
        max_i max_C Σ_j Σ_{κ∈C} |K[i, j, κ]|: the largest ℓ1 norm of a row of the explicit matrix.

    Source: Liang & Huang 2021, Theorem 1, Eq. (2), without its Assumption 1.
    """
    geometry = _geometry(weight, stride, padding, dilation, groups)
    return _largest(weight.abs().sum(1), geometry, input_size, side=1)


def _largest(S: Tensor, geometry: ConvGeometry, input_size: Sequence[int], side: int) -> Tensor:
    """Max over channels and maximal tap sets of the sum of S (channels, *kernel) over the set."""
    if len(input_size) != len(geometry.kernel):
        raise NormError(
            f"input_size {tuple(input_size)} needs one entry for each axis of the kernel {geometry.kernel}"
        )
    for axis, n in enumerate(input_size):
        sets = tap_sets(
            geometry.kernel[axis],
            int(n),
            geometry.stride[axis],
            *geometry.padding[axis],
            geometry.dilation[axis],
        )[side]
        if len(sets) == 1 and all(sets[0]):  # all taps act together: stride 1 and a kernel that fits
            S = S.sum(1, keepdim=True).movedim(1, -1)
        else:
            S = torch.tensordot(S, S.new_tensor(sets), dims=([1], [1]))
    # max over one flat axis, not amax: one sparse sub-gradient, not an average over ties
    return S.flatten().max(dim=0).values


def _geometry(weight: Tensor, stride: object, padding: object, dilation: object, groups: int) -> ConvGeometry:
    kernel = tuple(weight.shape[2:])
    if not kernel or groups < 1 or weight.shape[0] % groups:
        raise NormError(
            f"a kernel of shape {tuple(weight.shape)} with groups={groups} is not a convolution; "
            "expected (C_out, C_in / groups, *kernel) with C_out a multiple of groups"
        )
    pads = tuple(p if isinstance(p, tuple) else (p, p) for p in _per_axis(padding, len(kernel), "padding"))
    return ConvGeometry(
        kernel,
        _per_axis(stride, len(kernel), "stride"),
        pads,
        _per_axis(dilation, len(kernel), "dilation"),
        groups,
    )


def _per_axis(value: object, axes: int, name: str) -> tuple:
    values = (
        (value,) * axes if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
    )
    lowest = 0 if name == "padding" else 1
    flat = [v for item in values for v in (item if isinstance(item, tuple) else (item,))]
    if len(values) != axes or any(not isinstance(v, int) or v < lowest for v in flat):
        raise NormError(
            f"{name}={value!r}: expected a whole number of at least {lowest}, or one for each of {axes} axes"
        )
    return values


def linear_l1(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ1 norm of a matrix, its largest column sum max_j Σ_i |W[i, j]|; differentiable."""
    return weight.abs().sum(0).max(dim=0).values


def linear_linf(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ∞ norm of a matrix, its largest row sum max_i Σ_j |W[i, j]|; differentiable."""
    return weight.abs().sum(1).max(dim=0).values


# ---------------------------------------------------------------- by layer


@functools.singledispatch
def l1(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ1 operator norm of a layer, differentiable in its weights.

    Args:
        layer: Linear, Conv1d, Conv2d or Conv3d with zero padding, BatchNorm in eval mode; others join by
            ``@l1.register(MyLayer)``.
        in_shape: shape of one input, without the batch axis.

    Raises:
        NormError: no exact norm is known for this layer.
    """
    raise NormError(f"no exact norm is known for {type(layer).__name__}")


@functools.singledispatch
def linf(layer: nn.Module, in_shape: Shape) -> Tensor:
    """Exact ℓ∞ operator norm of a layer; arguments and errors as :func:`l1`."""
    raise NormError(f"no exact norm is known for {type(layer).__name__}")


@l1.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> Tensor:
    return linear_l1(layer.weight)


@linf.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> Tensor:
    return linear_linf(layer.weight)


def _conv_arguments(layer: nn.modules.conv._ConvNd, in_shape: Shape) -> tuple:
    geometry = conv_geometry(layer)
    if len(in_shape) != len(geometry.kernel) + 1 or in_shape[0] != layer.in_channels:
        raise NormError(
            f"{type(layer).__name__} takes {layer.in_channels} channels and {len(geometry.kernel)} spatial axes, "
            f"got an input of shape {in_shape}"
        )
    return (in_shape[1:], geometry.stride, geometry.padding, geometry.dilation, geometry.groups)


@l1.register(nn.Conv1d)
@l1.register(nn.Conv2d)
@l1.register(nn.Conv3d)
def _(layer: nn.Conv2d, in_shape: Shape) -> Tensor:
    return conv_l1(layer.weight, *_conv_arguments(layer, in_shape))


@linf.register(nn.Conv1d)
@linf.register(nn.Conv2d)
@linf.register(nn.Conv3d)
def _(layer: nn.Conv2d, in_shape: Shape) -> Tensor:
    return conv_linf(layer.weight, *_conv_arguments(layer, in_shape))


def batch_norm_gain(layer: nn.modules.batchnorm._BatchNorm) -> Tensor:
    """max_c |γ_c| / sqrt(running_var_c + eps): every (p, p) norm of BatchNorm in eval mode, a diagonal map.

    Raises:
        NormError: it keeps no running statistics, so that it is not linear even in eval mode.
    """
    if layer.running_var is None:
        raise NormError(f"{type(layer).__name__} keeps no running statistics, so it is not linear")
    scale = (layer.running_var.to(torch.float64) + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale.to(layer.weight.dtype) * layer.weight
    return scale.abs().max()


for _norm in (l1, linf):
    for _kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
        _norm.register(_kind)(lambda layer, in_shape: batch_norm_gain(layer))


def conv_l2_bound(K: Tensor, out_size: Shape) -> float:
    """sqrt(h_out w_out Σ K²), a cheap upper bound of a convolution's ℓ2 norm (Liang & Huang 2021, Thm 1)."""
    return math.sqrt(math.prod(out_size)) * float(torch.linalg.vector_norm(K.double()))
