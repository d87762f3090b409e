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
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opnorm._core.convolution import ConvGeometry, same_padding, transposed_size
from opnorm._core.layers import Shape, check_weight
from opnorm.errors import NormError
from opnorm.norms.exact import native
from opnorm.norms.exact.taps import Patterns, tap_patterns

__all__ = [
    "Plan",
    "conv_l1",
    "conv_l2_bound",
    "conv_linf",
    "conv_plan",
    "conv_transpose_l1",
    "conv_transpose_linf",
    "largest",
    "largest_of_all",
    "linear_l1",
    "linear_linf",
    "linear_plan",
    "pq_norm",
]

Size = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]


def conv_l1(
    weight: Float[Tensor, "c_out c_in_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Tensor, ""]:
    """Exact ℓ1→ℓ1 norm of a convolution, in 1, 2 or 3 dimensions; differentiable.

    Args:
        weight: kernel (C_out, C_in / groups, *kernel).
        input_size: spatial size of the input, one entry per axis.
        stride: as in ``torch.nn.functional.conv2d``; one number or one per axis.
        padding: on both sides, or a pair (before, after) per axis, or "same" or "valid".
        dilation: spacing of the taps.
        groups: number of groups.
        padding_mode: "zeros", "circular", "reflect" or "replicate".

    Returns:
        max_j max_h Σ_i Σ_o |Σ_{κ: (o,κ) reads h} K[i, j, κ]|: the largest ℓ1 norm of a column of the explicit matrix. In
        float32 for weights of less precision.

    Raises:
        NormError: empty output, sizes that do not fit the kernel, padding that the mode does not allow.

    Source: Liang & Huang 2021, Theorem 1, Eq. (1), without its Assumption 1.
    """
    plan = _cached(_conv_plan, 0, weight.shape, input_size, stride, padding, dilation, groups, padding_mode)
    return largest(weight, plan)


def conv_linf(
    weight: Float[Tensor, "c_out c_in_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Tensor, ""]:
    """Exact ℓ∞→ℓ∞ norm of a convolution; arguments and errors as :func:`conv_l1`.

    Returns:
        max_i max_o Σ_j Σ_h |Σ_{κ: (o,κ) reads h} K[i, j, κ]|: the largest ℓ1 norm of a row of the explicit matrix.

    Source: Liang & Huang 2021, Theorem 1, Eq. (2), without its Assumption 1.
    """
    plan = _cached(_conv_plan, 1, weight.shape, input_size, stride, padding, dilation, groups, padding_mode)
    return largest(weight, plan)


def conv_transpose_l1(
    weight: Float[Tensor, "c_in c_out_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Float[Tensor, ""]:
    """Exact ℓ1→ℓ1 norm of a transposed convolution, in 1, 2 or 3 dimensions; differentiable.

    It is the adjoint of the convolution with the same kernel from its output size to its input size, so this is that
    convolution's ℓ∞ norm.

    Args:
        weight: kernel (C_in, C_out / groups, *kernel).
        input_size: spatial size of the input, one entry per axis.
        stride: as in ``torch.nn.functional.conv_transpose2d``, and the others too; one number or one per axis.
        padding: how much is cut off on both sides.
        output_padding: how much is added after; below the stride or the dilation.
        groups: number of groups.
        dilation: spacing of the taps.

    Returns:
        max_i max_C Σ_j Σ_{κ ∈ C} |K[i, j, κ]|, i over the input channels.

    Raises:
        NormError: empty output, or sizes that do not fit the kernel.

    Source: Liang & Huang 2021, Theorem 1, Eq. (2), applied to the adjoint.
    """
    sizes = (input_size, stride, padding, output_padding, dilation, groups)
    return largest(weight, _cached(_transpose_plan, 1, weight.shape, *sizes))


def conv_transpose_linf(
    weight: Float[Tensor, "c_in c_out_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Float[Tensor, ""]:
    """Exact ℓ∞→ℓ∞ norm of a transposed convolution; arguments and errors as :func:`conv_transpose_l1`.

    Returns:
        max_j max_R Σ_i Σ_{κ ∈ R} |K[i, j, κ]|, j over the output channels of a group: the convolution's ℓ1 norm.

    Source: Liang & Huang 2021, Theorem 1, Eq. (1), applied to the adjoint.
    """
    sizes = (input_size, stride, padding, output_padding, dilation, groups)
    return largest(weight, _cached(_transpose_plan, 0, weight.shape, *sizes))


def linear_l1(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ1 norm of a matrix, its largest column sum max_j Σ_i |W[i, j]|; differentiable."""
    return largest(weight, linear_plan(0, weight.shape))


def linear_linf(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ∞ norm of a matrix, its largest row sum max_i Σ_j |W[i, j]|; differentiable."""
    return largest(weight, linear_plan(1, weight.shape))


def conv_l2_bound(K: Tensor, out_size: Shape) -> float:
    """sqrt(h_out w_out Σ K²), a cheap upper bound of a convolution's ℓ2 norm (Liang & Huang 2021, Thm 1)."""
    return math.sqrt(math.prod(out_size)) * float(torch.linalg.vector_norm(K.detach().double()))


# ---------------------------------------------------------------- the plan: all that sizes decide


class Plan:
    """How to read a norm off a kernel of one shape: everything that does not depend on its numbers.

    Attributes:
        side: which channel axis of the weight is summed over: 0 for the columns, 1 for the rows.
        groups: number of groups.
        shape: of the weight.
        channels: how many channels the maximum runs over.
        patterns: how many combinations of patterns of all axes it runs over.
        taps: how many combinations of tap groups there are.
        whole: whether there is one pattern only, which has every tap once.
        single: whether every tap is a group of its own on every axis.
        axes: the patterns of each axis.
        inner: the axes of the weight after the first.
        fusable: whether the native code knows such plans.
        address: of the native code's copy of all this.
    """

    LARGEST_TABLE = 2**16

    def __init__(self, side: int, shape: Shape, groups: int, axes: tuple[Patterns, ...]) -> None:
        self.side, self.shape, self.groups, self.axes = side, shape, groups, axes
        self.channels = shape[0] if side == 1 else groups * shape[1]
        self.patterns = math.prod(len(a.counts) for a in axes)
        self.taps = math.prod(len(a.groups) for a in axes)
        self.single = all(a.single for a in axes)
        self.whole = self.single and all(a.counts == ((1,) * len(a.groups),) for a in axes)
        self.inner = tuple(range(1, len(shape)))
        self.fusable = (
            self.single and self.patterns * self.taps <= self.LARGEST_TABLE and math.prod(shape) > 0
        )
        self.address: int | None = None  # of the native code's copy
        self._kept: dict[Any, Any] = {}

    def keep(self, key: Any, make: Callable[[], Any]) -> Any:
        """What ``make`` gave when this key was first asked for."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def counts(self, like: Tensor) -> list[Tensor]:
        """Per axis, (patterns, tap groups): how often each group occurs in each pattern."""
        made = lambda: [torch.tensor(a.counts, dtype=like.dtype, device=like.device) for a in self.axes]  # noqa: E731
        return self.keep(("counts", like.dtype, like.device), made)

    def table(self, like: Tensor) -> Tensor | None:
        """The counts of all axes multiplied out, (tap groups, patterns); None where that would be large."""
        if self.patterns * self.taps > self.LARGEST_TABLE:
            return None
        made = lambda: functools.reduce(torch.kron, self.counts(like)).T.contiguous()  # noqa: E731
        return self.keep(("table", like.dtype, like.device), made)

    def members(self, like: Tensor) -> list[Tensor | None]:
        """Per axis, (tap groups, taps): which taps each group adds; None where each is a group of its own."""

        def made() -> list[Tensor | None]:
            return [
                None
                if a.single
                else torch.tensor(
                    [[float(t in g) for t in range(n)] for g in a.groups],
                    dtype=like.dtype,
                    device=like.device,
                )
                for a, n in zip(self.axes, self.shape[2:], strict=True)
            ]

        return self.keep(("members", like.dtype, like.device), made)


def _cached(make: Callable[..., Plan], *arguments: Any) -> Plan:
    """The plan for these arguments, with lists for tuples where need be."""
    try:
        return make(*arguments)
    except TypeError:
        return make(*(_frozen(a) for a in arguments))


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, (list, tuple)) else value


@functools.lru_cache(maxsize=4096)
def linear_plan(side: int, shape: Shape) -> Plan:
    """The plan for a matrix."""
    return Plan(side, tuple(shape), 1, ())


@functools.lru_cache(maxsize=4096)
def _conv_plan(
    side: int,
    shape: Shape,
    input_size: Shape,
    stride: object,
    padding: object,
    dilation: object,
    groups: int,
    mode: str,
) -> Plan:
    geometry = _geometry(shape, stride, padding, dilation, groups, mode)
    return conv_plan(side, shape, geometry, input_size)


@functools.lru_cache(maxsize=4096)
def _transpose_plan(
    side: int,
    shape: Shape,
    input_size: Shape,
    stride: object,
    padding: object,
    output_padding: object,
    dilation: object,
    groups: int,
) -> Plan:
    if isinstance(padding, str):
        raise NormError(f"padding={padding!r}: a transposed convolution takes numbers")
    geometry = _geometry(shape, stride, padding, dilation, groups, "zeros")
    extra = _per_axis(output_padding, len(geometry.kernel), "output_padding", 0)
    _check_axes(geometry, input_size)
    size = transposed_size(geometry, input_size, extra)
    return conv_plan(side, shape, geometry, size, outputs=input_size)


@functools.lru_cache(maxsize=4096)
def conv_plan(
    side: int, shape: Shape, geometry: ConvGeometry, size: Shape, outputs: Shape | None = None
) -> Plan:
    """The plan for a convolution of an input of this size; ``outputs`` where not all that fit are there."""
    _check_axes(geometry, size)
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


def _check_axes(geometry: ConvGeometry, size: Shape) -> None:
    if len(size) != len(geometry.kernel):
        raise NormError(
            f"input_size {tuple(size)} needs one entry for each axis of the kernel {geometry.kernel}"
        )


def _geometry(
    shape: Shape, stride: object, padding: object, dilation: object, groups: int, mode: str
) -> ConvGeometry:
    kernel = tuple(shape[2:])
    if not kernel or groups < 1 or shape[0] % groups:
        raise NormError(
            f"a kernel of shape {tuple(shape)} with groups={groups} is not a convolution; "
            "expected (C_out, C_in / groups, *kernel) with C_out a multiple of groups"
        )
    axes = len(kernel)
    steps = _per_axis(stride, axes, "stride", 1)
    spacing = _per_axis(dilation, axes, "dilation", 1)
    if padding == "same":
        if any(s != 1 for s in steps):
            raise NormError(f"padding='same' with stride={stride!r}: torch knows it for stride 1 only")
        pads = same_padding(kernel, spacing)
    else:
        each = _per_axis(0 if padding == "valid" else padding, axes, "padding", 0)
        pads = tuple(p if isinstance(p, tuple) else (p, p) for p in each)
    return ConvGeometry(kernel, steps, pads, spacing, groups, mode)


def _per_axis(value: object, axes: int, name: str, lowest: int) -> tuple:
    values = (
        (value,) * axes
        if isinstance(value, int)
        else tuple(value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else ()
    )
    if len(values) == 1:
        values *= axes
    flat = [
        v for item in values for v in (item if isinstance(item, tuple) and name == "padding" else (item,))
    ]
    pairs = all(not isinstance(item, tuple) or len(item) == 2 for item in values)
    if len(values) != axes or not pairs or any(not isinstance(v, int) or v < lowest for v in flat):
        raise NormError(
            f"{name}={value!r}: expected a whole number of at least {lowest}, or one for each of {axes} axes"
        )
    return values


# ---------------------------------------------------------------- the arithmetic


def largest(weight: Tensor, plan: Plan) -> Tensor:
    """Max over channels and patterns of the plan; a 0-d tensor, differentiable."""
    if native.usable(weight, plan):
        if weight.requires_grad and torch.is_grad_enabled():
            return _Largest.apply(weight, plan)[0]
        return native.largest(weight, plan)[0]
    check_weight(weight)
    if weight.requires_grad and torch.is_grad_enabled():
        return _Largest.apply(weight, plan)[0]
    return _sums(weight, plan).max() if weight.numel() else _wide(weight).new_zeros(())


def largest_of_all(weights: Sequence[Tensor], plans: Sequence[Plan]) -> Tensor | list[Tensor]:
    """:func:`largest` of many: one tensor (N,), in one call, where the native code is built; else a list."""
    dtype = weights[0].dtype
    if not all(w.dtype == dtype and native.usable(w, p) for w, p in zip(weights, plans, strict=True)):
        return [largest(w, p) for w, p in zip(weights, plans, strict=True)]
    if torch.is_grad_enabled() and any(w.requires_grad for w in weights):
        values: Tensor = _LargestOfAll.apply(tuple(plans), *weights)
        return values
    return native.largest_of_all(weights, plans)[0]


def _wide(weight: Tensor) -> Tensor:
    return weight if weight.dtype in (torch.float32, torch.float64) else weight.float()


def _sums(weight: Tensor, plan: Plan) -> Tensor:
    """The ℓ1 norms of the matrix's columns or rows, each kind once: (channels, patterns), or (channels, 1, ...)."""
    weight = _wide(weight)
    if not plan.single:
        for axis, members in enumerate(plan.members(weight)):
            if members is not None:
                weight = _along(weight, members, axis + 2)
    S = weight.abs()
    if plan.side == 1:
        if plan.whole:
            return S.sum(plan.inner, keepdim=True)
        S = S.flatten(2).sum(1)
    else:
        S = S.sum(0) if plan.groups == 1 else S.unflatten(0, (plan.groups, -1)).sum(1)
        S = S.reshape(plan.channels, plan.taps)
        if plan.whole:
            return S.sum(1, keepdim=True) if plan.axes else S
    table = plan.table(S)
    if table is not None:
        return S @ table
    S = S.unflatten(1, [len(a.groups) for a in plan.axes])
    for axis, counts in enumerate(plan.counts(S)):
        S = _along(S, counts, axis + 1)
    return S.flatten(1)


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Multiply one axis by a matrix (new, old)."""
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis)


def pq_norm(weight: Tensor, plan: Plan, r: float) -> Tensor:
    """The largest ℓr norm of a column or row, for r in [1, ∞], where every entry of them is one weight.

    Args:
        weight: the kernel.
        plan: of the columns (‖M‖_{1→r}) or of the rows (‖M‖_{r*→∞}); zero padding.
        r: the exponent.

    Returns:
        max_j max_R (Σ_i Σ_{κ ∈ R} |K[i, j, κ]|^r)^{1/r}, or with i and j exchanged; a 0-d tensor.

    Raises:
        NormError: taps that meet on one pixel, whose sums a larger pattern need not dominate.
    """
    if not plan.single:
        raise NormError("taps that meet on one pixel: only the ℓ1 norm of a column or row is known")
    K = _wide(weight)
    if not K.numel() or not bool(K.any()):
        return K.new_zeros(())
    for axis, (a, n) in enumerate(zip(plan.axes, plan.shape[2:], strict=True)):
        used = [float(any(c[t] for c in a.counts)) for t in range(n)]
        K = K * K.new_tensor(used).view(-1, *(1,) * (len(plan.axes) - 1 - axis))
    scale = K.abs().max()
    if r == math.inf or scale == 0:
        return scale
    return _sums((K / scale).abs() ** r, plan).max() ** (1 / r) * scale


class _Largest(torch.autograd.Function):
    """max(_sums): its derivative touches the largest channel and pattern only, so no dense |K| is kept for it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, plan: Plan) -> tuple[Tensor, Tensor]:
        if native.usable(weight, plan):
            value, index = native.largest(weight, plan)
            return value, torch.tensor(index)
        if not weight.numel():
            return _wide(weight).new_zeros(()), torch.zeros((), dtype=torch.long, device=weight.device)
        found = _sums(weight, plan).flatten().max(dim=0)
        return found.values, found.indices

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        weight, ctx.plan = inputs
        ctx.save_for_backward(weight, output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        weight, index = ctx.saved_tensors
        if not torch.is_grad_enabled() and native.usable(weight, ctx.plan):
            return native.signs(weight, ctx.plan, int(index), float(grads[0])), None
        return _sign_gradient(weight, index, grads[0], ctx.plan), None


class _LargestOfAll(torch.autograd.Function):
    """The same for many weights at once, by the native code."""

    @staticmethod
    def forward(ctx: Any, plans: tuple[Plan, ...], *weights: Tensor) -> Tensor:
        values, ctx.at = native.largest_of_all(weights, plans)
        ctx.plans = plans
        ctx.save_for_backward(*weights)
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            parts = zip(weights, ctx.at, grads[0], ctx.plans, needed, strict=True)
            return None, *(
                _sign_gradient(w, torch.tensor(i), g, plan) if need else None for w, i, g, plan, need in parts
            )
        numbers = zip(weights, ctx.plans, ctx.at, grads[0].tolist(), needed, strict=True)
        return None, *(native.signs(w, plan, i, g) if need else None for w, plan, i, g, need in numbers)


def _sign_gradient(weight: Tensor, index: Tensor, grad: Tensor, plan: Plan) -> Tensor:
    """``grad`` times the signs of the taps behind entry ``index`` of the flat :func:`_sums`; zero elsewhere."""
    out = torch.zeros_like(weight)
    if not weight.numel():
        return out
    index = index.view(1)  # tensors of one axis as indices: a 0-d one is read back by the host
    channel, pattern = index // plan.patterns, index % plan.patterns
    if plan.side == 1:
        where: tuple[Tensor, ...] = (channel,)
    else:
        per_group = plan.shape[0] // plan.groups
        group, j = channel // plan.shape[1], channel % plan.shape[1]
        where = (group * per_group + torch.arange(per_group, device=weight.device), j)
    x = _wide(weight[where])
    x = x.view(-1, *x.shape[plan.side + 1 :])  # (channels summed over, *kernel)
    members: Sequence[Tensor | None] = () if plan.single else plan.members(x)
    for axis, m in enumerate(members):
        x = x if m is None else _along(x, m, axis + 1)
    x = x.sign()
    if not plan.whole:
        rows = []
        for counts in reversed(plan.counts(x)):
            rows.append(counts[pattern % len(counts)])
            pattern = pattern // len(counts)
        for axis, row in enumerate(reversed(rows)):
            x = x * row.view(-1, *(1,) * (len(rows) - 1 - axis))
    for axis, m in enumerate(members):
        x = x if m is None else _along(x, m.T, axis + 1)
    value = (grad * x).to(out.dtype)
    return out.index_put_(where, value[None] if plan.side == 1 else value)
