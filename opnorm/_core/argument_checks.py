"""Checks of what a caller passes: networks, shapes, tensors. A message names the value, the expected form, the cause."""

import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from opnorm.errors import ModelError, NormError, OpnormError

if TYPE_CHECKING:
    from functools import _SingleDispatchCallable

__all__ = ["as_shape", "by_layer_type", "check_module", "check_tensor", "named"]

Result = TypeVar("Result")


def named(value: object) -> str:
    """What a value is, for a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)[:60]
    return f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"


def check_module(value: object, who: str = "") -> None:
    """ModelError, which names ``who``, unless a value is a ``torch.nn.Module``."""
    if isinstance(value, nn.Module):
        return
    cause = ""
    if isinstance(value, type):
        cause = f"; call it: {value.__name__}(...)"
    elif isinstance(value, Tensor):
        cause = "; pass the layer that has this weight"
    elif isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values()):
        cause = "; a state dict has no forward: load it into a network, model.load_state_dict(...)"
    elif isinstance(value, str):
        cause = f"; opnorm.build({value[:60]!r}, 'model') builds one from a call"
    start = f"{who}: " if who else ""
    raise ModelError(f"{start}{named(value)} is no network; expected a torch.nn.Module{cause}")


def as_shape(
    value: object,
    name: str = "in_shape",
    what: str = "the shape of one input without the batch axis, such as (3, 32, 32)",
) -> tuple[int, ...]:
    """A shape as a tuple of ints; ``name`` and ``what`` it is are for the message.

    Raises:
        NormError: it is something else, or has a negative size.
    """
    if not isinstance(value, str | bytes | Tensor | Mapping):
        try:
            shape = tuple(operator.index(size) for size in value)  # type: ignore[attr-defined] # checked by trying
        except TypeError:
            shape = (-1,)
        if min(shape, default=0) >= 0:
            return shape
    raise NormError(f"{name}={value!r:.60}: expected {what}")


def check_tensor(name: str, value: object, what: str, error: type[OpnormError]) -> None:
    """Raise ``error`` unless a value is a dense tensor; ``what`` is expected of it."""
    if not isinstance(value, Tensor):
        cause = ""
        if type(value).__module__ == "numpy":
            cause = "; torch.from_numpy(...) converts it"
        elif isinstance(value, list | tuple):
            cause = "; torch.tensor(...) or torch.stack(...) converts it"
        raise error(f"{name}: {named(value)}; expected {what} as a torch.Tensor{cause}")
    if value.layout != torch.strided:
        raise error(f"{name}: a tensor of layout {value.layout}; expected a dense one: call .to_dense()")


def by_layer_type(function: Callable[..., Result]) -> "_SingleDispatchCallable[Result]":
    """``functools.singledispatch`` on the type of a layer, after a check of the layer and of ``in_shape``."""
    dispatched: Any = functools.singledispatch(function)
    names = list(inspect.signature(function).parameters)
    place = names.index("in_shape")

    @functools.wraps(function)
    def checked(layer: Any, *args: Any, **kwargs: Any) -> Result:
        check_module(layer)
        given = list(args)
        if len(given) >= place:
            given[place - 1] = as_shape(given[place - 1])
        elif "in_shape" in kwargs:
            kwargs["in_shape"] = as_shape(kwargs["in_shape"])
        return dispatched(layer, *given, **kwargs)

    for name in ("register", "dispatch", "registry"):
        setattr(checked, name, getattr(dispatched, name))
    return checked  # type: ignore[return-value]
