"""From a call to the object that it names, and back; the canonical forms of a call."""

import functools
import importlib
import inspect
import sys
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, ParamSpec, TypeVar

from opnorm.errors import OpnormError, SpecError, did_you_mean
from opnorm.spec._annotations import called, misfit
from opnorm.spec._hints import hint
from opnorm.spec._syntax import Call, Value, map_calls, parse, to_text

__all__ = ["FAMILIES", "build", "factory", "fill", "full", "names", "resolve", "short", "spec_of", "stated"]

FAMILIES = {
    "model": "opnorm.models",
    "data set": "opnorm.data",
    "augmentation": "opnorm.data.augmentations",
    "objective": "opnorm.objectives",
    "regularizer": "opnorm.regularizers",
    "attack": "opnorm.attacks",
    "certificate": "opnorm.certificates",
    "optimizer": "opnorm.training.optimizers",
    "schedule": "opnorm.training.schedules",
    "analysis": "opnorm.analyses",
    "study": "opnorm.studies",
}
"""What a name can be, and the module that registers the names of this family when it is imported."""

NOT_INSIDE = ("study",)
"""Families whose calls are no arguments: a study reads texts as calls, unseen by those who ask what a call would run."""

TWO_FAMILIES = ("hf",)
"""Names of more than one family; without a family, the first one that takes the arguments is meant."""

P = ParamSpec("P")
R = TypeVar("R")

_registry: dict[str, dict[str, Callable[..., Any]]] = {kind: {} for kind in FAMILIES}
_made_by: "weakref.WeakKeyDictionary[Any, Call]" = weakref.WeakKeyDictionary()


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
                _remember(result, Call(name, (), tuple((k, _to_value(v)) for k, v in arguments.items())))
            return result

        made.__signature__ = signature  # type: ignore[attr-defined]  # inspect works it out at every call otherwise
        if own:
            _registry[kind][name] = made
        return made

    return decorate


def names(kind: str) -> list[str]:
    """The names of a family: ``names("attack")`` is ``["apgd", "autoattack", ...]``."""
    return sorted(_family(kind))


def _family(kind: str) -> dict[str, Callable[..., Any]]:
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
    families = [kind] if kind else [family for family in FAMILIES if family not in NOT_INSIDE]
    for family in families:
        if call.name in (members := _family(family)) and (kind or _is_meant(call, members[call.name])):
            return members[call.name]
    known = sorted(n for family in families for n in names(family))
    raise SpecError(f"unknown {kind or 'name'} {call.name!r}{hint(call, kind, known)}")


def _is_meant(call: Call, function: Callable[..., Any]) -> bool:
    """Whether a call whose family is not known can be of this function."""
    if call.name not in TWO_FAMILIES:
        return True
    with suppress(SpecError):
        return _bind(call, function) is not None
    return False


def _kind_inside(call: Call, kind: str | None) -> str | None:
    """The family of a call inside another one: that of the outer one where the name is in it, as of ``hf``; else any."""
    return kind if kind and call.name in _family(kind) else None


def _resolve_dotted(name: str) -> Callable[..., Any]:
    """The user's own ``package.module.name``; the standard library is not the user's own code."""
    module_name, _, attribute = name.rpartition(".")
    standard = SpecError(f"{name!r} is in Python's standard library; expected a function of your own package")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        raise standard
    if "" not in sys.path:
        sys.path.append("")  # a module beside the user, as with python -m, but shadowing nothing
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as e:
        raise SpecError(
            f"{name!r}: no module named {e.name!r}; expected package.module.name, importable from this folder"
        ) from None
    except (Exception, SystemExit) as e:
        raise SpecError(f"{name!r}: importing {module_name} failed: {type(e).__name__}: {e}") from e
    found = getattr(module, attribute, None)
    if not callable(found) and hasattr(module, attribute):
        raise SpecError(f"{name!r} is {found!r:.60}, which is no function")
    if not callable(found):
        public = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise SpecError(f"{module_name} has no function {attribute!r}{did_you_mean(attribute, public)}")
    # a partial has no __qualname__, and functools as its __module__
    origin = (getattr(found, "__module__", None) or "") if hasattr(found, "__qualname__") else ""
    if origin.split(".")[0] in sys.stdlib_module_names:
        raise standard
    return found


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
    bound = _bind(call, function)
    whole = Call(call.name, bound.args, tuple(bound.kwargs.items()))
    built = map_calls(whole, lambda inner: build(inner, _kind_inside(inner, kind)))
    given = _signature(function, call.name).bind(*built.args, **dict(built.kwargs))
    if why := misfit(given, only=bool):
        raise SpecError(f"{call}: {why}")
    try:
        made = function(*built.args, **dict(built.kwargs))
    except OpnormError:
        raise
    except Exception as e:
        why = misfit(given)
        raise SpecError(f"{call}: {why}" if why else f"{call} failed: {type(e).__name__}: {e}") from e
    if not any(function is f for family in _registry.values() for f in family.values()):
        _remember(made, call)  # a registered function has remembered its call itself, arguments by name
    return made


def fill(call: Call, **known: Value) -> Call:
    """Add arguments that the function accepts and the call leaves open, also inside nested calls.

    A data set knows its number of classes and image shape; a model is built with them unless the user chose
    otherwise: ``fill(parse("cnn()"), classes=10)`` is ``cnn(classes=10)``. What the call states is kept, also where it
    equals a default; only None where None is the default is the same as nothing.
    """
    accepted = _signature(resolve(call), call.name).parameters
    call = map_calls(call, lambda inner: fill(inner, **known))
    given = {
        k: v for k, v in call.kwargs if not (v is None and k in accepted and accepted[k].default is None)
    }
    taken = {*given, *list(accepted)[: len(call.args)]}
    new = [(k, v) for k, v in known.items() if k in accepted and k not in taken]
    kept = [(k, v) for k, v in call.kwargs if k not in dict(new)]
    return Call(call.name, call.args, (*kept, *new))


@functools.lru_cache(maxsize=1000)  # a study reads its calls a hundred thousand times
def _signature(function: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        raise SpecError(f"{name}() has no readable signature; wrap it in a function of your own") from None


def _bind(call: Call, function: Callable[..., Any]) -> inspect.BoundArguments:
    signature = _signature(function, call.name)
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
        raise SpecError(f"{call}: {e}; {_usage(signature)}") from None


def _usage(signature: inspect.Signature) -> str:
    """Such as "it accepts: lam, p=inf"."""

    def text(p: inspect.Parameter) -> str:
        if p.default is p.empty:
            return p.name
        return f"{p.name}={to_text(p.default) if isinstance(p.default, float) else repr(p.default)}"

    return f"it accepts: {', '.join(text(p) for p in signature.parameters.values()) or 'no arguments'}"


# ---------------------------------------------------------------- object -> call


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


def _remember(made: Any, call: Call) -> None:
    """Keep, beside the object, the call that made it; an object that cannot be referred to weakly has no text.

    The outermost call counts: ``file("w.pt")`` makes a network by ``resnet()``, and then fills it.
    """
    try:
        _made_by[made] = call
    except TypeError:
        return


def _to_value(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str | Call):
        return value
    if isinstance(value, tuple | list):
        return tuple(_to_value(v) for v in value)
    return spec_of(value)


# ---------------------------------------------------------------- canonical forms


def full(text: str | Call, kind: str | None = None) -> Call:
    """The call with every argument named and every default written out: what a run's key is made of."""
    return _canonical(parse(text), kind, "all")


def stated(text: str | Call, kind: str | None = None) -> Call:
    """The call with its own arguments, each named: what is built."""
    return _canonical(parse(text), kind, "stated")


def short(text: str | Call, kind: str | None = None) -> Call:
    """The call without the arguments that equal their defaults: what a table's row is called."""
    return _canonical(parse(text), kind, "not default")


Arguments = Literal["all", "stated", "not default"]


def _canonical(call: Call, kind: str | None, which: Arguments) -> Call:
    bound = _bind(call, resolve(call, kind))
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
    return _canonical(inner, _kind_inside(inner, kind), which)


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, Call) and callable(default) and not isinstance(default, type):
        return full(value) == full(spec_of(default))
    return isinstance(value, bool) == isinstance(default, bool) and value == default
