"""Singular value clipping: the singular values of every layer held at c (Sedghi, Gupta & Long 2019).

On a circle, a convolution is one small matrix A(ω) a frequency, and its singular values are all of theirs. Strides stack
the input phases that they skip between as channels, dilations leave a smaller circle, groups are blocks on their own. A
kernel has few taps, so the way to the frequencies and back is a product with a table of waves, which also crops.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from opnorm._core.convolution import ConvGeometry, conv_geometry, transpose_geometry
from opnorm._core.layers import WEIGHTED, Shape, check_weights, overrides
from opnorm.errors import NormError, SpecError
from opnorm.norms._operator_norm import operator_norm
from opnorm.norms.spectral.interval import Norm
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.spectral_regularization import check_finite, check_number, matrix_layers
from opnorm.spec import factory

__all__ = ["clip", "svc"]

CHUNK_BYTES = 2**26  # of the matrices A(ω) that are made at once


@factory("regularizer")
def svc(c: float = 1.0, every: str | int = "epoch", projections: int = 1) -> Regularizer:
    """Singular value clipping: no singular value of any layer above c, on a circle of the layer's input size.

        A(ω) = Σ_τ K_τ exp(i ω·τ) = U diag(σ) Vᴴ,     A'(ω) = U diag(min(σ, c)) Vᴴ,     K'_τ = mean_ω A'(ω) exp(-i ω·τ),

    for every tap τ that the kernel has; what A' asks for outside of the kernel's support is cropped. Linear layers and
    1 x 1 convolutions have one A and nothing to crop: they end with σ ≤ c. For the others the crop lifts the largest
    values above c again, which more ``projections`` (clip and crop in turns) lower.

    The circle has ceil(n / stride) output positions an axis, the input being rounded up to whole strides (a transposed
    convolution, being the adjoint of a convolution: the n positions of its input). The layer's own padding and its mode do
    not enter. Where the kernel is larger than the circle, taps that meet on it are changed alike. What the real layer
    reaches is told by :func:`clip` for one and by :func:`opnorm.measure` for all (``norm_2`` of a run's epochs: their mean).

    Computed in the precision of the weights, or in float32 if that is finer. Batch norms are not treated.

    Args:
        c: the largest singular value, c > 0; Liang & Huang take 2, 1.5, 1 and 0.5.
        every: "epoch", or after every so many steps.
        projections: how often to clip and crop in turns.

    Returns:
        A regularizer that acts after an epoch, or after steps, which its state then counts. Binding it raises ModelError
        where there is no layer to treat and NormError for weights that are computed from others; it warns of layers left
        alone. A weight that is not finite raises TrainError.

    Raises:
        SpecError: c is not a finite number above 0; ``every`` or ``projections`` is no whole number of at least 1.

    Source: Sedghi, Gupta & Long 2019, section 3; strides: Senderovich et al. 2022.
    """
    check_number("c", c)
    if every != "epoch" and not _is_count(every):
        raise SpecError(f"every={every!r}: expected 'epoch' or a whole number of steps, at least 1")
    _check_projections(projections)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = matrix_layers(model, example, "svc")
        alike: dict[Any, tuple[_Circle, list[Tensor]]] = {}
        for _, layer, shape, weight in layers:
            geometry, places = _geometry(layer, shape)
            like = (weight.shape, weight.dtype, weight.device, geometry, places)
            if like not in alike:
                alike[like] = (_circle(geometry, places, weight), [])
            alike[like][1].append(weight)

        @torch.no_grad()
        def clip_all() -> None:
            check_finite(layers, "svc")
            for circle, weights in alike.values():
                changes = _change(torch.stack(weights), circle, c, projections)
                torch._foreach_add_(weights, list(changes))

        if not isinstance(every, int):
            return Hooks(after_epoch=clip_all)
        step = torch.zeros((), dtype=torch.int64)

        def after_step(lr: float) -> None:
            if step.add_(1) % every == 0:
                clip_all()

        return Hooks(after_step=after_step, state={"step": step})

    return bind


@torch.no_grad()
def clip(layer: nn.Module, in_shape: Shape, c: float, projections: int = 1) -> Norm:
    """Clip the singular values of one layer in place, as :func:`svc` does, and tell the ℓ2 norm that it then has.

    Args:
        layer: Linear, Conv1d, Conv2d, Conv3d or a transposed convolution.
        in_shape: shape of one input, without the batch axis.
        c: the largest singular value on the circle, before the crop.
        projections: how often to clip and crop in turns.

    Returns:
        The certified interval of the layer's true norm, with its own padding.

    Raises:
        SpecError: a setting that makes no sense.
        NormError: another layer, or weights that are not finite.

    Source: Sedghi, Gupta & Long 2019, section 3.

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2).double()
        >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 0.5]]))
        >>> reached = clip(layer, (2,), c=1.0)
        >>> round(float(reached.upper), 6), [round(w, 6) for w in layer.weight.diagonal().tolist()]
        (1.0, [1.0, 0.5])
    """
    check_number("c", c)
    _check_projections(projections)
    if not isinstance(layer, WEIGHTED) or overrides(layer, *WEIGHTED) or "weight" not in layer._parameters:
        raise NormError(f"{type(layer).__name__}: only Linear, Conv and ConvTranspose layers can be clipped")
    check_weights(layer)
    weight = layer._parameters["weight"]
    assert weight is not None, "such layers have a weight"
    circle = _circle(*_geometry(layer, tuple(in_shape)), weight)
    weight.add_(_change(weight[None], circle, c, projections)[0])
    return operator_norm(layer, 2, in_shape)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _check_projections(projections: int) -> None:
    if not _is_count(projections):
        raise SpecError(f"projections={projections!r}: expected a whole number of at least 1")


# ---------------------------------------------------------------- the circle


class _Circle(NamedTuple):
    """A way from the taps of a kernel to its matrices A(ω) and back, over one of each pair of frequencies ±ω.

    Attributes:
        there: (F, P, T): A(ω) is the sum over taps for each input phase p, the phases side by side.
        back: (F, P, T): a kernel's change is the real part of Σ conj(back) D, for a change D of the A(ω).
        groups: of the convolution.
    """

    there: Tensor
    back: Tensor
    groups: int


def _geometry(layer: nn.Module, in_shape: Shape) -> tuple[ConvGeometry, Shape]:
    """A layer as a convolution, and the size of the circle in output positions."""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return transpose_geometry(layer, in_shape[1:])[0], in_shape[1:]
    if isinstance(layer, nn.modules.conv._ConvNd):
        geometry = conv_geometry(layer, any_mode=True)
        return geometry, tuple(-(-n // s) for n, s in zip(in_shape[1:], geometry.stride, strict=True))
    return ConvGeometry((1,), (1,), ((0, 0),), (1,), 1), (1,)


def _circle(geometry: ConvGeometry, places: Shape, like: Tensor) -> _Circle:
    axes = [
        _axis(*sizes)
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
    sharing = counts[same.ravel()]  # taps that are one on the circle

    omega = np.indices(size).reshape(len(size), -1)
    mirrored = np.ravel_multi_index(tuple((-omega.T % size).T), size)
    half = np.arange(math.prod(size)) <= mirrored
    twice = np.where(np.arange(math.prod(size)) < mirrored, 2.0, 1.0)[half]
    angles = 2 * math.pi * (omega[:, half].T / np.array(size)) @ place
    waves = np.exp(1j * angles)[:, None] * (np.arange(phases.max() + 1)[:, None] == phases)
    back = waves * (twice[:, None, None] / math.prod(size) / sharing)
    if math.prod(size) == 1:
        waves, back = waves.real, back.real
    dtype = torch.promote_types(like.dtype, torch.float32)
    dtype = dtype if math.prod(size) == 1 else dtype.to_complex()
    there, back = (torch.from_numpy(w).to(like.device, dtype) for w in (waves, back))
    return _Circle(there, back, geometry.groups)


def _axis(kernel: int, stride: int, dilation: int, places: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Of each tap on one axis: the input phase and the place on the circle; and how many places that circle has.

    Where the taps are t places apart, the circle falls into gcd(t, places) circles that are all alike.
    """
    place, phase = np.divmod(np.arange(kernel) * dilation, stride)
    step = int(np.gcd.reduce([places, *place]))
    return phase, place // step % (places // step), places // step


# ---------------------------------------------------------------- clip and crop


def _change(weights: Tensor, circle: _Circle, c: float, projections: int) -> Tensor:
    """What to add to kernels (count, c_out, c_in / groups, *kernel) so that they are clipped."""
    count, c_out, c_in = weights.shape[:3]
    K = weights.reshape(count * circle.groups, c_out // circle.groups, c_in, -1)
    K = K.to(torch.promote_types(K.dtype, torch.float32)) / c
    change = torch.zeros_like(K)
    for _ in range(projections):
        excess = _excess(K + change, circle)
        if excess is None:
            break
        change -= excess
    return (c * change).view(weights.shape).to(weights.dtype)


def _excess(K: Tensor, circle: _Circle) -> Tensor | None:
    """What clipping at 1 takes off the taps of kernels (B, c_out, c_in, T); None where no singular value exceeds 1."""
    B, rows, columns, T = K.shape
    taps = K.permute(3, 0, 1, 2).reshape(T, -1).to(circle.there.dtype)
    phases = circle.there.shape[1]
    chunk = max(1, CHUNK_BYTES // (phases * B * rows * columns * taps.element_size()))
    total = None
    for there, back in zip(circle.there.split(chunk), circle.back.split(chunk), strict=True):
        A = (there.flatten(0, 1) @ taps).view(-1, phases, B, rows, columns)
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
