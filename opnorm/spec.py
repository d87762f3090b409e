"""The call syntax: ``pgd(norm=inf, eps=8/255)`` is an argument, a record, a key and a label.

A :class:`Call` is a name with arguments. Text becomes a call by :func:`parse`, which reads literals and
arithmetic only and never runs or imports anything; a call becomes an object by :func:`build`, which looks the
name up in the ``__all__`` of a family (``opnorm.models``, ``opnorm.attacks``, ...) or, when it is dotted, in the
user's own package; and an object made by opnorm says which call made it: :func:`spec_of`. So

    string -> Call -> object -> Call -> string

ends where it began. There is no other registry and no other configuration language.
"""

import ast
import difflib
import functools
import importlib
import inspect
import math
import sys
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, Union

from opnorm.errors import OpnormError, SpecError

__all__ = ["Call", "build", "factory", "full", "names", "parse", "resolve", "short", "spec_of"]

Value = Union[None, bool, int, float, str, tuple["Value", ...], "Call"]

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
"""What a name can be, and the module whose ``__all__`` lists the names."""

MAX_TEXT, MAX_DEPTH, MAX_NUMBER = 20_000, 40, 1e308


@dataclass(frozen=True)
class Call:
    """A name and its arguments; ``str()`` gives the canonical text.

    Attributes:
        name: ``pgd``, or dotted for the user's own: ``my_package.module.factory``.
        args: positional values.
        kwargs: keyword values, in the order written.
    """

    name: str
    args: tuple[Value, ...] = ()
    kwargs: tuple[tuple[str, Value], ...] = ()

    def __str__(self) -> str:
        """The text that :func:`parse` reads back to an equal call."""
        parts = [_format(a) for a in self.args] + [f"{k}={_format(v)}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(parts)})"

    def fill(self, **known: Value) -> "Call":
        """Add arguments that the factory accepts and the call leaves open, also inside nested calls.

        A data set knows its number of classes and image shape; a model is built with them unless the user said
        otherwise: ``parse("cnn()").fill(classes=10)`` is ``cnn(classes=10)``.
        """
        accepted = _signature(resolve(self), self.name).parameters
        taken = {k for k, _ in self.kwargs} | set(list(accepted)[: len(self.args)])
        filled = _each_call(self, lambda call: call.fill(**known))
        new = [(k, v) for k, v in known.items() if k in accepted and k not in taken]
        return Call(self.name, filled.args, (*filled.kwargs, *new))


def _each_call(call: Call, change: Callable[[Call], Any]) -> Call:
    """The call with every call directly inside it, or inside its tuples, replaced."""

    def new(value: Any) -> Any:
        if isinstance(value, Call):
            return change(value)
        return tuple(new(v) for v in value) if isinstance(value, tuple) else value

    return Call(call.name, new(call.args), tuple((k, new(v)) for k, v in call.kwargs))


# ---------------------------------------------------------------- text -> call


def parse(text: str | Call) -> Call:
    """Read ``name(arg, key=value, ...)``; a bare name is a call without arguments.

    Values: numbers (``8/255``, ``2*3``, ``1e-3``, ``inf``), strings, ``True``, ``False``, ``None``, tuples and
    lists (read as tuples) of values, and nested calls. Nothing is imported, looked up or run.

    Raises:
        SpecError: with the text, the place and what was expected.
    """
    if isinstance(text, Call):
        return text
    if not isinstance(text, str):
        raise SpecError(
            f"expected a call as text, such as 'cnn(width=32)', got {type(text).__name__} {text!r:.60}"
        )
    node = _to_ast(text)
    if isinstance(node, ast.Name | ast.Attribute):
        return Call(_name(node, text))
    if not isinstance(node, ast.Call):
        raise SpecError(f"{_quote(text)} is not a call; expected a name, such as 'cnn' or 'cnn(width=32)'")
    value = _value(node, text, 0)
    assert isinstance(value, Call), "an ast.Call is read as a Call"
    return value


def _to_ast(text: str) -> ast.expr:
    if len(text) > MAX_TEXT:
        raise SpecError(f"a call of {len(text):,} characters is too long; at most {MAX_TEXT:,}")
    if max(text.count("("), text.count("["), 0) > 10 * MAX_DEPTH or _longest_sign_run(text) > MAX_DEPTH:
        raise SpecError(f"{_quote(text)} is nested too deeply")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is the user's business
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as e:
        where = f" near column {e.offset}" if e.offset else ""
        raise SpecError(
            f"{_quote(text)} cannot be read{where}: {e.msg}; expected name(key=value, ...)"
        ) from None
    except (ValueError, RecursionError, MemoryError, OverflowError) as e:
        raise SpecError(f"{_quote(text)} cannot be read: {e or type(e).__name__}") from None


def _longest_sign_run(text: str) -> int:
    """The longest run of prefix operators: the one nesting of the grammar that needs no bracket."""
    longest = run = 0
    for char in text:
        run = run + 1 if char in "+-~" else run if char.isspace() else 0
        longest = max(longest, run)
    return longest


def _value(node: ast.expr, text: str, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise SpecError(f"{_quote(text)} is nested too deeply (more than {MAX_DEPTH} levels)")
    match node:
        case ast.Constant(value=None | bool() | str() as constant):
            return constant
        case ast.Constant(value=int() | float() as number):
            return _number(number, text)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id="nan"):
            raise SpecError(f"{_quote(text)}: nan is not a setting; expected a number")
        case ast.Name() | ast.Attribute():
            return Call(_name(node, text))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text, depth + 1) for item in items)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as op, operand=operand):
            operand_value = _arithmetic_operand(operand, text, depth)
            return -operand_value if isinstance(op, ast.USub) else operand_value
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(
                _arithmetic_operand(left, text, depth), op, _arithmetic_operand(right, text, depth), text
            )
        case ast.Call(func=func, args=args, keywords=keywords):
            return _call(func, args, keywords, text, depth)
    raise SpecError(
        f"{_quote(text)}: {_quote(ast.get_source_segment(text.strip(), node) or '')} is not allowed here; "
        "expected numbers, strings, True, False, None, tuples, arithmetic or calls"
    )


def _call(func: ast.expr, args: list[ast.expr], keywords: list[ast.keyword], text: str, depth: int) -> Call:
    if any(k.arg is None for k in keywords) or any(isinstance(a, ast.Starred) for a in args):
        raise SpecError(f"{_quote(text)}: * and ** are not allowed; write the arguments out")
    pairs = tuple((str(k.arg), _value(k.value, text, depth + 1)) for k in keywords)
    if len({k for k, _ in pairs}) < len(pairs):
        raise SpecError(f"{_quote(text)}: a keyword is repeated")
    return Call(_name(func, text), tuple(_value(a, text, depth + 1) for a in args), pairs)


def _name(node: ast.expr, text: str) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < MAX_DEPTH:
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise SpecError(f"{_quote(text)}: expected a name, or package.module.name, before the bracket")
    name = ".".join([node.id, *reversed(parts)])
    if any(part.startswith("_") for part in name.split(".")):
        raise SpecError(f"{_quote(text)}: the name {name!r} is private; expected a public one")
    return name


def _arithmetic_operand(node: ast.expr, text: str, depth: int) -> int | float:
    value = _value(node, text, depth + 1)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{_quote(text)}: arithmetic needs numbers, got {_format(value)}")
    return value


def _arithmetic(a: int | float, op: ast.operator, b: int | float, text: str) -> int | float:
    try:
        match op:
            case ast.Add():
                return _number(a + b, text)
            case ast.Sub():
                return _number(a - b, text)
            case ast.Mult():
                return _number(a * b, text)
            case ast.Div():
                return _number(a / b, text)
            case ast.Pow() if abs(a) <= 1e6 and abs(b) <= 64:  # 9**9**9 must not hang
                power = a**b
                if isinstance(power, int | float):  # (-1)**0.5 is complex
                    return _number(power, text)
    except (ZeroDivisionError, OverflowError) as e:
        raise SpecError(f"{_quote(text)}: {e}") from None
    raise SpecError(f"{_quote(text)}: expected +, -, *, / or a small power between numbers")


def _number(value: int | float, text: str) -> int | float:
    if value != value:
        raise SpecError(f"{_quote(text)}: the arithmetic gives nan; expected a number")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise SpecError(f"{_quote(text)}: a whole number is too large")
    return value


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


# ---------------------------------------------------------------- call -> text


def _format(value: Value) -> str:
    match value:
        case Call():
            return str(value)
        case None | bool():
            return str(value)
        case float():
            return _format_float(value)
        case int():
            return str(value)
        case str():
            return _format_str(value)
        case tuple() | list():
            inner = ", ".join(_format(v) for v in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise SpecError(f"{value!r:.60} has no place in a call; expected a number, text, tuple or call")


def _format_float(value: float) -> str:
    """The shortest exact text; fractions of 255 as the field writes them (``8/255``)."""
    if value != value:
        raise SpecError("nan is not a setting; expected a number")
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    levels = value * 255
    if value and abs(levels) < 255 and abs(levels - round(levels)) < 1e-9 and round(levels) / 255 == value:
        simple = repr(value)
        return simple if len(simple) <= 5 else f"{round(levels)}/255"
    return repr(value)


def _format_str(value: str) -> str:
    """A literal in double quotes, so that a whole call fits into a shell's single quotes."""
    escaped = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in value.replace("\\", "\\\\")
    )
    return '"' + escaped.replace('"', '\\"').replace("'", "\\x27") + '"'


# ---------------------------------------------------------------- call -> object


def names(kind: str) -> list[str]:
    """The public names of a family: ``names("attack")`` is ``["fgsm", "pgd", ...]``."""
    return sorted(importlib.import_module(FAMILIES[kind]).__all__)


def resolve(call: Call, kind: str | None = None) -> Callable[..., Any]:
    """The factory that a call names.

    Args:
        call: what to look up.
        kind: the family to look in first (a key of ``FAMILIES``); any family when None. A nested call may belong
            to another family than the call around it.

    Raises:
        SpecError: unknown name, with the closest known ones.
    """
    if "." in call.name:
        return _resolve_dotted(call.name)
    for family in [kind] if kind else FAMILIES:
        module = importlib.import_module(FAMILIES[family])
        if call.name in module.__all__:
            found: Callable[..., Any] = getattr(module, call.name)
            return found
    known = names(kind) if kind else sorted({n for k in FAMILIES for n in names(k)})
    raise SpecError(
        f"unknown {kind or 'name'} {call.name!r}{_did_you_mean(call.name, known)}; "
        f"known: {', '.join(known)}; your own code: package.module.{call.name}(...)"
    )


def _resolve_dotted(name: str) -> Callable[..., Any]:
    """The user's own ``package.module.name``; the standard library is not the user's own code."""
    module_name, _, attribute = name.rpartition(".")
    if module_name.split(".")[0] in sys.stdlib_module_names:
        raise SpecError(f"{name!r} is in Python's standard library; expected a factory of your own package")
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
    if not callable(found):
        public = [n for n in dir(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise SpecError(f"{module_name} has no function {attribute!r}{_did_you_mean(attribute, public)}")
    origin = (
        getattr(found, "__module__", None) or "" if hasattr(found, "__qualname__") else ""
    )  # not a partial's
    if origin.split(".")[0] in sys.stdlib_module_names:
        raise SpecError(f"{name!r} is in Python's standard library; expected a factory of your own package")
    return found


def build(text: str | Call, kind: str | None = None, **known: Value) -> Any:
    """Make the object that a call names: ``build("cnn()", "model", classes=10)``.

    Args:
        text: a call, or its text.
        kind: the family its name belongs to (a key of ``FAMILIES``), or None for any.
        known: arguments to fill in where the call leaves them open; see :meth:`Call.fill`.

    Raises:
        SpecError: unknown name or parameter, or the factory refused (the reason follows).
        OpnormError: whatever the factory itself says of its arguments.
    """
    call = parse(text)
    function = resolve(call, kind)
    if known:
        call = call.fill(**known)
    bound = _bind(call, function)
    built = _each_call(Call(call.name, bound.args, tuple(bound.kwargs.items())), build)
    try:
        made = function(*built.args, **dict(built.kwargs))
    except OpnormError:
        raise
    except Exception as e:
        raise SpecError(f"{call} failed: {type(e).__name__}: {e}") from e
    if not any(function is f for f in _factories):  # those have said it themselves, in the canonical form
        _tag(made, call)
    return made


def _signature(function: Callable[..., Any], name: str) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (ValueError, TypeError):
        raise SpecError(f"{name}() does not say what it accepts; wrap it in a function of your own") from None


def _bind(call: Call, function: Callable[..., Any]) -> inspect.BoundArguments:
    signature = _signature(function, call.name)
    accepted = [
        p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    usage = f"it accepts: {_usage(signature)}"
    seen: set[str] = set()
    for key, _ in call.kwargs:
        if key not in accepted and not open_ended:
            raise SpecError(f"{call.name}() has no parameter {key!r}{_did_you_mean(key, accepted)}; {usage}")
        if key in seen:
            raise SpecError(f"{call.name}() got {key!r} twice; {usage}")
        seen.add(key)
    try:
        return signature.bind(*call.args, **dict(call.kwargs))
    except TypeError as e:
        raise SpecError(f"{call}: {e}; {usage}") from None


def _usage(signature: inspect.Signature) -> str:
    parts = []
    for p in signature.parameters.values():
        default = (
            ""
            if p.default is p.empty
            else f"={p.default!r}"
            if not isinstance(p.default, float)
            else f"={_format(p.default)}"
        )
        parts.append(f"{p.name}{default}")
    return ", ".join(parts) or "no arguments"


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


# ---------------------------------------------------------------- canonical forms


def full(text: str | Call, kind: str | None = None) -> Call:
    """The call with every argument named and every default written out: what a run's key is made of."""
    return _canonical(parse(text), kind, keep_defaults=True)


def short(text: str | Call, kind: str | None = None) -> Call:
    """The call without the arguments that equal their defaults: what a table's row is called."""
    return _canonical(parse(text), kind, keep_defaults=False)


def _canonical(call: Call, kind: str | None, keep_defaults: bool) -> Call:
    function = resolve(call, kind)
    bound = _bind(call, function)
    parameters = bound.signature.parameters
    if keep_defaults:
        bound.apply_defaults()
    starred = any(p.kind is p.VAR_POSITIONAL and bound.arguments.get(p.name) for p in parameters.values())
    pairs: list[tuple[str, Value]] = []
    args: list[Value] = []
    for key, value in bound.arguments.items():
        parameter = parameters[key]
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += [_canonical_value(v, keep_defaults) for v in value]
        elif parameter.kind is parameter.VAR_KEYWORD:
            pairs += [(k, _canonical_value(v, keep_defaults)) for k, v in value.items()]
        elif parameter.kind is parameter.POSITIONAL_ONLY or (
            starred and parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        ):  # has no other way to be passed
            args.append(_canonical_value(value, keep_defaults))
        elif keep_defaults or not _is_default(value, parameter.default):
            pairs.append((key, _canonical_value(value, keep_defaults)))
    return Call(call.name, tuple(args), tuple(pairs))


def _canonical_value(value: Any, keep_defaults: bool) -> Value:
    if isinstance(value, Call):
        return _canonical(value, None, keep_defaults)
    if isinstance(value, tuple | list):
        return tuple(_canonical_value(v, keep_defaults) for v in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        return _canonical(
            spec_of(value), None, keep_defaults
        )  # a default may be an object, such as attack=pgd()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 2.0 and 2 are one setting, so they must be one text
    return value


def _is_default(value: Any, default: Any) -> bool:
    if isinstance(value, Call) and callable(default) and not isinstance(default, type):
        return full(value) == full(spec_of(default))
    return _same(value, default)


def _same(a: Any, b: Any) -> bool:
    return isinstance(a, bool) == isinstance(b, bool) and a == b


# ---------------------------------------------------------------- object -> call

_made_by: "weakref.WeakKeyDictionary[Any, Call]" = weakref.WeakKeyDictionary()
_factories: list[Callable[..., Any]] = []
P = ParamSpec("P")
R = TypeVar("R")


def factory(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a public factory so that what it makes remembers the call: ``spec_of(pgd(steps=5))``."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def made(*args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        try:
            arguments = [(k, _to_value(v)) for k, v in bound.arguments.items()]
        except SpecError:  # a tensor or a lambda was passed: the object works, but has no text
            return result
        _tag(result, Call(function.__name__, (), tuple(arguments)))
        return result

    _factories.append(made)
    return made


def _to_value(value: Any) -> Value:
    if value is None or isinstance(value, bool | int | float | str | Call):
        return value
    if isinstance(value, tuple | list):
        return tuple(_to_value(v) for v in value)
    return spec_of(value)


def _tag(made: Any, call: Call) -> None:
    """Remember, beside the object, which call made it; an object that cannot be referred to weakly has no text.

    The outermost call counts: ``file("w.pt")`` makes a network by ``resnet()``, and then fills it.
    """
    try:
        _made_by[made] = call
    except TypeError:
        return


def spec_of(made: Any) -> Call:
    """The call that made an object.

    Raises:
        SpecError: it was not made by one of opnorm's factories or by :func:`build`.
    """
    try:
        return _made_by[made]
    except (KeyError, TypeError):
        raise SpecError(
            f"{type(made).__name__} {made!r:.60} was not made by a named factory, so it has no text; "
            "pass it as 'package.module.factory(...)' instead"
        ) from None


def walk(call: Call) -> Iterator[Call]:
    """The call and every call inside it."""
    inside: list[Call] = []
    _each_call(call, inside.append)
    yield call
    for inner in inside:
        yield from walk(inner)
