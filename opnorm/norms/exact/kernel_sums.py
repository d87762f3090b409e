r"""Exact ℓ1 and ℓ∞ norms of weights: one pass over the kernel, whatever the image (Liang & Huang 2021, Thm 1).

With i over the output and j over the input channels of a group, and zero padding,

    ‖conv‖_1 = max_j max_R Σ_i Σ_{κ ∈ R} |K[i, j, κ]|,      ‖conv‖_∞ = max_i max_C Σ_j Σ_{κ ∈ C} |K[i, j, κ]|,

R and C being products over the axes of maximal tap sets (:mod:`opnorm.norms.exact.taps`, which also treats the other padding
modes). Liang's formulae are the special case in which the kernel fits inside the unpadded input; without that, summing
all taps over-counts. A transposed convolution is the adjoint of a convolution, so its ℓ1 is that one's ℓ∞.

The gradient is a sparse sign: it touches one channel and one tap set, and one only where several are as large.
"""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from opnorm._core.convolution import ConvGeometry
from opnorm._core.layers import Shape, check_weight
from opnorm._core.lp import lp_norm
from opnorm.errors import NormError
from opnorm.norms.exact.taps import Patterns, tap_patterns

__all__ = ["Plan", "check_axes", "conv_l2_bound", "conv_plan", "largest_sum", "linear_plan", "pq_norm"]


def conv_l2_bound(K: Tensor, out_size: Shape) -> float:
    """sqrt(h_out w_out Σ K²), a cheap upper bound of a convolution's ℓ2 norm (Liang & Huang 2021, Thm 1)."""
    return math.sqrt(math.prod(out_size)) * float(lp_norm(K.detach().double()[None], 2))


# ---------------------------------------------------------------- what depends on the sizes only


@dataclass(frozen=True, eq=False)
class Plan:
    """How the norm is computed from a kernel of one shape.

    Attributes:
        side: which channel axis of the weight is summed over: 0 for the columns, 1 for the rows.
        shape: of the weight.
        groups: number of groups.
        axes: the patterns of each spatial axis.
    """

    side: int
    shape: Shape
    groups: int
    axes: tuple[Patterns, ...]

    @functools.cached_property
    def single(self) -> bool:
        """Whether every tap is a group of its own on every axis."""
        return all(a.single for a in self.axes)


@functools.lru_cache(maxsize=4096)
def linear_plan(side: int, shape: Shape) -> Plan:
    """The plan for a matrix."""
    return Plan(side, tuple(shape), 1, ())


@functools.lru_cache(maxsize=4096)
def conv_plan(
    side: int, shape: Shape, geometry: ConvGeometry, size: Shape, outputs: Shape | None = None
) -> Plan:
    """The plan for a convolution of an input of this size; ``outputs`` where not all that fit are there."""
    check_axes(geometry, size)
    fit = geometry.out_size(size)
    axes = tuple(
        tap_patterns(k, n, s, *p, d, geometry.mode, m)[side]
        for k, n, s, p, d, m in zip(
            geometry.kernel,
            size,
            geometry.stride,
            geometry.padding,
            geometry.dilation,
            outputs or fit,
            strict=True,
        )
    )
    return Plan(side, tuple(shape), geometry.groups, axes)


def check_axes(geometry: ConvGeometry, size: Shape) -> None:
    """NormError unless the input has as many spatial axes as the kernel."""
    if len(size) != len(geometry.kernel):
        raise NormError(
            f"input_size {tuple(size)} needs one entry for each axis of the kernel {geometry.kernel}"
        )


@functools.lru_cache(maxsize=4096)
@torch.inference_mode(False)
def _counts(plan: Plan, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(patterns, tap groups) of all axes together: how often each group occurs in each pattern."""
    each = (torch.tensor(a.counts, dtype=dtype, device=device) for a in plan.axes)
    return functools.reduce(torch.kron, each, torch.ones(1, 1, dtype=dtype, device=device))


@functools.lru_cache(maxsize=4096)
@torch.inference_mode(False)
def _members(plan: Plan, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Per axis, (tap groups, taps): which taps each group adds."""
    kernel = plan.shape[2:]
    rows = [
        [[float(t in g) for t in range(n)] for g in a.groups] for a, n in zip(plan.axes, kernel, strict=True)
    ]
    return [torch.tensor(r, dtype=dtype, device=device) for r in rows]


# ---------------------------------------------------------------- the arithmetic


def largest_sum(weight: Tensor, plan: Plan) -> Tensor:
    """The norm: the largest sum over the channels and patterns of the plan; a 0-d tensor, differentiable.

    The gradient goes through the one largest sum, recomputed, so that no dense |K| is kept for it.
    """
    check_weight(weight)
    wide = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
    if not weight.numel():
        return wide.new_zeros(())
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return _sums(wide, plan).max()
    with torch.no_grad():
        index = _sums(wide.detach(), plan).argmax().view(1)  # a 0-d index would be read back by the host
    return _one_sum(wide, plan, index)


def _sums(weight: Tensor, plan: Plan) -> Tensor:
    """The ℓ1 norms of the matrix's columns or rows, each kind once: (channels, patterns)."""
    S = _add_groups(weight, plan).abs()
    S = S.flatten(2) if plan.axes else S[:, :, None]  # (a, b, tap groups)
    S = S.sum(1) if plan.side == 1 else S.unflatten(0, (plan.groups, -1)).sum(1).flatten(0, 1)
    return S @ _counts(plan, S.dtype, S.device).T


def _one_sum(weight: Tensor, plan: Plan, index: Tensor) -> Tensor:
    """Entry ``index`` (1,) of the flat :func:`_sums`."""
    patterns = math.prod(len(a.counts) for a in plan.axes)
    channel, pattern = index // patterns, index % patterns
    if plan.side == 1:
        K = weight[channel]
    else:
        by_group = weight.unflatten(0, (plan.groups, -1))
        K = by_group[channel // plan.shape[1], :, channel % plan.shape[1]]
    S = _add_groups(K, plan).abs()  # (1, channels summed over, *tap groups)
    S = S.flatten(2) if plan.axes else S[:, :, None]
    return (S.sum(1) @ _counts(plan, S.dtype, S.device)[pattern].T).sum()


def _add_groups(K: Tensor, plan: Plan) -> Tensor:
    """The taps that fall on one pixel added up: (a, b, *kernel) -> (a, b, *tap groups)."""
    if not plan.single:
        for axis, members in enumerate(_members(plan, K.dtype, K.device)):
            K = _along(K, members, axis + 2)
    return K


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply one axis by a matrix (new, old)."""
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def pq_norm(weight: Tensor, plan: Plan, r: float) -> Tensor:
    """The largest ℓr norm of a column (‖M‖_{1→r}) or row (‖M‖_{r*→∞}), for r in [1, ∞] and zero padding.

    It is max_j max_R (Σ_i Σ_{κ ∈ R} |K[i, j, κ]|^r)^{1/r}, or with i and j exchanged; a 0-d tensor.

    Raises:
        NormError: taps that meet on one pixel, whose sums a larger pattern need not dominate.
    """
    if not plan.single:
        raise NormError("taps that meet on one pixel: only the ℓ1 norm of a column or row is known")
    K = weight if weight.dtype in (torch.float32, torch.float64) else weight.float()
    if not K.numel() or not bool(K.any()):
        return K.new_zeros(())
    for axis, (a, n) in enumerate(zip(plan.axes, plan.shape[2:], strict=True)):
        used = [float(any(c[t] for c in a.counts)) for t in range(n)]
        K = K * K.new_tensor(used).view(-1, *(1,) * (len(plan.axes) - 1 - axis))
    scale = K.abs().max()
    if r == math.inf or scale == 0:
        return scale
    return _sums((K / scale).abs() ** r, plan).max() ** (1 / r) * scale
