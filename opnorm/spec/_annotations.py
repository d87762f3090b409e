"""Whether the arguments of a call have the types of their parameters, and these types in words."""

import collections.abc
import inspect
import numbers
import types
from collections.abc import Callable
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

from opnorm.errors import OpnormError, SpecError

__all__ = ["called", "misfit"]

R = TypeVar("R")
WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
SEVERAL = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)
KINDS: dict[Any, Any] = {int: numbers.Integral, float: numbers.Real, None: types.NoneType}


def misfit(given: inspect.BoundArguments, *, only: Any = None) -> str:
    """The first argument that has not the type of its parameter, with what was expected; empty where all have it.

    A parameter's default fits, whatever its type. With ``only``, parameters of this type are looked at and no others.
    """
    for name, value in given.arguments.items():
        parameter = given.signature.parameters[name]
        hint = parameter.annotation
        various = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if various or hint is parameter.empty or value is parameter.default:
            continue
        if only in (None, hint) and not _fits(value, hint):
            return f"{name}={value!r:.60}: expected {_words(hint)}"
    return ""


def called(function: Callable[..., R], name: str, signature: inspect.Signature, args: Any, kwargs: Any) -> R:
    """``function(*args, **kwargs)``; SpecError where an argument has not the type that its parameter states.

    What the function says itself about an argument comes first, but for True and False, which few functions look at.
    """
    try:
        given = signature.bind(*args, **kwargs)
    except TypeError as e:
        raise TypeError(f"{name}() {e}") from None
    if why := misfit(given, only=bool):
        raise SpecError(f"{name}(): {why}")
    try:
        result = function(*args, **kwargs)
    except OpnormError:
        raise
    except Exception as e:
        if why := misfit(given):
            raise SpecError(f"{name}(): {why}") from e
        raise
    if why := misfit(given):
        raise SpecError(f"{name}(): {why}")
    return result


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type; true for types that are not among those of the call syntax.

    Numbers and arrays of numpy and torch are as good as Python's own.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == part and isinstance(value, bool) == isinstance(part, bool) for part in parts)
    if origin is collections.abc.Callable or _is_callable_protocol(hint):
        return callable(value)
    if hint in WORDS or origin in SEVERAL:
        value = value.tolist() if hasattr(value, "tolist") else value  # of numpy and torch
    if origin in SEVERAL:
        kind = collections.abc.Iterable if origin is collections.abc.Iterable else collections.abc.Sequence
        if isinstance(value, str | bytes) or not isinstance(value, kind):
            return False
        if origin is tuple and parts[-1] is not ... and isinstance(value, collections.abc.Sequence):
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(item, parts[0]) for item in value)
    if hint is None or hint in WORDS:
        kind = KINDS.get(hint, hint)
        return isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
    return isinstance(value, hint) if type(hint) is type else True


def _is_callable_protocol(hint: Any) -> bool:
    """Whether a type is a protocol of functions, such as that of attacks."""
    return bool(getattr(hint, "_is_protocol", False)) and "__call__" in vars(hint)


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in SEVERAL:
        fixed = origin is tuple and parts[-1] is not ...
        return f"({', '.join(map(_words, parts))})" if fixed else f"({_words(parts[0])}, ...)"
    if origin is collections.abc.Callable:
        return "a function"
    name = getattr(hint, "__name__", str(hint))
    return WORDS.get(hint, f"{'an' if name[0] in 'AEIOU' else 'a'} {name}")
