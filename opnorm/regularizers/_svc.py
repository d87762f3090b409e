"""Singular value clipping: no singular value of a layer above c (Sedghi, Gupta & Long 2019).

On a circle, a convolution is one small matrix A(ω) for each frequency, whose singular values together are those of the
convolution. With a stride the input phases are stacked as channels, a dilation leaves a smaller circle, groups are separate
blocks. A kernel has few taps, so the transform to the frequencies and back is a product with a table of waves, which
crops as well.

The circle has ceil(n / stride) output positions an axis: the input is rounded up to whole strides (of a transposed
convolution, the adjoint of a convolution: the n positions of its input). The layer's own padding and its mode do not enter.
Where the kernel is larger than the circle, taps that coincide on it are changed alike. The norm of the layer itself, with
its padding, is the result of :func:`clip` and of :func:`opnorm.measure`.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.convolution import ConvGeometry, conv_geometry, transpose_geometry
from opnorm._core.frequencies import half_grid
from opnorm._core.layers import CONV, TRANSPOSED, WEIGHTED, Shape, check_weights, is_standard
from opnorm._core.modes import in_default_modes
from opnorm._core.regularizer_settings import check_every
from opnorm._core.settings import check_count, check_number
from opnorm.errors import NormError
from opnorm.norms._operator_norm import operator_norm
from opnorm.norms.norm import Norm
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import check_finite, groups_of, matrix_layers, parameters_of
from opnorm.spec import factory

__all__ = ["clip", "svc"]

CHUNK_BYTES = 2**26  # of the matrices A(ω) in memory at once


@factory("regularizer")
def svc(
    c: float = 1.0, every: str | int = "epoch", projections: int = 1, linear: bool = False
) -> Regularizer:
    """Singular value clipping: no singular value of a convolution above c, on a circle of the layer's input size.

        A(ω) = Σ_τ K_τ exp(i ω·τ) = U diag(σ) Vᴴ,     A'(ω) = U diag(min(σ, c)) Vᴴ,     K'_τ = mean_ω A'(ω) exp(-i ω·τ),

    for every tap τ of the kernel; the part of A' outside of the kernel's support is cropped. 1 x 1 convolutions and linear
    layers, which have one A and nothing to crop, end with σ ≤ c. For the others the crop raises the largest values above c
    again, which more ``projections`` lower.

    Computed in the precision of the weights, at least float32. Batch norms are not treated.

    Args:
        c: the largest singular value, c > 0; Liang & Huang take 2, 1.5, 1 and 0.5.
        every: "epoch", or a number of steps, which the regularizer's state then counts; 100 steps as published.
        projections: number of alternations of clip and crop; 1 as published.
        linear: clip linear layers, too; not so as published.

    Source: Sedghi, Gupta & Long 2019, section 3, which Liang & Huang 2021 use; strides: Senderovich et al. 2022.
    """
    check_number("c", c, "a finite number above 0", above=0)
    check_count("projections", projections)
    check_every(every)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = matrix_layers(model, example, "svc", kinds=WEIGHTED if linear else (*CONV, *TRANSPOSED))
        groups = groups_of(
            layers, lambda target: (target.weight.shape, *_geometry(target.layer, target.in_shape))
        )
        transforms = [_transform(*_geometry(t.layer, t.in_shape), t.weight) for t, *_ in groups.values()]

        @torch.no_grad()
        def clip_all() -> None:
            check_finite(layers, "svc")
            for group, transform in zip(groups.values(), transforms, strict=True):
                weights: list[Tensor] = [target.weight for target in group]
                torch._foreach_add_(weights, list(_change(torch.stack(weights), transform, c, projections)))

        parameters = parameters_of(layers)
        if not isinstance(every, int):
            return bound(Hooks(after_epoch=clip_all, constrain=clip_all), parameters, "svc")
        step = torch.zeros((), dtype=torch.int64)

        def after_step(lr: float) -> None:
            if step.add_(1) % every == 0:
                clip_all()

        hooks = Hooks(after_step=after_step, state={"step": step}, constrain=clip_all)
        return bound(hooks, parameters, "svc")

    return bind


@torch.no_grad()
def clip(layer: nn.Module, in_shape: Shape, c: float, projections: int = 1) -> Norm:
    """Clip the singular values of one layer in place, as :func:`svc` does, and return its ℓ2 norm afterwards.

    The layer is a Linear, Conv or ConvTranspose one, in_shape is that of one input, without the batch axis; another layer,
    and weights that are not finite, raise NormError. The norm is the certified interval with the layer's own padding.

    Source: Sedghi, Gupta & Long 2019, section 3.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2).double()
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        >>> norm = clip(layer, (2,), c=1.0)
        >>> round(float(norm.upper), 6), [round(w, 6) for w in layer.weight.diagonal().tolist()]
        (1.0, [1.0, 0.5])
    """
    check_number("c", c, "a finite number above 0", above=0)
    check_count("projections", projections)
    if not is_standard(layer, *WEIGHTED) or "weight" not in layer._parameters:
        raise NormError(f"{type(layer).__name__}: only Linear, Conv and ConvTranspose layers can be clipped")
    check_weights(layer)
    weight = layer._parameters["weight"]
    assert weight is not None, "such layers have a weight"
    transform = _transform(*_geometry(layer, tuple(in_shape)), weight)
    weight.add_(_change(weight[None], transform, c, projections)[0])
    return operator_norm(layer, 2, in_shape)


# ---------------------------------------------------------------- frequencies


class _Transform(NamedTuple):
    """From the T taps of a kernel to its matrices A(ω) and back, over one of each pair of frequencies ±ω.

    A(ω) is the sum of ``forward`` times tap for each input phase p, the phases side by side; a change D of the A(ω) changes
    the kernel by the real part of Σ conj(back) D. Both are (F, P, T).
    """

    forward: Tensor
    back: Tensor
    groups: int  # of the convolution


def _geometry(layer: nn.Module, in_shape: Shape) -> tuple[ConvGeometry, Shape]:
    """A layer as a convolution, and the circle's number of output positions on each axis."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return transpose_geometry(layer, in_shape[1:])[0], in_shape[1:]
    if isinstance(layer, nn.modules.conv._ConvNd):
        geometry = conv_geometry(layer)
        return geometry, tuple(-(-n // s) for n, s in zip(in_shape[1:], geometry.stride, strict=True))
    return ConvGeometry((1,), (1,), ((0, 0),), (1,), 1), (1,)


def _transform(geometry: ConvGeometry, places: Shape, like: Tensor) -> _Transform:
    axes = [
        _taps(*sizes)
        for sizes in zip(geometry.kernel, geometry.stride, geometry.dilation, places, strict=True)
    ]
    size = tuple(count for _, _, count in axes)
    phase, place = (
        np.stack([a.ravel() for a in np.meshgrid(*parts, indexing="ij")])
        for parts in list(zip(*axes, strict=True))[:2]
    )
    phases = np.unique(phase, axis=1, return_inverse=True)[1].ravel()
    cells = np.concatenate([phases[None], place])
    _, same, counts = np.unique(cells, axis=1, return_inverse=True, return_counts=True)
    sharing = counts[same.ravel()]  # taps that coincide on the circle

    omega, times = half_grid(size)
    waves = np.exp(1j * (omega @ place))[:, None] * (np.arange(phases.max() + 1)[:, None] == phases)
    back = waves * (times[:, None, None] / math.prod(size) / sharing)
    if math.prod(size) == 1:
        waves, back = waves.real, back.real
    dtype = torch.promote_types(like.dtype, torch.float32)
    dtype = dtype if math.prod(size) == 1 else dtype.to_complex()
    forward, back = (torch.from_numpy(w).to(like.device, dtype) for w in (waves, back))
    return _Transform(forward, back, geometry.groups)


def _taps(kernel: int, stride: int, dilation: int, places: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The input phase and the place on the circle of each tap on one axis, and the circle's number of places.

    Where the taps are t places apart, the circle is the union of gcd(t, places) equal circles.
    """
    place, phase = np.divmod(np.arange(kernel) * dilation, stride)
    step = int(np.gcd.reduce([places, *place]))
    return phase, place // step % (places // step), places // step


# ---------------------------------------------------------------- clip and crop


def _change(weights: Tensor, transform: _Transform, c: float, projections: int) -> Tensor:
    """The change of kernels (count, c_out, c_in / groups, *kernel) by the alternations of clip and crop."""
    count, c_out, c_in = weights.shape[:3]
    K = weights.reshape(count * transform.groups, c_out // transform.groups, c_in, -1)
    K = K.to(torch.promote_types(K.dtype, torch.float32)) / c
    change = torch.zeros_like(K)
    for _ in range(projections):
        excess = _excess(K + change, transform)
        if excess is None:
            break
        change -= excess
    return (c * change).view(weights.shape).to(weights.dtype)


def _excess(K: Tensor, transform: _Transform) -> Tensor | None:
    """Taps minus clipped and cropped taps of kernels (B, c_out, c_in, T), for c = 1; None where no value exceeds 1."""
    B, rows, columns, T = K.shape
    taps = K.permute(3, 0, 1, 2).reshape(T, -1).to(transform.forward.dtype)
    phases = transform.forward.shape[1]
    chunk = max(1, CHUNK_BYTES // (phases * B * rows * columns * taps.element_size()))
    total = None
    for forward, back in zip(transform.forward.split(chunk), transform.back.split(chunk), strict=True):
        A = (forward.flatten(0, 1) @ taps).view(-1, phases, B, rows, columns)
        A = A.permute(0, 2, 3, 1, 4).reshape(-1, rows, phases * columns)
        D = _above(A) if rows <= phases * columns else _above(A.mH)
        if D is None:
            continue
        D = D if rows <= phases * columns else D.mH
        D = D.reshape(-1, B, rows, phases, columns).permute(0, 3, 1, 2, 4).reshape(-1, B * rows * columns)
        part = (back.flatten(0, 1).mH @ D).real
        total = part if total is None else total + part
    return None if total is None else total.view(T, B, rows, columns).permute(1, 2, 3, 0)


def _above(A: Tensor) -> Tensor | None:
    """U diag(max(σ - 1, 0)) Vᴴ of wide matrices (N, rows, columns); None where every σ is below 1.

    By the eigenvectors of A Aᴴ, for those matrices only where the factorization of 1 - A Aᴴ fails.
    """
    G = A @ A.mH
    one = torch.eye(len(G[0]), dtype=G.dtype, device=G.device)
    high = torch.linalg.cholesky_ex(one - G).info.nonzero().squeeze(1)
    if not len(high):
        return None
    squares, U = torch.linalg.eigh(G[high])
    top = int((squares > 1).sum(1).max())  # eigenvalues ascend
    U = U[..., len(U[0]) - top :] * (1 - squares[:, len(U[0]) - top :].clamp(min=1).rsqrt()).sqrt()[:, None]
    return torch.zeros_like(A).index_copy_(0, high, U @ (U.mH @ A[high]))
