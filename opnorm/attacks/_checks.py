"""What an attack asks of its inputs and of the model, with the likely cause where it is not so."""

import math

import torch
from torch import Tensor

from opnorm.errors import AttackError

__all__ = ["check_inputs", "check_logits", "is_amount"]


def is_amount(value: object) -> bool:
    """A number from 0 on, finite; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def check_inputs(x: Tensor, y: Tensor) -> None:
    """Pixels in [0, 1], one label each.

    Raises:
        AttackError: with the value found and the likely cause.
    """
    if not x.is_floating_point():
        raise AttackError(
            f"inputs are {x.dtype}; expected floating point in [0, 1]: divide uint8 pixels by 255"
        )
    if y.shape != x.shape[:1] or y.dtype != torch.int64:
        raise AttackError(
            f"inputs of shape {tuple(x.shape)} and {y.dtype} labels of shape {tuple(y.shape)}; "
            "expected one int64 label for each input"
        )
    if not len(x):
        return
    low, high = float(x.min()), float(x.max())
    if math.isnan(low) or math.isnan(high):
        raise AttackError(
            f"{int(x.isnan().flatten(1).any(1).sum())} of {len(x)} inputs contain NaN; expected [0, 1]"
        )
    if low < 0 or high > 1:
        raise AttackError(
            f"inputs range from {low:.4g} to {high:.4g}; expected [0, 1]: put the normalization into the model"
        )


def check_logits(logits: object, y: Tensor) -> None:
    """One row of class scores for each label.

    Raises:
        AttackError: the model returns something else, or a label names no class.
    """
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        got = (
            f"a tensor of shape {tuple(logits.shape)}"
            if isinstance(logits, Tensor)
            else type(logits).__name__
        )
        raise AttackError(f"the model returns {got}; expected logits of shape ({len(y)}, classes)")
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < logits.shape[1]):
        raise AttackError(
            f"labels range from {int(y.min())} to {int(y.max())}, but the model has {logits.shape[1]} classes"
        )
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise AttackError(
            f"the model returns NaN or infinity for {bad} of {len(logits)} points; diverged training?"
        )
