"""Checks of inputs and outputs of an attack; errors name the likely cause."""

import math
from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import check_module, check_tensor
from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm.errors import AttackError, OpnormError

__all__ = [
    "are_probabilities",
    "check_classes",
    "check_inputs",
    "check_logits",
    "explained",
    "logits_notes",
]

Outcome = TypeVar("Outcome")


def check_inputs(x: Tensor, y: Tensor) -> None:
    """Pixels in [0, 1], one label each.

    Raises:
        AttackError: with the value found and the likely cause.
    """
    _check_tensors(x, y)
    if not x.is_floating_point():
        raise AttackError(
            f"inputs are {x.dtype}; expected floating point in [0, 1]: divide uint8 pixels by 255"
        )
    _check_labels(x, y)
    if x.ndim < 2 or not math.prod(x.shape[1:]):
        raise AttackError(
            f"inputs of shape {tuple(x.shape)}: expected (B, ...), such as vectors (B, F), sequences (B, C, T) or "
            "images (B, C, H, W), with at least one value each"
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


def check_classes(logits: Tensor, points: int) -> None:
    """One row of at least two class scores for each point.

    Raises:
        AttackError: the model returns another shape, or whole numbers.
    """
    shape, expected = tuple(logits.shape), f"expected logits of shape ({points}, classes)"
    if shape == (points,):
        expected += "; if this is one logit z a point, return torch.stack([torch.zeros_like(z), z], 1)"
    if len(shape) != 2 or shape[0] != points:
        raise AttackError(f"the model returns a tensor of shape {shape}; {expected}")
    if not logits.is_floating_point():
        raise AttackError(
            f"the model returns {logits.dtype}; expected logits, which are floating point numbers"
        )
    if shape[1] < 2:
        raise AttackError(
            "the model has 1 class: there is no other one to mistake a point for; if it returns one logit z, "
            "return torch.cat([torch.zeros_like(z), z], 1)"
        )


def _check_tensors(x: object, y: object) -> None:
    check_tensor("inputs", x, "a batch (B, ...) in [0, 1]", AttackError)
    check_tensor("labels", y, "one int64 label for each input", AttackError)


def _check_labels(x: Tensor, y: Tensor) -> None:
    """One int64 label for each input."""
    if y.shape == x.shape[:1] and y.dtype == torch.int64:
        return
    cause = ": y.long() converts whole numbers"
    if y.ndim == 2 and y.shape[:1] == x.shape[:1]:
        cause = ": one-hot? y.argmax(1)" if y.shape[1] > 1 else ": y.squeeze(1)"
    elif y.shape != x.shape[:1]:
        cause = "; is the batch axis of one of them missing?"
    raise AttackError(
        f"inputs of shape {tuple(x.shape)} and {y.dtype} labels of shape {tuple(y.shape)}; "
        f"expected one int64 label for each input{cause}"
    )


def explained(objective: Callable[..., Outcome]) -> Callable[..., Outcome]:
    """An objective (model, x, y) -> outcome whose errors name the argument that is wrong.

    Labels that name no class are an error on a CPU, where finding them costs nothing; torch ignores some of them.
    """

    def checked(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        check_module(model)
        _check_tensors(x, y)
        if not len(x):
            raise AttackError("the batch is empty; expected at least one input")
        whole = y.ndim == 1 and not y.is_floating_point() and y.device.type == "cpu"
        if whole and int(y.min()) < 0:
            raise AttackError(
                f"labels range from {int(y.min())} to {int(y.max())}; expected classes from 0 on"
            )
        try:
            return objective(model, x, y)
        except (OpnormError, torch.OutOfMemoryError):
            raise
        except Exception:
            _check_labels(x, y)
            with evaluating(model):
                check_logits(output_of(model, x), y)
            raise

    return checked


def check_logits(logits: Tensor, y: Tensor) -> None:
    """One row of class scores for each label.

    Raises:
        AttackError: the model returns something else, or a label names no class.
    """
    check_classes(logits, len(y))
    if len(y) and not (int(y.min()) >= 0 and int(y.max()) < logits.shape[1]):
        raise AttackError(
            f"labels range from {int(y.min())} to {int(y.max())}, but the model has {logits.shape[1]} classes"
        )
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(1).sum())
        raise AttackError(
            f"the model returns NaN or infinity for {bad} of {len(logits)} points; diverged training?"
        )


def are_probabilities(logits: Tensor) -> bool:
    """Whether all outputs (B, K) are from 0 on, with the sum 1 at each point."""
    return bool((logits >= 0).all() and ((logits.sum(1) - 1).abs() < 1e-3).all())


def logits_notes(logits: Tensor, attacks: Collection[str], *, random: bool) -> list[str]:
    """Remarks on the clean logits (B, K) of a model that the named attacks are run on, each a sentence."""
    notes, classes = [], logits.shape[1]
    if not random and are_probabilities(logits):
        notes.append(
            "the model seems to return probabilities, not logits: their gradients vanish where it is sure, "
            "and a robust accuracy from them is too high"
        )
    for name, needed in (("apgd-dlr", 3), ("apgd-t", 4)):
        if name in attacks and classes < needed:
            notes.append(
                f"the DLR loss of {name.upper()} needs {needed} classes, the model has {classes}: "
                "the difference of two logits replaces it"
            )
    if classes < 10 and {"apgd-t", "fab-t"} & set(attacks):
        notes.append(f"with {classes} classes there are {classes - 1} targets, not 9")
    return notes
