"""The arguments of a call and the parameters of a function; what is wrong with them in one line."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from opnorm.errors import SpecError, did_you_mean
from opnorm.spec._made import spec_of
from opnorm.spec._syntax import Call, to_text

__all__ = ["bind", "signature_of"]


@functools.lru_cache(maxsize=1000)  # a study reads its calls a hundred thousand times
def signature_of(function: Callable[..., Any], name: str) -> inspect.Signature:
    """The signature of a function; SpecError where Python cannot read it."""
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        raise SpecError(f"{name}() has no readable signature; wrap it in a function of your own") from None


def bind(call: Call, signature: inspect.Signature) -> inspect.BoundArguments:
    """The arguments of a call, by parameter; SpecError where they do not fit."""
    kinds = {p.name: p.kind for p in signature.parameters.values()}
    accepted = [n for n, k in kinds.items() if k not in (k.VAR_POSITIONAL, k.VAR_KEYWORD)]
    open_ended = any(k is k.VAR_KEYWORD for k in kinds.values())
    keys = [key for key, _ in call.kwargs]
    for key in keys:
        if key not in accepted and not open_ended:
            raise SpecError(
                f"{call.name}() has no parameter {key!r}{did_you_mean(key, accepted)}; {_usage(signature)}"
            )
        if keys.count(key) > 1:
            raise SpecError(f"{call.name}() got {key!r} twice; {_usage(signature)}")
    try:
        return signature.bind(*call.args, **dict(call.kwargs))
    except TypeError as e:
        raise SpecError(f"{call!s:.200}: {e}; {_usage(signature)}") from None


def _usage(signature: inspect.Signature) -> str:
    """Such as "it accepts: lam, p=inf"."""
    texts = [
        p.name if p.default is p.empty else f"{p.name}={_text(p.default)}"
        for p in signature.parameters.values()
    ]
    return f"it accepts: {', '.join(texts) or 'no arguments'}"


def _text(default: Any) -> str:
    """A default as a message shows it: an object as the call that made it."""
    if isinstance(default, float | Call):
        return to_text(default)
    if default is None or isinstance(default, bool | int | str | tuple):
        return repr(default)
    try:
        return str(spec_of(default))
    except SpecError:
        return repr(default)
