"""Text to call and back: :func:`parse` reads literals and arithmetic, ``str(call)`` writes the canonical text."""

import ast
import functools
import math
import operator
import re
import warnings
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Union

from opnorm.errors import SpecError

__all__ = ["Call", "Value", "calls_in", "map_calls", "parse", "part_call", "to_text"]

Value = Union[None, bool, int, float, str, tuple["Value", ...], "Call"]

MAX_TEXT, MAX_DEPTH, MAX_NUMBER = 20_000, 40, 1e308
OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.Pow: operator.pow,
}  # fmt: skip


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
        parts = [to_text(a) for a in self.args] + [f"{k}={to_text(v)}" for k, v in self.kwargs]
        return f"{self.name}({', '.join(parts)})"

    def with_arguments(self, **given: "Value") -> "Call":
        """The call with those of the given arguments that are not None after its own."""
        more = tuple((name, value) for name, value in given.items() if value is not None)
        return Call(self.name, self.args, (*self.kwargs, *more))


def map_calls(call: Call, change: Callable[[Call], Any]) -> Call:
    """The call with ``change`` applied to every call directly inside it, or inside its tuples."""

    def new(value: Any) -> Any:
        if isinstance(value, Call):
            return change(value)
        return tuple(new(v) for v in value) if isinstance(value, tuple) else value

    return Call(call.name, new(call.args), tuple((k, new(v)) for k, v in call.kwargs))


def calls_in(call: Call) -> Iterator[Call]:
    """The call and every call nested in it, at any depth."""
    nested: list[Call] = []
    map_calls(call, nested.append)
    yield call
    for inner in nested:
        yield from calls_in(inner)


def part_call(call: Call, known: Container[str]) -> Call:
    """``liang2021.table2(seeds=2)`` as ``liang2021(part="table2", seeds=2)``, where liang2021 is known."""
    whole, dot, part = call.name.partition(".")
    return Call(whole, call.args, (("part", part), *call.kwargs)) if dot and whole in known else call


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
    return _parsed(text)


PATH = re.compile(r"(?!\d)[\w.~ -]*/[^(]*$")


@functools.lru_cache(4096)  # a study reads the same texts for each of its runs
def _parsed(text: str) -> Call:
    if PATH.match(text):
        reader = "file" if PurePath(text).suffix else "folder"
        raise SpecError(f'{_quote(text)} is a path; expected a call, such as {reader}("{text}")')
    node = _to_ast(text)
    if isinstance(node, ast.Name | ast.Attribute):
        return Call(_name(node, text))
    if not isinstance(node, ast.Call):
        raise SpecError(f"{_quote(text)} is not a call; expected a name, such as 'cnn' or 'cnn(width=32)'")
    return _call(node, text, 0)


def _to_ast(text: str) -> ast.expr:
    if len(text) > MAX_TEXT:
        raise SpecError(f"a call of {len(text):,} characters is too long; at most {MAX_TEXT:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "\d" in a string is no concern of this library
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as e:
        where = f" near column {e.offset}" if e.offset else ""
        raise SpecError(
            f"{_quote(text)} cannot be read{where}: {e.msg}; expected name(key=value, ...)"
        ) from None
    except (RecursionError, MemoryError):  # of the parser's own stack
        raise SpecError(f"{_quote(text)} is nested too deeply") from None
    except (ValueError, OverflowError) as e:
        raise SpecError(f"{_quote(text)} cannot be read: {e}") from None


def _value(node: ast.expr, text: str, depth: int) -> Value:
    if depth > MAX_DEPTH:
        raise SpecError(f"{_quote(text)} is nested too deeply (more than {MAX_DEPTH} levels)")
    match node:
        case ast.Constant(value=None | bool() | str() as constant):
            return constant
        case ast.Constant(value=int() | float() as number):
            return _checked(number, text)
        case ast.Name(id="inf"):
            return math.inf
        case ast.Name(id="nan"):
            raise SpecError(f"{_quote(text)}: nan is not a setting; expected a number")
        case ast.Name() | ast.Attribute():
            return Call(_name(node, text))
        case ast.Tuple(elts=items) | ast.List(elts=items):
            return tuple(_value(item, text, depth + 1) for item in items)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            value = _operand(operand, text, depth)
            return -value if isinstance(sign, ast.USub) else value
        case ast.BinOp(left=left, op=op, right=right):
            return _arithmetic(_operand(left, text, depth), op, _operand(right, text, depth), text)
        case ast.Call():
            return _call(node, text, depth)
    raise SpecError(
        f"{_quote(text)}: {_quote(ast.get_source_segment(text.strip(), node) or '')} is not allowed here; "
        "expected numbers, strings, True, False, None, tuples, arithmetic or calls"
    )


def _call(node: ast.Call, text: str, depth: int) -> Call:
    if any(k.arg is None for k in node.keywords) or any(isinstance(a, ast.Starred) for a in node.args):
        raise SpecError(f"{_quote(text)}: * and ** are not allowed; write the arguments out")
    pairs = tuple((str(k.arg), _value(k.value, text, depth + 1)) for k in node.keywords)
    if len({k for k, _ in pairs}) < len(pairs):
        raise SpecError(f"{_quote(text)}: a keyword is repeated")
    return Call(_name(node.func, text), tuple(_value(a, text, depth + 1) for a in node.args), pairs)


def _name(node: ast.expr, text: str) -> str:
    parts: list[str] = []
    while isinstance(node, ast.Attribute) and len(parts) < MAX_DEPTH:
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise SpecError(f"{_quote(text)}: expected a name, or package.module.name, before the bracket")
    name = ".".join([node.id, *reversed(parts)])
    if any(part.startswith("_") for part in name.split(".")):
        cause = (
            ", in a module that can be imported, not in the script itself" if name[:9] == "__main__." else ""
        )
        raise SpecError(f"{_quote(text)}: the name {name!r} is private; expected a public one{cause}")
    return name


def _operand(node: ast.expr, text: str, depth: int) -> int | float:
    value = _value(node, text, depth + 1)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SpecError(f"{_quote(text)}: arithmetic needs numbers, got {to_text(value)}")
    return value


def _arithmetic(a: int | float, op: ast.operator, b: int | float, text: str) -> int | float:
    too_large = isinstance(op, ast.Pow) and (abs(a) > 1e6 or abs(b) > 64)  # 9**9**9 must not hang
    try:
        result = None if too_large or type(op) not in OPERATORS else OPERATORS[type(op)](a, b)
    except (ZeroDivisionError, OverflowError) as e:
        raise SpecError(f"{_quote(text)}: {e}") from None
    if not isinstance(result, int | float):  # (-1)**0.5 is complex
        raise SpecError(f"{_quote(text)}: expected +, -, *, / or a small power between numbers")
    return _checked(result, text)


def _checked(value: int | float, text: str) -> int | float:
    if value != value:
        raise SpecError(f"{_quote(text)}: the arithmetic gives nan; expected a number")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise SpecError(f"{_quote(text)}: a whole number is too large")
    return value


def _quote(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


# ---------------------------------------------------------------- call -> text


def to_text(value: Value) -> str:
    """The canonical text of a value; SpecError for one that has none."""
    match value:
        case None | bool() | int() | Call():
            return str(value)
        case float():
            if value != value:
                raise SpecError("nan is not a setting; expected a number")
            levels = value * 255  # fractions of 255 as the field writes them: 8/255
            short = abs(levels) >= 255 or len(repr(value)) <= 5 or round(levels) / 255 != value
            return repr(value) if short else f"{round(levels)}/255"
        case str():  # in double quotes, so that a whole call fits into a shell's single quotes
            escaped = "".join(
                c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
                for c in value.replace("\\", "\\\\")
            )
            return '"' + escaped.replace('"', '\\"').replace("'", "\\x27") + '"'
        case tuple() | list():
            inner = ", ".join(to_text(v) for v in value)
            return f"({inner},)" if len(value) == 1 else f"({inner})"
    raise SpecError(f"{value!r:.60} has no place in a call; expected a number, text, tuple or call")
