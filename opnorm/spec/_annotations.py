"""Whether a value has the type of a parameter, and that type in words: for the message about a call that failed."""

import collections.abc
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

__all__ = ["misfit"]

WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "True or False", type(None): "None"}
SEVERAL = (tuple, list, collections.abc.Sequence, collections.abc.Iterable)


def misfit(function: Callable[..., Any], given: Mapping[str, Any]) -> str:
    """The first argument that has not the type of its parameter, with what was expected; empty where all have it."""
    parameters = inspect.signature(function).parameters
    for name, value in given.items():
        hint = parameters[name].annotation if name in parameters else Any
        if not _fits(value, hint):
            return f"{name}={value!r:.60}: expected {_words(hint)}"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has a type; true for types that are not among those of the call syntax."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return value in parts
    if origin in SEVERAL:
        if not isinstance(value, tuple | list):
            return False
        if origin is tuple and parts[-1] is not ...:
            return len(value) == len(parts) and all(map(_fits, value, parts))
        return all(_fits(item, parts[0]) for item in value)
    if hint is None or hint in WORDS:
        kind = {int: int, float: int | float, None: types.NoneType}.get(hint, hint)
        return isinstance(value, kind) and (hint is bool or not isinstance(value, bool))
    return True


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_words, parts))
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in SEVERAL:
        fixed = origin is tuple and parts[-1] is not ...
        return f"({', '.join(map(_words, parts))})" if fixed else f"({_words(parts[0])}, ...)"
    return WORDS.get(hint, getattr(hint, "__name__", str(hint)))
