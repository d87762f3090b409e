"""The call syntax: ``pgd(norm=inf, eps=8/255)`` is an argument, a record, a key and a label.

A :class:`Call` is a name with arguments. :func:`parse` reads it from text: literals and arithmetic only, and nothing is
run or imported. :func:`build` makes the object: the name is looked up among the functions registered by
:func:`factory`, or, when it is dotted, in the user's own package. :func:`spec_of` gives the call that made an object. So

    string -> Call -> object -> Call -> string

ends where it began. There is no other registry and no other configuration language.
"""

from opnorm.spec._registry import (
    FAMILIES,
    build,
    factory,
    fill,
    full,
    names,
    resolve,
    short,
    spec_of,
    stated,
)
from opnorm.spec._syntax import Call, calls_in, map_calls, parse

__all__ = [
    "FAMILIES",
    "Call",
    "build",
    "calls_in",
    "factory",
    "fill",
    "full",
    "map_calls",
    "names",
    "parse",
    "resolve",
    "short",
    "spec_of",
    "stated",
]
