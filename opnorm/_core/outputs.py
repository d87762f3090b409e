"""What a model returns, as one tensor: some return an object with ``logits``, a dict or a tuple."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opnorm.errors import ModelError

__all__ = ["one_tensor", "output_of", "raw_output_of"]

NAMES = ("logits", "last_hidden_state")
"""What an output that has several tensors calls the one that is meant."""


def output_of(model: nn.Module, x: Tensor) -> Tensor:
    """The model's output for a copy of x, which it may write to; see :func:`one_tensor`.

    Raises:
        ModelError: the model does not take such inputs, or returns no tensor, several, or complex numbers.
    """
    tensor = one_tensor(raw_output_of(model, x))
    if tensor.is_complex():
        raise ModelError(
            f"{type(model).__name__} returns {tensor.dtype}; expected real numbers: torch.view_as_real or abs() of them"
        )
    return tensor


def raw_output_of(model: nn.Module, x: Tensor) -> Any:
    """What the model itself returns for a copy of x, which it may write to.

    Raises:
        ModelError: the model does not take such inputs.
    """
    try:
        return model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except (
        RuntimeError,
        TypeError,
        ValueError,
        IndexError,
    ) as e:  # what torch raises where shapes or types do not fit
        weight = next((p for p in model.parameters() if p.is_floating_point()), x)
        cause = (
            f"; its weights are {weight.dtype}: model.to({x.dtype}) converts it"
            if weight.dtype != x.dtype
            else ""
        )
        raise ModelError(
            f"{type(model).__name__} does not take inputs of shape {tuple(x.shape)} and type {x.dtype}: {e}; expected a "
            f"batch (B, ...) of what it was made for{cause}"
        ) from e


def one_tensor(output: Any) -> Tensor:
    """The tensor that an output consists of.

    A tensor is itself. Of a mapping, a dataclass or a named tuple it is what is called ``logits``, else
    ``last_hidden_state``, as of the encoders of transformers; else its only tensor, as of a tuple, a list or a mapping of
    one.

    Raises:
        ModelError: there is no tensor, or there are several, which are named.
    """
    if isinstance(output, Tensor):
        return output
    parts = _parts(output)
    tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
    for name in NAMES:
        if name in tensors:
            return tensors[name]
    if len(tensors) == 1:
        return next(iter(tensors.values()))
    kind = type(output).__name__
    if not tensors:
        raise ModelError(f"the model returns {kind} without a tensor; expected logits of shape (B, classes)")
    named = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    raise ModelError(
        f"the model returns {kind} with {len(tensors)} tensors: {named}; expected one tensor, or one that is called "
        "'logits': wrap the model and return the one that is meant"
    )


def _parts(output: Any) -> dict[str, Any]:
    """The parts of an output by name; those of a tuple or list by number."""
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items()}
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields(output)}
    if isinstance(output, tuple | list):
        names = getattr(output, "_fields", range(len(output)))
        return {str(name): part for name, part in zip(names, output, strict=True)}
    return vars(output) if hasattr(output, "__dict__") else {}
