"""The call syntax: ``pgd(norm=inf, eps=8/255)`` is an argument, a record, a key and a label.

A :class:`Call` is a name with arguments. :func:`parse` reads it from text: literals and arithmetic only, and nothing is
run or imported. :func:`check` says what is wrong with its names and types, still without importing what they name.
:func:`build` makes the object: the name is looked up among the functions registered by :func:`factory`, or, when it is
dotted, in the user's own package. :func:`spec_of` gives the call that made an object. So

    string -> Call -> object -> Call -> string

ends where it began. There is no other registry and no other configuration language.
"""

from opnorm.spec._canonical import full, short, stated
from opnorm.spec._checking import arguments, check, check_name, known_names
from opnorm.spec._made import spec_of
from opnorm.spec._place import place_of
from opnorm.spec._registry import FAMILIES, build, factory, fill, names, resolve
from opnorm.spec._syntax import Call, calls_in, map_calls, parse, part_call

__all__ = [
    "FAMILIES",
    "Call",
    "arguments",
    "build",
    "calls_in",
    "check",
    "check_name",
    "factory",
    "fill",
    "full",
    "known_names",
    "map_calls",
    "names",
    "parse",
    "part_call",
    "place_of",
    "resolve",
    "short",
    "spec_of",
    "stated",
]
