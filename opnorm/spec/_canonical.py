"""The canonical forms of a call: with all arguments, with those stated, with those that are no defaults."""

import functools
from typing import Any, Literal

from opnorm.spec._binding import bind, signature_of
from opnorm.spec._made import spec_of
from opnorm.spec._registry import kind_inside, members_of, resolve
from opnorm.spec._syntax import Call, Value, calls_in, parse

__all__ = ["full", "short", "stated"]


def full(text: str | Call, kind: str | None = None) -> Call:
    """The call with every argument named and every default written out: what a run's key is made of."""
    return _form(text, kind, "all")


def stated(text: str | Call, kind: str | None = None) -> Call:
    """The call with its own arguments, each named: what is built."""
    return _form(text, kind, "stated")


def short(text: str | Call, kind: str | None = None) -> Call:
    """The call without the arguments that equal their defaults: what a table's row is called."""
    return _form(text, kind, "not default")


Arguments = Literal["all", "stated", "not default"]


def _form(text: str | Call, kind: str | None, which: Arguments) -> Call:
    known = _known(text, kind, which) if isinstance(text, str) else None
    return known or _canonical(parse(text), kind, which)


@functools.lru_cache(maxsize=10_000)  # the keys of a study's runs are made of the same calls, again and again
def _known(text: str, kind: str | None, which: Arguments) -> Call | None:
    """The canonical form of a call of opnorm's own functions; the user's may be others the next time: None."""
    call = parse(text)
    own = all("." not in inner.name for inner in calls_in(call))
    return _canonical(call, kind, which) if own else None


def _canonical(call: Call, kind: str | None, which: Arguments) -> Call:
    bound = bind(call, signature_of(resolve(call, kind), call.name))
    parameters = bound.signature.parameters
    if which == "all":
        bound.apply_defaults()
    # what precedes filled *args has no other way to be passed than by position
    by_position = any(p.kind is p.VAR_POSITIONAL and bound.arguments.get(p.name) for p in parameters.values())
    args: list[Any] = []
    pairs: list[tuple[str, Any]] = []
    for key, value in bound.arguments.items():
        p = parameters[key]
        if p.kind is p.VAR_POSITIONAL:
            args += value
        elif p.kind is p.VAR_KEYWORD:
            pairs += value.items()
        elif p.kind is p.POSITIONAL_ONLY or (by_position and p.kind is p.POSITIONAL_OR_KEYWORD):
            args.append(value)
        elif which != "not default" or not _is_default(value, p.default):
            pairs.append((key, value))
    values = tuple(_canonical_value(v, kind, which) for v in args)
    return Call(call.name, values, tuple((k, _canonical_value(v, kind, which)) for k, v in pairs))


def _canonical_value(value: Any, kind: str | None, which: Arguments) -> Value:
    if isinstance(value, tuple | list):
        return tuple(_canonical_value(v, kind, which) for v in value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 2.0 and 2 are one setting, so they must be one text
    if value is None or isinstance(value, bool | int | float | str):
        return value
    # a default may be an object, such as attack=pgd()
    inner = value if isinstance(value, Call) else spec_of(value)
    return _canonical(inner, kind_inside(inner, kind, members_of), which)


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, Call) and callable(default) and not isinstance(default, type):
        return full(value) == full(spec_of(default))
    return isinstance(value, bool) == isinstance(default, bool) and value == default
