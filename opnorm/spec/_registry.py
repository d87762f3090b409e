"""From a call to the object that it names: the families of names, and their functions."""

import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from opnorm.errors import OpnormError, SpecError, did_you_mean
from opnorm.spec._annotations import called, misfit
from opnorm.spec._binding import bind, signature_of
from opnorm.spec._hints import check_no_file, hint
from opnorm.spec._made import remember, to_value
from opnorm.spec._place import place_of
from opnorm.spec._syntax import Call, Value, map_calls, parse

__all__ = [
    "FAMILIES",
    "build",
    "check_package",
    "choose",
    "factory",
    "fill",
    "kind_inside",
    "members_of",
    "names",
    "resolve",
]

FAMILIES = {
    "model": "opnorm.models",
    "data set": "opnorm.data",
    "augmentation": "opnorm.data.augmentations",
    "objective": "opnorm.objectives",
    "regularizer": "opnorm.regularizers",
    "attack": "opnorm.attacks",
    "certificate": "opnorm.certificates._proof",
    "optimizer": "opnorm.training.optimizers",
    "schedule": "opnorm.training.schedules",
    "analysis": "opnorm.analyses",
    "study": "opnorm.studies",
}
"""What a name can be, and the module that registers the names of this family when it is imported."""

INSIDE = tuple(kind for kind in FAMILIES if kind != "study")
"""Families whose calls can be arguments: a study reads texts as calls, unseen by those who ask what a call would run."""

TWO_FAMILIES = ("hf",)
"""Names of more than one family; without a family, the first one that takes the arguments is meant."""

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_registry: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in FAMILIES}


# ---------------------------------------------------------------- names


def factory(kind: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function of opnorm under its name; what it makes remembers the call: ``spec_of(pgd(steps=5))``.

    A function of another package keeps its dotted name in the call syntax, so that every process finds it.

    Args:
        kind: the family of what it makes, a key of ``FAMILIES``.
    """
    if kind not in FAMILIES:
        raise SpecError(f"kind={kind!r}: expected one of {', '.join(FAMILIES)}; as in @factory('attack')")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = function.__module__.split(".")[0] == "opnorm"
        name = function.__name__ if own else f"{function.__module__}.{function.__qualname__}"

        @functools.wraps(function)
        def made(*args: P.args, **kwargs: P.kwargs) -> R:
            result = called(function, name, signature, args, kwargs)
            arguments = signature.bind(*args, **kwargs).arguments
            with suppress(SpecError):  # a tensor or a lambda was passed: the object works, but has no text
                remember(result, Call(name, (), tuple((k, to_value(v)) for k, v in arguments.items())))
            return result

        made.__signature__ = signature  # type: ignore[attr-defined]  # inspect works it out at every call otherwise
        if own:
            _registry[kind][name] = made
        return made

    return decorate


def names(kind: str) -> list[str]:
    """The names of a family: ``names("attack")`` is ``["apgd", "autoattack", ...]``."""
    return sorted(members_of(kind))


def members_of(kind: str) -> dict[str, Callable[..., Any]]:
    """The functions of a family by name; imports the module that registers them."""
    if kind not in FAMILIES:
        raise SpecError(f"kind={kind!r:.60}: expected one of {', '.join(FAMILIES)}")
    _import(FAMILIES[kind])
    return _registry[kind]


_import = functools.cache(importlib.import_module)


def resolve(call: Call, kind: str | None = None) -> Callable[..., Any]:
    """The function that a call names.

    Args:
        call: what to look up.
        kind: its family (a key of ``FAMILIES``); None for any but studies, of several the first that takes the arguments.

    Raises:
        SpecError: unknown name, with the closest known ones.
    """
    if "." in call.name:
        return _resolve_dotted(call.name)
    return choose(call, kind, members_of, lambda function: signature_of(function, call.name))


def choose(
    call: Call,
    kind: str | None,
    members: Callable[[str], Mapping[str, T]],
    signature: Callable[[T], inspect.Signature],
) -> T:
    """Of the members of the families, by name, the one that a call names.

    Args:
        call: what to look up; its name is not dotted.
        kind: as in :func:`resolve`.
        members: family -> its members by name.
        signature: of a member.

    Raises:
        SpecError: unknown name, with the closest known ones.
    """
    families = [kind] if kind else INSIDE
    for family in families:
        member = members(family).get(call.name)
        if member is not None and (kind or _is_meant(call, signature(member))):
            return member
    known = sorted(n for family in families for n in members(family))
    raise SpecError(f"unknown {kind or 'name'} {call.name!r}{hint(call, kind, known)}")


def _is_meant(call: Call, signature: inspect.Signature) -> bool:
    """Whether a call whose family is not known can be of the function with this signature."""
    if call.name not in TWO_FAMILIES:
        return True
    with suppress(SpecError):
        return bind(call, signature) is not None
    return False


def kind_inside(call: Call, kind: str | None, members: Callable[[str], Collection[str]]) -> str | None:
    """The family of a call inside another one: that of the outer one where the name is in it, as of ``hf``; else any."""
    return kind if kind and call.name in members(kind) else None


def _resolve_dotted(name: str) -> Callable[..., Any]:
    """The user's own ``package.module.name``; the standard library is not the user's own code."""
    check_package(name)
    module_name, _, attribute = name.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise _no_module(name, e.name) from None
    except (Exception, SystemExit) as e:
        raise SpecError(
            f"{name!r}: importing {module_name} failed: {type(e).__name__}: {e}{place_of(e)}"
        ) from e
    found = getattr(module, attribute, None)
    if not callable(found) and hasattr(module, attribute):
        raise SpecError(f"{name!r} is {found!r:.60}, which is no function")
    if not callable(found):
        public = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise SpecError(f"{module_name} has no function {attribute!r}{did_you_mean(attribute, public)}")
    # a partial has no __qualname__, and functools as its __module__
    origin = (getattr(found, "__module__", None) or "") if hasattr(found, "__qualname__") else ""
    if origin.split(".")[0] in sys.stdlib_module_names:
        raise _of_python(name)
    return found


def check_package(name: str, known: Collection[str] = ()) -> None:
    """SpecError unless ``package.module.name`` begins with a package that can be imported; nothing is imported.

    The user's folder is searched last: a module beside the user, as with ``python -m``, but shadowing nothing. ``known``
    are names that may stand in the place of the package, of which the closest is in the message.
    """
    check_no_file(name)
    package, _, rest = name.partition(".")
    if package in sys.stdlib_module_names:
        raise _of_python(name)
    if "" not in sys.path:
        sys.path.append("")
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        raise SpecError(
            f"{_no_module(name, package)}{did_you_mean(package, known, show=lambda k: f'{k}.{rest}')}"
        )


def _of_python(name: str) -> SpecError:
    return SpecError(f"{name!r} is in Python's standard library; expected a function of your own package")


def _no_module(name: str, missing: str | None) -> SpecError:
    return SpecError(
        f"{name!r}: no module named {missing!r}; expected package.module.name, importable from this folder"
    )


# ---------------------------------------------------------------- call -> object


def build(text: str | Call, kind: str | None = None, **known: Value) -> Any:
    """Make the object that a call names: ``build("cnn()", "model", classes=10)``.

    Args:
        text: a call, or its text.
        kind: the family its name belongs to (a key of ``FAMILIES``), or None for any.
        known: arguments to fill in where the call leaves them open; see :func:`fill`.

    Raises:
        SpecError: unknown name or parameter, or the function refused (the reason follows).
        OpnormError: whatever the function itself raises for its arguments.
    """
    call = parse(text)
    function = resolve(call, kind)
    if known:
        call = fill(call, **known)
    bound = bind(call, signature_of(function, call.name))
    whole = Call(call.name, bound.args, tuple(bound.kwargs.items()))
    built = map_calls(whole, lambda inner: build(inner, kind_inside(inner, kind, members_of)))
    given = signature_of(function, call.name).bind(*built.args, **dict(built.kwargs))
    if why := misfit(given, only=bool):
        raise SpecError(f"{call!s:.200}: {why}")
    try:
        made = function(*built.args, **dict(built.kwargs))
    except OpnormError:
        raise
    except Exception as e:
        why = misfit(given)
        raise SpecError(
            f"{call!s:.200}: {why}" if why else f"{call!s:.200} failed: {type(e).__name__}: {e}{place_of(e)}"
        ) from e
    if not any(function is f for family in _registry.values() for f in family.values()):
        remember(made, call)  # a registered function has remembered its call itself, arguments by name
    return made


def fill(call: Call, **known: Value) -> Call:
    """Add arguments that the function accepts and the call leaves open, also inside nested calls.

    A data set knows its number of classes and image shape; a model is built with them unless the user chose
    otherwise: ``fill(parse("cnn()"), classes=10)`` is ``cnn(classes=10)``. What the call states is kept, also where it
    equals a default; only None where None is the default is the same as nothing.
    """
    accepted = signature_of(resolve(call), call.name).parameters
    call = map_calls(call, lambda inner: fill(inner, **known))
    given = {
        k: v for k, v in call.kwargs if not (v is None and k in accepted and accepted[k].default is None)
    }
    taken = {*given, *list(accepted)[: len(call.args)]}
    new = [(k, v) for k, v in known.items() if k in accepted and k not in taken]
    kept = [(k, v) for k, v in call.kwargs if k not in dict(new)]
    return Call(call.name, call.args, (*kept, *new))
