"""From an object back to the call that made it."""

import weakref
from typing import Any

from opnorm.errors import SpecError
from opnorm.spec._syntax import Call, Value

__all__ = ["remember", "spec_of", "to_value"]

_made_by: "weakref.WeakKeyDictionary[Any, Call]" = weakref.WeakKeyDictionary()


def spec_of(made: Any) -> Call:
    """The call that made an object.

    Raises:
        SpecError: it was not made by one of opnorm's factories or by :func:`build`.
    """
    try:
        return _made_by[made]
    except (KeyError, TypeError):
        raise SpecError(
            f"{type(made).__name__} {made!r:.60} was not made by a named factory, so it has no text; expected what a "
            "function under @opnorm.spec.factory(KIND) makes, or a call as text: 'package.module.function(...)'"
        ) from None


def remember(made: Any, call: Call) -> None:
    """Keep, beside the object, the call that made it; an object that cannot be referred to weakly has no text.

    The outermost call counts: ``file("w.pt")`` makes a network by ``resnet()``, and then fills it.
    """
    try:
        _made_by[made] = call
    except TypeError:
        return


def to_value(value: Any) -> Value:
    """An argument as a value of the call syntax; SpecError for an object that has no text."""
    if value is None or isinstance(value, bool | int | float | str | Call):
        return value
    if isinstance(value, tuple | list):
        return tuple(to_value(v) for v in value)
    return spec_of(value)
