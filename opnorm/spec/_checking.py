"""What is wrong with a call, as far as that can be said before the module of its function, and torch, are loaded."""

import inspect
from typing import Any

from opnorm.errors import SpecError
from opnorm.spec._annotations import misfit
from opnorm.spec._binding import bind
from opnorm.spec._registry import INSIDE, check_package, choose, kind_inside, names
from opnorm.spec._source import signatures
from opnorm.spec._syntax import Call, map_calls, parse

__all__ = ["check", "check_name", "known_names"]


def check(text: str | Call, kind: str | None = None) -> Call:
    """Check the names, parameters and types of a call, and of those inside it; nothing is imported or run.

    What passes may still be refused by :func:`opnorm.spec.build`: the values by the function, and the user's own functions,
    of which only the package is looked for.

    Args:
        text: a call, or its text.
        kind: the family its name belongs to (a key of ``FAMILIES``), or None for any.

    Returns:
        The call.

    Raises:
        SpecError: what :func:`opnorm.spec.build` would refuse as well.
    """
    call, bound = parse(text), None
    if (signature := check_name(call, kind)) is not None:
        bound = bind(call, signature)
    map_calls(call, lambda inner: check(inner, kind_inside(inner, kind, signatures)))
    if bound is not None:
        bound.arguments = {k: v for k, v in bound.arguments.items() if not _has_call(v)}
        if why := misfit(bound):
            raise SpecError(f"{call.name}(): {why}")
    return call


def check_name(call: Call, kind: str | None = None) -> inspect.Signature | None:
    """The signature of the function that a call names; None where it is not known before the function is imported.

    Args:
        call: a call.
        kind: as for :func:`check`.

    Raises:
        SpecError: there is no such name, or no such package.
    """
    if "." in call.name:
        check_package(call.name)
        return None
    if not all(map(signatures, [kind] if kind else INSIDE)):
        return None  # the package is installed without its source
    return choose(call, kind, signatures, lambda signature: signature)


def known_names(kind: str) -> list[str]:
    """The names of a family, as :func:`opnorm.spec.names` gives them, without importing it where its source is there."""
    return sorted(signatures(kind)) or names(kind)


def _has_call(value: Any) -> bool:
    """Whether a value is not known before the function of a call is called."""
    return isinstance(value, Call) or (isinstance(value, tuple) and any(map(_has_call, value)))
