"""Normalization as functions of torch, with what their arguments mean."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from opnorm.jacobian.local.ball_rules import Rows, normalized
from opnorm.jacobian.local.known_values import Known, Operand
from opnorm.norms.network.rules import FunctionCall

__all__ = ["NORMALIZATIONS", "of_groups"]


def _layer_norm(a: Operand, call: FunctionCall) -> Known:
    eps, count = call.argument(4, "eps", 1e-5), math.prod(call.argument(1, "normalized_shape"))
    rows = Rows(a.value.reshape(-1, count))
    return normalized(a, call.output, rows, eps, call.argument(2, "weight"), True)


def _rms_norm(a: Operand, call: FunctionCall) -> Known:
    eps, count = call.argument(3, "eps"), math.prod(call.argument(1, "normalized_shape"))
    eps = torch.finfo(a.value.dtype).eps if eps is None else eps
    rows = Rows(a.value.reshape(-1, count))
    return normalized(a, call.output, rows, eps, call.argument(2, "weight"), False)


def _group_norm(a: Operand, call: FunctionCall) -> Known:
    eps, groups = call.argument(4, "eps", 1e-5), call.argument(1, "num_groups")
    return of_groups(a, call, groups, eps, call.argument(2, "weight"))


def of_groups(a: Operand, call: FunctionCall, groups: int, eps: float, gain: Tensor | None) -> Known:
    """Of channels in groups: the rows are the groups."""
    gain = None if gain is None else gain.reshape(-1, *[1] * (a.value.ndim - 2))
    rows = Rows(a.value.reshape(a.value.shape[0] * groups, -1))
    return normalized(a, call.output, rows, eps, gain, True)


NORMALIZATIONS: dict[str, Callable[[Operand, FunctionCall], Known]] = {
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
}
"""By the name of a function of torch."""
