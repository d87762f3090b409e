r"""Lipschitz constants of layers that are not linear, from ℓp to ℓp, for p = 1, 2 and ∞.

A map that acts on each coordinate alone, y_i = φ(x_i), has the constant sup |φ'| in every ℓp: Σ |φ(x_i) - φ(y_i)|^p is at
most (sup |φ'|)^p Σ |x_i - y_i|^p, with equality in the limit for one coordinate. The other maps have derivations beside
them. A map without a finite constant, or with a jump, raises :class:`~opnorm.errors.NormError`; nothing is ever guessed.

New layers join by ``@lipschitz.register(MyActivation)``.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import by_layer_type
from opnorm._core.batch_norm import channel_scale
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import IDENTITY, Shape, is_empty_sequence, is_standard, overrides
from opnorm.errors import NormError
from opnorm.norms.exact.separable import PADDING
from opnorm.norms.normalization_constants import normalizing

__all__ = ["copies", "is_copying", "is_nonlinear", "lipschitz", "window_count"]


@by_layer_type
def lipschitz(layer: nn.Module, ord: float, in_shape: Shape) -> float:
    """An upper bound on sup ‖layer(x) - layer(y)‖_p / ‖x - y‖_p of a layer that is not linear, in eval mode.

    Args:
        layer: an activation, a softmax, a max-pooling or a normalization by the input's own statistics.
        ord: the p of both norms: 1, 2 or ``math.inf``.
        in_shape: shape of one input, without the batch axis.

    Returns:
        The constant; the best possible one unless the layer's entry says otherwise.

    Raises:
        NormError: no finite constant exists, or none is known.

    Source: derivations in :mod:`opnorm.norms.nonlinear`.

    Example:
        >>> import torch
        >>> lipschitz(torch.nn.Sigmoid(), 2, (10,))
        0.25
        >>> lipschitz(torch.nn.MaxPool2d(3, stride=2), 2, (8, 32, 32))  # windows overlap
        2.0
    """
    raise NormError(f"no Lipschitz constant of {type(layer).__name__} is known")


def known_base(layer: nn.Module, kinds: Collection[type]) -> type[nn.Module] | None:
    """The first of the layer's types that is among the kinds, if its forward is that of the layer."""
    base = next((c for c in type(layer).__mro__ if c in kinds and c is not object), None)
    return None if base is None or overrides(layer, base) else base


def is_nonlinear(layer: nn.Module) -> bool:
    """Whether :func:`lipschitz` has an entry for the layer, whose forward is that of the entry."""
    return known_base(layer, lipschitz.registry) is not None and not _is_sum(layer)


def _is_sum(layer: nn.Module) -> bool:
    return isinstance(layer, nn.LPPool1d | nn.LPPool2d | nn.LPPool3d) and layer.norm_type == 1


# ---------------------------------------------------------------- coordinate by coordinate

# sup |φ'|, the irrational ones rounded up in their last digit (found with 40 digits)
GELU = {"none": 1.1289041451851549, "tanh": 1.1289930686577719}  # at √2: Φ(√2) + √2 φ(√2); at 1.41850400879
ELEMENTWISE: dict[type[nn.Module], float | Callable[[Any], float | str]] = {
    nn.ReLU: 1.0,
    nn.ReLU6: 1.0,
    nn.Tanh: 1.0,
    nn.Sigmoid: 0.25,  # σ' = σ (1 - σ)
    nn.LogSigmoid: 1.0,
    nn.Softsign: 1.0,
    nn.Tanhshrink: 1.0,  # 1 - (1 - tanh²)
    nn.Softshrink: 1.0,
    nn.Hardtanh: 1.0,
    nn.Hardsigmoid: 1 / 6,
    nn.Hardswish: 1.5,  # (2 x + 3) / 6 at x = 3
    nn.SiLU: 1.0998393201288670,  # at x = 2.39935728052
    nn.Mish: 1.0884981612517280,  # at x = 1.49057117949
    nn.SELU: 1.7580993408473769,  # scale · α, left of 0
    nn.GELU: lambda layer: GELU[layer.approximate],
    nn.LeakyReLU: lambda layer: max(1.0, abs(layer.negative_slope)),
    nn.RReLU: lambda layer: max(1.0, abs(layer.lower + layer.upper) / 2),  # the slope of eval mode
    nn.PReLU: lambda layer: max(1.0, float(weight_of(layer).detach().abs().max())),
    nn.ELU: lambda layer: max(1.0, abs(layer.alpha)),  # α e^x left of 0
    # e^{x/α} left of 0
    nn.CELU: lambda layer: f"with alpha={layer.alpha} grows without bound" if layer.alpha < 0 else 1.0,
    # torch jumps from log(1 + e^{βx}) / β to x at βx = threshold; at 20 the jump is lost in rounding
    nn.Softplus: lambda layer: (
        f"with threshold={layer.threshold}, beta={layer.beta} jumps"
        if layer.threshold < 15 or layer.beta <= 0
        else 1.0
    ),
    nn.Threshold: lambda layer: (
        f"jumps from {layer.value} to {layer.threshold}" if layer.value != layer.threshold else 1.0
    ),
    nn.Hardshrink: lambda layer: f"jumps at ±{layer.lambd}" if layer.lambd > 0 else 1.0,
    nn.GLU: lambda layer: "multiplies two halves of its input",
}
"""A number, or a function of the layer that gives it, or that gives the reason why there is none."""


def _elementwise(layer: nn.Module, ord: float, in_shape: Shape, constant: Any) -> float:
    value: float | str = constant(layer) if callable(constant) else constant
    if isinstance(value, str):
        raise NormError(f"{type(layer).__name__} {value}: no Lipschitz constant")
    return value


for _kind, _constant in ELEMENTWISE.items():
    lipschitz.register(_kind, functools.partial(_elementwise, constant=_constant))


# ---------------------------------------------------------------- softmax


SOFTMAX = (nn.Softmax, nn.Softmax2d, nn.Softmin, nn.LogSoftmax)


def _softmax(layer: nn.Module, ord: float, in_shape: Shape) -> float:
    if softmax_axis(layer, 1 + len(in_shape)) == 0:
        raise NormError(f"{type(layer).__name__} acts along the batch axis: it mixes the points of a batch")
    return softmax_constant(layer, ord, (1, *in_shape))


for _kind in SOFTMAX:
    lipschitz.register(_kind, _softmax)


def softmax_axis(layer: Any, axes: int) -> int:
    """The axis of a tensor with so many axes that a softmax or log-softmax acts along."""
    if isinstance(layer, nn.Softmax2d):
        return axes - 3
    if layer.dim is None:  # as torch chooses it
        return 0 if axes in (0, 1, 3) else 1
    return int(layer.dim) % max(1, axes)


def softmax_constant(layer: nn.Module, ord: float, shape: Shape) -> float:
    """The constant for a tensor of this shape, the batch axis included.

    Softmax: J = diag(s) - s sᵀ is symmetric; row i sums to 2 s_i (1 - s_i) ≤ 1/2 in absolute value: ‖J‖_1 = ‖J‖_∞ ≤ 1/2, and
    ‖J‖_2 ≤ sqrt(‖J‖_1 ‖J‖_∞). Reached at s = (1/2, 1/2).

    Log-softmax: J = I - 1 sᵀ. Rows: 2 (1 - s_i) → 2. Columns: 1 + (n - 2) s_j → n - 1. 1 sᵀ is a projection (sᵀ1 = 1), and
    ‖I - P‖_2 = ‖P‖_2 = √n ‖s‖_2 → √n for projections other than 0 and I.
    """
    if not isinstance(layer, nn.LogSoftmax):
        return 0.5
    n = shape[softmax_axis(layer, len(shape))] if shape else 1
    if n == 1:
        return 0.0
    return {1: float(max(1, n - 1)), 2: math.sqrt(n), math.inf: 2.0}[ord]


# ---------------------------------------------------------------- pooling


def window_count(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> int:
    """In how many pooling windows the busiest input position of one axis lies."""
    windows = _windows(size, kernel, stride, padding, dilation, ceil_mode)
    return max(Counter(place for window in windows for place in window).values(), default=0)


def _windows(
    size: int, kernel: int, stride: int, padding: int = 0, dilation: int = 1, ceil_mode: bool = False
) -> list[list[int]]:
    """The input positions in each pooling window of one axis."""
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    windows = (-(-span // stride) if ceil_mode else span // stride) + 1
    if ceil_mode and (windows - 1) * stride >= size + padding:
        windows -= 1  # torch drops a window that starts in the padding behind the input
    places = [[o * stride - padding + k * dilation for k in range(kernel)] for o in range(windows)]
    return [[place for place in window if 0 <= place < size] for window in places]


def _per_axis(value: Any, axes: int) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple | list) else (value,) * axes


# |max_W x - max_W y|^p ≤ max_W |x - y|^p ≤ Σ_{i ∈ W} |x_i - y_i|^p, and position i is in at most m windows: m^{1/p}.
# Reached where one position is the largest of all of its windows.
def _max_pool(layer: Any, ord: float, in_shape: Shape, axes: int) -> float:
    if layer.return_indices:
        raise NormError("max-pooling that returns indices is not continuous")
    if len(in_shape) < axes:
        raise NormError(f"{type(layer).__name__} needs {axes} spatial axes, got an input of shape {in_shape}")
    size = in_shape[-axes:]
    if isinstance(layer, nn.modules.pooling._AdaptiveMaxPoolNd):
        outputs = zip(size, _per_axis(layer.output_size, axes), strict=True)
        counts = [_adaptive_window_count(n, m or n) for n, m in outputs]
    else:
        settings = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
        per_axis = zip(size, *(_per_axis(s, axes) for s in settings), strict=True)
        counts = [window_count(n, k, s, p, d, layer.ceil_mode) for n, k, s, p, d in per_axis]
    return math.prod(counts) ** (1 / ord)


def _adaptive_window_count(size: int, outputs: int) -> int:
    windows = [range(o * size // outputs, -(-(o + 1) * size // outputs)) for o in range(outputs)]
    return max(Counter(i for window in windows for i in window).values())


for _axes in (1, 2, 3):
    for _name in (f"MaxPool{_axes}d", f"AdaptiveMaxPool{_axes}d"):
        lipschitz.register(getattr(nn, _name), functools.partial(_max_pool, axes=_axes))


def _lp_pool(layer: Any, ord: float, in_shape: Shape, axes: int) -> float:
    """(Σ_W x_i^r)^{1/r} of windows W, r even or infinite; min |x_i| for r = -∞.

    ‖·‖_r is no steeper than 1 in ℓp for r ≥ p, and k^{1/r} in ℓ∞, reached by k equal entries. A position that is in several
    windows counts once in each: (Σ_{W: i in W} 1)^{1/p}, reached where it is the only entry that is not 0, for r ≥ p. torch
    divides by the number n of entries of a window that ceil_mode cuts off, and multiplies by k: it counts (k/n)^{1/r}.
    """
    r, kind = float(layer.norm_type), type(layer).__name__
    if r == 1:
        raise NormError(f"{kind} with norm_type=1 is linear; see opnorm.operator_norm")
    if math.isnan(r) or (math.isfinite(r) and (r < 2 or r % 2)):
        raise NormError(
            f"{kind} with norm_type={layer.norm_type} has no Lipschitz constant on all inputs; expected an even number, "
            "1 or infinity"
        )
    if len(in_shape) < axes:
        raise NormError(f"{kind} needs {axes} spatial axes, got an input of shape {in_shape}")
    kernel = _per_axis(layer.kernel_size, axes)
    stride = kernel if layer.stride is None else _per_axis(layer.stride, axes)
    if math.isinf(ord):
        return math.prod(kernel) ** (1 / abs(r))
    total = 1.0
    for n, k, s in zip(in_shape[-axes:], kernel, stride, strict=True):
        seen: Counter[int] = Counter()
        for window in _windows(n, k, s, ceil_mode=layer.ceil_mode):
            seen.update(dict.fromkeys(window, (k / len(window)) ** (ord / abs(r))))
        total *= max(seen.values(), default=0.0)
    return total ** (1 / ord)


for _axes in (1, 2, 3):
    lipschitz.register(getattr(nn, f"LPPool{_axes}d"), functools.partial(_lp_pool, axes=_axes))


# ---------------------------------------------------------------- normalization by the input's own statistics


@lipschitz.register(nn.LayerNorm)
@lipschitz.register(nn.GroupNorm)
@lipschitz.register(nn.RMSNorm)
def _(layer: Any, ord: float, in_shape: Shape) -> float:
    eps, weight = layer.eps, weight_of(layer)
    if eps is None:  # RMSNorm takes that of a type it computes in, which is at least this
        double = weight is None or weight.dtype == torch.float64
        eps = torch.finfo(torch.float64 if double else torch.float32).eps
    grouped = isinstance(layer, nn.GroupNorm)
    size = math.prod(in_shape) // layer.num_groups if grouped else math.prod(layer.normalized_shape)
    return normalizing(eps, weight, ord, type(layer).__name__, size, not isinstance(layer, nn.RMSNorm))


def _of_instances(layer: Any, ord: float, in_shape: Shape, axes: int) -> float:
    """Of instance normalization over the last axes of an input; it may be one point (channels, ...) without a batch axis."""
    weight = weight_of(layer)
    if layer.track_running_stats and layer.running_var is not None:  # a diagonal map in eval mode
        weight = None if weight is None else weight.detach()
        return float(channel_scale(layer.running_var.double(), layer.eps, weight).abs().max())
    return normalizing(layer.eps, weight, ord, type(layer).__name__, math.prod(in_shape[-axes:]))


for _axes, _kind in ((1, nn.InstanceNorm1d), (2, nn.InstanceNorm2d), (3, nn.InstanceNorm3d)):
    lipschitz.register(_kind, functools.partial(_of_instances, axes=_axes))


# ---------------------------------------------------------------- linear maps that only copy

_CONSTANT = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)  # ZeroPad1d-3d are subclasses


def is_copying(layer: nn.Module) -> bool:
    """Whether every output of the layer, in eval mode, is one of its inputs or a constant."""
    if known_base(layer, (*IDENTITY, *PADDING)):
        return not isinstance(layer, _CONSTANT) or all(p >= 0 for p in layer.padding)
    return is_empty_sequence(layer) or (
        is_standard(layer, nn.Upsample) and layer.mode in ("nearest", "nearest-exact")
    )


def copies(move: Callable[[Tensor], Tensor], in_shape: Shape) -> int:
    """How many outputs of a copying map the busiest input reaches: m, and the norm is m^(1/p), exactly.

    Args:
        move: applied to the numbers 1, 2, 3, ... in float64, of shape (1, *in_shape); constants among its outputs are 0.
        in_shape: shape of one input.
    """
    n = math.prod(in_shape)
    numbers = torch.arange(1, n + 1, dtype=torch.float64).view(1, *in_shape)
    with torch.no_grad():
        places = move(numbers).detach().round().long().flatten()
    return int(places[places > 0].bincount().max()) if bool((places > 0).any()) else 0


def copying_norm(layer: nn.Module, ord: float, in_shape: Shape) -> float:
    """The exact norm of a layer that only copies."""
    if isinstance(layer, (*IDENTITY, *_CONSTANT)) or is_empty_sequence(layer):
        return 1.0
    return float(copies(layer, in_shape)) ** (1 / ord)
