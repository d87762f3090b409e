"""Dataclasses of tensors with one row for each job, and values that broadcast against images."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["column", "concatenate", "select", "where"]

T = TypeVar("T")


def select(rows: T, kept: Tensor) -> T:
    """Some rows, by their numbers or by a truth value for each, of a dataclass of tensors and of dataclasses within it."""
    # takes a seventh of the time of ``value[kept]`` for images of 64 numbers
    numbers = kept.nonzero().squeeze(1) if kept.dtype == torch.bool else kept
    return _map(lambda value: value.index_select(0, numbers), rows)


def concatenate(first: T, second: T) -> T:
    """The rows of two dataclasses of one kind."""
    return _map(lambda *values: torch.cat(values), first, second)


def _map(function: Callable[..., Tensor], *rows: Any) -> Any:
    changed = {}
    for field in fields(rows[0]):
        values = [getattr(r, field.name) for r in rows]
        if isinstance(values[0], Tensor):
            changed[field.name] = function(*values)
        elif is_dataclass(values[0]):
            changed[field.name] = _map(function, *values)
    return replace(rows[0], **changed)


def column(values: Tensor, z: Tensor) -> Tensor:
    """One value a row (R,), or a row and channel (R, C), in the type of the images z and a shape that broadcasts."""
    values = values.to(z.dtype) if values.is_floating_point() else values
    return values.reshape(*values.shape, *[1] * (z.ndim - values.ndim))


def where(rows: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    """Images of ``yes`` where the row is true, otherwise of ``no``."""
    return torch.where(column(rows, yes), yes, no)
