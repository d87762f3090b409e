"""The operator norm of one layer, whatever its type and whatever the order."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from opnorm._core.argument_checks import as_shape
from opnorm._core.layers import BATCH_NORM, Shape, changed_by_hooks, check_weights, in_float64, unwrap
from opnorm._core.linear_map import MATRIX, linear_map
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_ords
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.nonlinear import copying_norm, is_copying, is_nonlinear, known_base
from opnorm.norms.norm import Norm, rms_norm
from opnorm.norms.spectral.interval import spectral_norm

__all__ = [
    "Order",
    "interval_settings",
    "norm_of",
    "operator_norm",
]

Order = float | str | tuple[float, float]
"""1, 2 or ``math.inf``, a pair (p, q) of them, or "rms"."""


@in_default_modes
def operator_norm(
    layer: nn.Module,
    ord: Order,
    in_shape: Sequence[int] | None = None,
    *,
    relative_width: float | None = None,
    failure_probability: float = 0.0,
) -> Norm:
    """The operator norm ‖M‖_{p→q} = max ‖M v‖_q / ‖v‖_p of one layer without its bias, in float64.

    Args:
        layer: a linear layer; see :func:`opnorm.norms.l1` for the types. An affine layer of any other type goes through
            its explicit matrix, where that is small enough.
        ord: 1 or ``math.inf`` (exact), 2 (an interval), a pair ``(p, q)`` of these, or "rms": from RMS to RMS, the ℓ2 norm
            times sqrt(inputs / outputs), as ‖x‖_RMS = ‖x‖_2 / sqrt(n).
        in_shape: shape of one input, without the batch axis: ``(C, H, W)`` for a Conv2d. Not needed for Linear and batch
            norm, whose norms do not depend on it.
        relative_width: of an ℓ2 interval, upper / lower - 1, to aim at; 5e-3 when None.
        failure_probability: with which the upper end of an ℓ2 interval may be wrong, for narrow ones of large layers.

    Returns:
        ``Norm(lower, upper, method)``; ``float(norm)`` where it is exact.

    Raises:
        NormError: another ``ord``, a layer that is not linear or whose norm is not known, weights that are NaN, infinite,
            on the meta device, not initialized, quantized or not real floating-point numbers.

    Source: Liang & Huang 2021, Theorem 1 (ℓ1, ℓ∞); Large et al. 2024 (RMS).

    Example:
        >>> import torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> _ = layer.weight.data.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
        >>> float(operator_norm(layer, 1)), float(operator_norm(layer, torch.inf))
        (4.0, 3.0)
    """
    check_ords([ord])
    check_weights(layer)
    if changed_by_hooks(unwrap(layer)):
        warnings.warn(
            f"{type(unwrap(layer)).__name__} has a forward hook, which is not in the norm", stacklevel=3
        )
    shape = _default_shape(layer) if in_shape is None else as_shape(in_shape)
    return norm_of(layer, ord, shape, interval_settings(relative_width, failure_probability))


def _default_shape(layer: nn.Module) -> Shape:
    """An input shape for a layer whose norm does not depend on it."""
    inner = unwrap(layer)
    if isinstance(inner, nn.Linear):
        return (inner.in_features,)
    if isinstance(inner, BATCH_NORM):
        return (inner.num_features,)
    raise NormError(
        f"the norm of {type(layer).__name__} depends on the size of its input: in_shape is missing, the shape of one "
        "input without the batch axis, such as (3, 32, 32)"
    )


def interval_settings(relative_width: float | None, failure_probability: float) -> dict[str, float]:
    """Settings of ℓ2 intervals other than the defaults; empty by default, for a user's own norms may take none."""
    if relative_width is None and not failure_probability:
        return {}
    width = 5e-3 if relative_width is None else relative_width
    return {"relative_width": width, "failure_probability": failure_probability}


def norm_of(layer: nn.Module, ord: Order, shape: Shape, settings: dict[str, Any]) -> Norm:
    """As :func:`operator_norm`, without its checks; ``settings`` are those of an ℓ2 interval."""
    if isinstance(ord, str):
        l2 = norm_of(layer, 2, shape, settings)
        outputs, inputs = linear_map(layer, shape).shape
        return rms_norm(l2, inputs, outputs)
    if isinstance(ord, tuple) and ord[0] == ord[1]:
        ord = ord[0]
    known = known_base(layer, l1.registry) is not None or unwrap(layer) is not layer
    if is_copying(layer) and not isinstance(ord, tuple):
        value = copying_norm(layer, ord, shape)
        return Norm.of(value, value, "exact: every output is one of the inputs")
    if not known and is_nonlinear(layer):
        raise NormError(f"{type(layer).__name__} is not linear; see opnorm.norms.lipschitz")
    if isinstance(ord, tuple):
        from opnorm.norms.induced import induced_norm

        return induced_norm(layer, *ord, shape)
    if ord == 2:
        return spectral_norm(layer, shape, **settings)
    if known:
        with torch.enable_grad():  # no weight asks for it, but a norm may be found by autograd
            exact = (l1 if ord == 1 else linf)(in_float64(layer), shape)
        return Norm.of(exact, exact, "exact")
    sums = linear_map(layer, shape).to_dense(MATRIX).abs().sum(0 if ord == 1 else 1).max()
    return Norm.of(sums, sums, "exact: the explicit matrix")
