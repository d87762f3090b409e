"""Exact ℓ1 and ℓ∞ norms of weights, with the arguments of ``torch.nn.functional``.

``weight`` is what ``conv2d``, ``conv_transpose2d`` or ``linear`` take, ``input_size`` the spatial size of the input, one
entry per axis. The others are one number or one per axis, as there; ``padding`` of a convolution may also be "same", "valid"
or a pair (before, after) per axis, and its ``padding_mode`` "zeros", "circular", "reflect" or "replicate". Float32 serves
for weights of less precision. All are differentiable.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from opnorm._core.argument_checks import as_shape, check_tensor
from opnorm._core.convolution import ConvGeometry, same_padding, transposed_size
from opnorm._core.layers import Shape
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_count
from opnorm.errors import NormError
from opnorm.norms.exact.kernel_sums import check_axes, conv_plan, largest_sum, linear_plan

__all__ = [
    "conv_l1",
    "conv_linf",
    "conv_transpose_l1",
    "conv_transpose_linf",
    "linear_l1",
    "linear_linf",
]

Size = int | Sequence[int]
Padding = int | str | Sequence[int | tuple[int, int]]


@in_default_modes
def conv_l1(
    weight: Float[Tensor, "c_out c_in_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
) -> Float[Tensor, ""]:
    """Exact ℓ1→ℓ1 norm of a convolution, in 1, 2 or 3 dimensions.

    Returns:
        max_j max_h Σ_i Σ_o |Σ_{κ: (o,κ) reads h} K[i, j, κ]|: the largest ℓ1 norm of a column of the explicit matrix.

    Raises:
        NormError: empty output, sizes that do not fit the kernel, padding that the mode does not allow.

    Source: Liang & Huang 2021, Theorem 1, Eq. (1), without its Assumption 1.
    """
    geometry = _geometry(weight, stride, padding, dilation, groups, padding_mode)
    return largest_sum(weight, conv_plan(0, weight.shape, geometry, _size(input_size)))


@in_default_modes
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
    geometry = _geometry(weight, stride, padding, dilation, groups, padding_mode)
    return largest_sum(weight, conv_plan(1, weight.shape, geometry, _size(input_size)))


@in_default_modes
def conv_transpose_l1(
    weight: Float[Tensor, "c_in c_out_per_group *kernel"],
    input_size: Sequence[int],
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Float[Tensor, ""]:
    """Exact ℓ1→ℓ1 norm of a transposed convolution, in 1, 2 or 3 dimensions.

    It is the adjoint of the convolution with the same kernel from its output size to its input size, so this is that
    convolution's ℓ∞ norm.

    Returns:
        max_i max_C Σ_j Σ_{κ ∈ C} |K[i, j, κ]|, i over the input channels.

    Raises:
        NormError: empty output, or sizes that do not fit the kernel.

    Source: Liang & Huang 2021, Theorem 1, Eq. (2), applied to the adjoint.
    """
    return _transposed(1, weight, input_size, stride, padding, output_padding, groups, dilation)


@in_default_modes
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
    return _transposed(0, weight, input_size, stride, padding, output_padding, groups, dilation)


@in_default_modes
def linear_l1(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ1 norm of a matrix, its largest column sum max_j Σ_i |W[i, j]|."""
    return _largest_sum_of_matrix(weight, 0)


@in_default_modes
def linear_linf(weight: Float[Tensor, "out in"]) -> Float[Tensor, ""]:
    """Exact ℓ∞ norm of a matrix, its largest row sum max_i Σ_j |W[i, j]|."""
    return _largest_sum_of_matrix(weight, 1)


def _largest_sum_of_matrix(weight: Tensor, side: int) -> Tensor:
    check_tensor("weight", weight, "a matrix (out, in)", NormError)
    if weight.ndim != 2:
        raise NormError(f"a weight of shape {tuple(weight.shape)}; expected a matrix (out, in)")
    return largest_sum(weight, linear_plan(side, weight.shape))


# ---------------------------------------------------------------- arguments


def _size(input_size: object) -> Shape:
    return as_shape(input_size, "input_size", "the spatial size of the input, such as (32, 32)")


def _transposed(
    side: int,
    weight: Tensor,
    input_size: Sequence[int],
    stride: Size,
    padding: Size,
    output_padding: Size,
    groups: int,
    dilation: Size,
) -> Tensor:
    """The norm of the convolution whose adjoint this is, from its output size ``input_size`` to its input."""
    if isinstance(padding, str):
        raise NormError(f"padding={padding!r}: a transposed convolution takes numbers")
    geometry, size = _geometry(weight, stride, padding, dilation, groups), _size(input_size)
    check_axes(geometry, size)
    extra = _per_axis(output_padding, len(size), "output_padding", 0)
    inner_size = transposed_size(geometry, size, extra)
    return largest_sum(weight, conv_plan(side, weight.shape, geometry, inner_size, outputs=size))


def _geometry(
    weight: Tensor, stride: Size, padding: Padding, dilation: Size, groups: int, mode: str = "zeros"
) -> ConvGeometry:
    check_tensor("weight", weight, "a kernel (C_out, C_in / groups, *kernel)", NormError)
    check_count("groups", groups, error=NormError)
    shape, kernel = tuple(weight.shape), tuple(weight.shape[2:])
    if not kernel or shape[0] % groups:
        raise NormError(
            f"a kernel of shape {shape} with groups={groups} is not a convolution; "
            "expected (C_out, C_in / groups, *kernel) with C_out a multiple of groups"
        )
    axes = len(kernel)
    steps = _per_axis(stride, axes, "stride", 1)
    spacing = _per_axis(dilation, axes, "dilation", 1)
    if padding == "same":
        if any(s != 1 for s in steps):
            raise NormError(f"padding='same' with stride={stride!r}: torch knows it for stride 1 only")
        return ConvGeometry(kernel, steps, same_padding(kernel, spacing), spacing, groups, mode)
    pads = 0 if padding == "valid" else padding
    if isinstance(pads, tuple | list) and any(isinstance(p, tuple | list) for p in pads):
        pairs = [tuple(p) if isinstance(p, tuple | list) else (p, p) for p in pads]
        if any(len(p) != 2 for p in pairs):
            raise NormError(f"padding={padding!r}: expected a number or a pair for each of {axes} axes")
        before, after = (_per_axis([p[side] for p in pairs], axes, "padding", 0) for side in (0, 1))
    else:
        before = after = _per_axis(pads, axes, "padding", 0)
    return ConvGeometry(kernel, steps, tuple(zip(before, after, strict=True)), spacing, groups, mode)


def _per_axis(value: object, axes: int, name: str, lowest: int) -> Shape:
    values = tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) == 1:
        values *= axes
    if len(values) != axes or any(not isinstance(v, int) or v < lowest for v in values):
        raise NormError(
            f"{name}={value!r}: expected a whole number of at least {lowest}, or one for each of {axes} axes"
        )
    return values
