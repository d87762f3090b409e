"""Linear maps: a layer without its bias, ``x -> layer(x) - layer(0)``, with its adjoint and, for small ones, its matrix.

New layer types join by ``@linear_map.register(MyLayer)``; a layer without an entry that turns out to be affine goes
through autograd, slower and just as right.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn import grad as conv_grad

from opnorm._core.argument_checks import by_layer_type, check_tensor, named
from opnorm._core.convolution import ConvGeometry, conv_geometry, padding_maps, transpose_geometry
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import (
    CONV,
    LINEAR,
    TRANSPOSED,
    ConvLayer,
    ConvTransposeLayer,
    Shape,
    check_channels,
    check_features,
    check_lazy,
    check_weight,
    in_float64,
    overrides,
    unwrap,
)
from opnorm.errors import NormError

__all__ = ["MATRIX", "LinearMap", "check_map", "convolution_map", "linear_map", "through_autograd"]


class LinearMap:
    """A linear map A between tensors of fixed shapes, or one map A_b for each row b of a batch.

    ``A @ v`` maps (B, *in_shape) to (B, *out_shape); ``A.T`` is the adjoint map, with <A v, u> = <v, A.T u>. A subclass
    may define ``_apply`` and ``_adjoint`` instead of passing functions.

    Attributes:
        in_shape: of one input, without the batch axis.
        out_shape: of one output.
        device: of its vectors.
        dtype: of its vectors.
        batch: how many maps there are; None for one map that is applied to every row.

    Example:
        >>> A = linear_map(torch.nn.Linear(3, 2), (3,))
        >>> (A @ torch.zeros(5, 3, dtype=torch.float64)).shape, (A.T @ torch.zeros(5, 2, dtype=torch.float64)).shape
        (torch.Size([5, 2]), torch.Size([5, 3]))
    """

    def __init__(
        self,
        apply: Callable[[Tensor], Tensor] | None,
        adjoint: Callable[[Tensor], Tensor] | None,
        in_shape: Sequence[int],
        out_shape: Sequence[int],
        device: torch.device | str = "cpu",
        *,
        dtype: torch.dtype = torch.float64,
        batch: int | None = None,
    ) -> None:
        self._functions = apply, adjoint
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.device, self.dtype, self.batch = torch.device(device), dtype, batch

    def _apply(self, v: Tensor) -> Tensor:
        assert self._functions[0] is not None, "a subclass without functions defines _apply"
        return self._functions[0](v)

    def _adjoint(self, u: Tensor) -> Tensor:
        assert self._functions[1] is not None, "a subclass without functions defines _adjoint"
        return self._functions[1](u)

    def __matmul__(self, v: Tensor) -> Tensor:
        check_tensor("vectors", v, f"(B, *{self.in_shape})", NormError)
        rows = v.shape[0] if v.ndim else 0
        if v.shape[1:] != self.in_shape or (self.batch is not None and rows != self.batch):
            raise NormError(
                f"vectors of shape {tuple(v.shape)}; expected {(self.batch or rows, *self.in_shape)}"
            )
        if v.dtype != self.dtype:
            raise NormError(f"vectors are {v.dtype}; expected {self.dtype}, that of the map")
        return self._apply(v)

    @property
    def T(self) -> "LinearMap":  # noqa: N802 - as of a matrix
        """The adjoint map."""
        options: dict[str, Any] = {"dtype": self.dtype, "batch": self.batch}
        return LinearMap(self._adjoint, self._apply, self.out_shape, self.in_shape, self.device, **options)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        return math.prod(self.out_shape), math.prod(self.in_shape)

    def to_dense(self, limit: int = 2**27) -> Tensor:
        """The explicit matrix (prod(out_shape), prod(in_shape)); with the batch axis in front where there is one.

        Raises:
            NormError: it would have more than ``limit`` entries (1 GiB in float64).
        """
        rows, columns = self.shape
        if rows * columns * (self.batch or 1) > limit:
            times = f"{self.batch:,} x " if self.batch else ""
            raise NormError(f"the matrix would be {times}{rows:,} x {columns:,}; at most {limit:,} entries")
        basis = torch.eye(columns, dtype=self.dtype, device=self.device).view(columns, *self.in_shape)
        with torch.no_grad():
            if self.batch is None:
                return (self @ basis).reshape(columns, rows).T
            images = [(self @ e.expand(self.batch, *self.in_shape)).flatten(1) for e in basis]
        return torch.stack(images, 2)

    def to_scipy(self) -> Any:
        """The same map as a ``scipy.sparse.linalg.LinearOperator``; several maps as a block-diagonal one."""
        from scipy.sparse.linalg import LinearOperator

        count = self.batch or 1

        def product(A: "LinearMap") -> Callable[[np.ndarray], np.ndarray]:
            def apply(x: np.ndarray) -> np.ndarray:
                v = torch.as_tensor(x, dtype=A.dtype, device=A.device)
                return (A @ v.reshape(count, *A.in_shape)).flatten().cpu().numpy()

            return apply

        rows, columns = self.shape
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        matvec, rmatvec = product(self), product(self.T)
        return LinearOperator((count * rows, count * columns), matvec=matvec, rmatvec=rmatvec, dtype=dtype)


def check_map(linear: object) -> None:
    """NormError for what is no :class:`LinearMap`."""
    if not isinstance(linear, LinearMap):
        raise NormError(
            f"{named(linear)} is no LinearMap; expected one, as opnorm.norms.linear_map(layer, in_shape) makes it"
        )


@by_layer_type
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


MATRIX = 2**24  # entries of the matrix of a layer without a formula: 128 MiB


def through_autograd(layer: nn.Module, in_shape: Shape) -> LinearMap:
    """Any affine layer; arguments and errors as :func:`linear_map`.

    The adjoint is the gradient, where ⟨Mv, u⟩ = ⟨v, Mᵀu⟩ for random vectors. A part without gradients (``no_grad``,
    ``detach``, numpy) breaks that: then it is the transposed matrix, which must be small enough.
    """
    check_lazy(layer)
    layer, name = in_float64(layer), type(layer).__name__
    first = next((t for t in (*layer.parameters(), *layer.buffers()) if t.is_floating_point()), None)
    device = first.device if first is not None else torch.device("cpu")
    zero = torch.zeros(1, *in_shape, dtype=torch.float64, device=device)
    try:
        offset = layer(zero.clone())
    except Exception as e:  # whatever the user's own layer raises
        raise NormError(f"{name} does not take an input of shape {in_shape}: {e}") from e
    if not isinstance(offset, Tensor):
        raise NormError(f"{name} returns {type(offset).__name__}; expected one tensor")
    if offset.shape[:1] != (1,):
        raise NormError(f"{name} returns {tuple(offset.shape)} for one input; expected the batch axis first")

    def apply(v: Tensor) -> Tensor:
        return layer(v.clone()) - offset

    try:
        _check_affine(apply, zero, name)
    except NormError:
        raise
    except Exception as e:  # whatever the user's own layer raises
        raise NormError(f"{name} does not take several inputs of shape {in_shape} at once: {e}") from e
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(zero.shape, generator=generator, dtype=zero.dtype).to(device)  # at 0 may be a kink

    def adjoint(u: Tensor) -> Tensor:
        back = torch.func.vjp(apply, x.expand(len(u), *in_shape).contiguous())[1]
        return back(u)[0]

    linear = LinearMap(apply, adjoint, in_shape, offset.shape[1:], device)
    if _is_adjoint(linear):
        return linear
    try:
        M = linear.to_dense(MATRIX)
    except NormError as e:
        raise NormError(f"the gradient of {name} is not its adjoint, and {e}") from e
    return LinearMap(
        lambda v: (v.reshape(len(v), -1) @ M.T).view(-1, *linear.out_shape),
        lambda u: (u.reshape(len(u), -1) @ M).view(-1, *linear.in_shape),
        in_shape,
        linear.out_shape,
        device,
    )


def _is_adjoint(linear: LinearMap) -> bool:
    """Whether ⟨Mv, u⟩ = ⟨v, Mᵀu⟩ for random vectors, up to rounding."""
    generator = torch.Generator().manual_seed(2)
    v, u = (
        torch.randn(3, *shape, generator=generator, dtype=linear.dtype).to(linear.device)
        for shape in (linear.in_shape, linear.out_shape)
    )
    try:
        back = (linear.T @ u).reshape(3, -1)
    except RuntimeError:  # a part of the layer has no gradient at all
        return False
    ahead, v, u = (linear @ v).reshape(3, -1), v.reshape(3, -1), u.reshape(3, -1)
    scale = ahead.norm(dim=1) * u.norm(dim=1) + v.norm(dim=1) * back.norm(dim=1)
    return bool((((ahead * u).sum(1) - (v * back).sum(1)).abs() <= 1e-12 * scale).all())


def _check_affine(apply: Callable[[Tensor], Tensor], zero: Tensor, name: str) -> None:
    """NormError unless f(a + b) = f(a) + f(b) for random pairs near zero and far from it, each point for itself."""
    generator = torch.Generator().manual_seed(0)
    for scale in (1e-3, 1.0, 1e3, 1e6):
        a, b = (
            scale * torch.randn(3, *zero.shape[1:], generator=generator, dtype=zero.dtype).to(zero.device)
            for _ in "ab"
        )
        with torch.no_grad():
            image, one_by_one = apply(a), torch.cat([apply(point[None]) for point in a])
            image_of_sum, sum_of_images = apply(a + b), image + apply(b)
        if not torch.isfinite(sum_of_images).all():
            raise NormError(f"{name} gives NaN or infinite values; are its weights finite?")
        atol = 1e-9 * float(sum_of_images.abs().max().clamp(min=1e-300))
        if image.shape != one_by_one.shape or not torch.allclose(image, one_by_one, rtol=1e-9, atol=atol):
            raise NormError(f"{name} mixes the points of a batch")
        if not torch.allclose(image_of_sum, sum_of_images, rtol=1e-9, atol=atol):
            raise NormError(f"{name} is not linear")


@linear_map.register(nn.Linear)
def _(layer: nn.Linear, in_shape: Shape) -> LinearMap:
    if overrides(layer, *LINEAR):
        return through_autograd(layer, in_shape)
    weight = weight_of(layer)
    check_weight(weight)
    check_features(layer, in_shape)
    W = weight.detach().double()
    out_shape = (*in_shape[:-1], layer.out_features)
    return LinearMap(lambda v: v @ W.T, lambda u: u @ W, in_shape, out_shape, W.device)


@linear_map.register(nn.Conv1d)
@linear_map.register(nn.Conv2d)
@linear_map.register(nn.Conv3d)
def _(layer: ConvLayer, in_shape: Shape) -> LinearMap:
    if overrides(layer, *CONV):
        return through_autograd(layer, in_shape)
    weight = weight_of(layer)
    check_weight(weight)
    check_channels(layer, in_shape)
    return convolution_map(weight.detach().double(), conv_geometry(layer), in_shape[1:])


@linear_map.register(nn.ConvTranspose1d)
@linear_map.register(nn.ConvTranspose2d)
@linear_map.register(nn.ConvTranspose3d)
def _(layer: ConvTransposeLayer, in_shape: Shape) -> LinearMap:
    if overrides(layer, *TRANSPOSED):
        return through_autograd(layer, in_shape)
    weight = weight_of(layer)
    check_weight(weight)
    check_channels(layer, in_shape)
    geometry, out_size = transpose_geometry(layer, in_shape[1:])
    return convolution_map(weight.detach().double(), geometry, out_size, in_shape[1:]).T


def convolution_map(
    K: Tensor, geometry: ConvGeometry, in_size: Shape, out_size: Shape | None = None
) -> LinearMap:
    """The convolution with kernel (C_out, C_in / groups, *kernel), in the kernel's precision.

    Args:
        K: the kernel.
        geometry: stride, padding, dilation and groups.
        in_size: input size per axis.
        out_size: of the output positions only the first so many count, per axis; all by default.

    Raises:
        NormError: the kernel does not fit the padded input, or there is more padding than its mode allows.
    """
    axes = len(in_size)
    conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    conv_input = (conv_grad.conv1d_input, conv_grad.conv2d_input, conv_grad.conv3d_input)[axes - 1]
    in_shape, whole = (K.shape[1] * geometry.groups, *in_size), geometry.out_size(in_size)
    padded = tuple(n + sum(p) for n, p in zip(in_size, geometry.padding, strict=True))
    pad, unpad = padding_maps(geometry, in_size, K.device)
    options = geometry.stride, 0, geometry.dilation, geometry.groups
    crop: list[int] = []
    for n, m in zip(reversed(whole), reversed(out_size or whole), strict=True):
        crop += [0, m - n]

    def adjoint(u: Tensor) -> Tensor:
        u = F.pad(u, [-c for c in crop]) if any(crop) else u
        return unpad(conv_input((len(u), in_shape[0], *padded), K, u, *options))

    def apply(v: Tensor) -> Tensor:
        images = conv(pad(v), K, None, *options)
        return F.pad(images, crop) if any(crop) else images

    return LinearMap(
        apply,
        adjoint,
        in_shape,
        (K.shape[0], *(out_size or whole)),
        K.device,
        dtype=K.dtype,
    )
