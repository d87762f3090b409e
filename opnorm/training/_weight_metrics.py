"""What is recorded of the weights after every epoch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import LINEAR_OR_CONV
from opnorm._core.linear_map import linear_map
from opnorm._core.modes import in_default_modes
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.network.trace import LayerCall, trace
from opnorm.norms.spectral.iterations import power_iteration
from opnorm.training.metrics import Metrics

__all__ = ["geometric_mean", "weight_metrics"]


@in_default_modes
@torch.no_grad()
def weight_metrics(model: nn.Module, example: Tensor) -> Metrics:
    """Norms, weight energy and weight complexity of the linear and convolutional layers, ready for JSON.

    - ``layer_norms``: {name of the layer: ℓ∞ norm}, exact; ``layer_norms_1``: the ℓ1 norms, exact; ``layer_norms_2``: of the
      ℓ2 norms the lower bound of 20 steps of power iteration. None where a norm is not known; of a layer that is called at
      several sizes, the largest.
    - ``norm_inf``, ``norm_1``, ``norm_2``: their geometric means over the calls whose norm is known.
    - ``weight_energy``: ∏_l ‖W_l‖_2², of Frobenius norms, infinite (null in JSON) beyond 1e308; ``log10_weight_energy``: its
      logarithm, minus infinity (null) where a weight is all zeros. Tied weights count once.
    - ``weight_complexity``: Σ_l ‖W_l / ‖W_l‖_2‖_1, of sums of absolute values, without layers of zeros.

    Args:
        model: left as it is; run once, in eval mode.
        example: a batch of its inputs, of which the first is used.

    Source: Liang & Huang 2021, section 4 (norms against epoch); Liu et al. 2020, Eq. 13 and Fig. 2.
    """
    calls = [call for call in trace(model, example) if isinstance(call.layer, LINEAR_OR_CONV)]
    found: Metrics = {}
    for ord in ("1", "2", "inf"):
        norms: dict[str, float | None] = dict.fromkeys(call.name for call in calls)
        known = []
        for call in calls:
            value = _norm(call, ord)
            if value is not None:
                known.append(value)
                norms[call.name] = max(value, norms[call.name] or 0.0)
        found |= {f"norm_{ord}": geometric_mean(known), f"layer_norms_{ord}".removesuffix("_inf"): norms}
    layers: dict[Any, None] = dict.fromkeys(call.layer for call in calls)
    tied = [
        weight_of(layer) for layer in layers
    ]  # computed weights are new tensors: kept while ids are compared
    weights = [weight.double() for weight in {id(w): w for w in tied}.values()]
    sizes = [float(torch.linalg.vector_norm(weight)) for weight in weights]
    parts = [float(weight.abs().sum()) / size for weight, size in zip(weights, sizes, strict=True) if size]
    logarithm = 2 * math.fsum(math.log10(size) if size else -math.inf for size in sizes)
    return {
        **found,
        "weight_energy": 10**logarithm if logarithm < 308 else math.inf,
        "log10_weight_energy": logarithm,
        "weight_complexity": math.fsum(parts),
    }


def _norm(call: LayerCall, ord: str) -> float | None:
    try:
        if ord == "2":
            return power_iteration(linear_map(call.layer, call.in_shape), 20)
        return float((l1 if ord == "1" else linf)(call.layer, call.in_shape))
    except NormError:
        return None


def geometric_mean(values: Sequence[float]) -> float:
    """(∏ values)^(1 / count), by logarithms; 0 when one is 0, 1 when there are none."""
    if any(v == 0 for v in values):
        return 0.0
    return math.exp(math.fsum(math.log(v) for v in values) / max(len(values), 1))
