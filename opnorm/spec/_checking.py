"""What is wrong with a call, as far as that can be said before the module of its function, and torch, are loaded."""

import inspect
from typing import Any

from opnorm.errors import SpecError
from opnorm.spec._annotations import misfit
from opnorm.spec._binding import bind, signature_of
from opnorm.spec._registry import INSIDE, check_package, choose, kind_inside, names, resolve
from opnorm.spec._source import Source, sources
from opnorm.spec._syntax import Call, map_calls, parse, to_text

__all__ = ["arguments", "check", "check_name", "known_names"]


def check(text: str | Call, kind: str | None = None) -> Call:
    """Check the names, parameters, types and values of a call, and of those inside it; what they name is not imported.

    A function of opnorm begins with the checks of its values, lines ``check_...(...)``, and these are carried out here. What
    passes may still be refused by :func:`opnorm.spec.build`: what is wrong with a file, for example, and the user's own
    functions, of which only the package is looked for.

    Args:
        text: a call, or its text.
        kind: the family its name belongs to (a key of ``FAMILIES``), or None for any.

    Returns:
        The call.

    Raises:
        SpecError: what :func:`opnorm.spec.build` would refuse as well.
    """
    call = parse(text)
    source = check_name(call, kind)
    bound = None if source is None else bind(call, source.signature)
    map_calls(call, lambda inner: check(inner, kind_inside(inner, kind, sources)))
    if source is not None and bound is not None:
        _check_arguments(call.name, source, bound)
    return call


def _check_arguments(name: str, source: Source, bound: inspect.BoundArguments) -> None:
    """OpnormError where an argument has another type than its parameter, or a value that the function refuses."""
    parameters, given = source.signature.parameters, bound.arguments
    for k, v in given.items():
        if isinstance(v, Call) and "." not in v.name and parameters[k].annotation in (str, str | None):
            raise SpecError(f"{name}(): {k}={v}: expected a text, which is in quotes: {k}={to_text(str(v))}")
    bound.arguments = {k: v for k, v in given.items() if not _has_call(v)}
    if why := misfit(bound):
        raise SpecError(f"{name}(): {why}")
    values = {k: p.default for k, p in parameters.items()} | given
    for check in source.checks:
        if not any(_has_call(given.get(k)) and parameters[k].annotation is not Any for k in check.names):
            check.carry_out(values)


def check_name(call: Call, kind: str | None = None) -> Source | None:
    """The source of the function that a call names; None where it is not known before the function is imported.

    Args:
        call: a call.
        kind: as for :func:`check`.

    Raises:
        SpecError: there is no such name, or no such package.
    """
    if "." in call.name:
        check_package(call.name, known_names(kind) if kind == "study" else ())
        return None
    if not all(map(sources, [kind] if kind else INSIDE)):
        return None  # the package is installed without its source
    return choose(call, kind, sources, lambda source: source.signature)


def arguments(call: Call, kind: str | None = None) -> dict[str, Any]:
    """The arguments of a call by parameter; opnorm's own functions are not imported where their source is there.

    Args:
        call: a call.
        kind: as for :func:`check`.

    Returns:
        Parameter -> value, of those given; none for the user's own function.

    Raises:
        SpecError: there is no such name, or the arguments do not fit.
    """
    source = check_name(call, kind)
    if "." in call.name:
        return {}
    signature = source.signature if source else signature_of(resolve(call, kind), call.name)
    return bind(call, signature).arguments


def known_names(kind: str) -> list[str]:
    """The names of a family, as :func:`opnorm.spec.names` gives them, without importing it where its source is there."""
    return sorted(sources(kind)) or names(kind)


def _has_call(value: Any) -> bool:
    """Whether a value is not known before the function of a call is called."""
    return isinstance(value, Call) or (isinstance(value, tuple) and any(map(_has_call, value)))
