"""Opnorm's registered functions, read from their source: their signatures and the checks of values they begin with.

None of their modules, nor torch, is loaded.
"""

import ast
import functools
import importlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeGuard

from opnorm.errors import SpecError
from opnorm.spec._registry import FAMILIES
from opnorm.spec._syntax import Call, calls_in, map_calls, parse

__all__ = ["Source", "sources"]

PACKAGE = Path(__file__).parents[1]

DECORATORS = {"analysis": "register"}
"""Decorators beside ``@factory(KIND)`` that register a function in a family."""

MAKERS = {"study": ("study_of", "opnorm.studies._shared.paper")}
"""Functions that register one inside them, ``NAME = MAKER(...)``, under the name to which it is assigned; their modules."""

PLAIN = {"int": int, "float": float, "str": str, "bool": bool, "Path": Path}
SEVERAL: dict[str, Any] = {"tuple": tuple, "Sequence": Sequence}


class Place(NamedTuple):
    """An expression in a file, whose names are those of this file."""

    node: ast.expr
    file: Path


class Check(NamedTuple):
    """A line ``check_...(...)`` with which a function begins.

    Attributes:
        call: the line; names in it are calls without arguments.
        file: where it stands.
        outer: values of names, dotted ones, too, that stand neither in the function nor at the top of the file.
    """

    call: Call
    file: Path
    outer: Mapping[str, Any]

    @property
    def names(self) -> set[str]:
        """The names in it."""
        return {part.name for part in calls_in(self.call)}

    def carry_out(self, arguments: Mapping[str, Any]) -> None:
        """Call its function, which is imported, with the arguments of the function that begins with it."""
        known = {**self.outer, **arguments}

        def value(named: Call) -> Any:
            return known[named.name] if named.name in known else _known(named.name, self.file)

        given = map_calls(self.call, value)
        _known(self.call.name, self.file)(*given.args, **dict(given.kwargs))


@dataclass(frozen=True, eq=False)
class Source:
    """What the source says of a registered function; each part is found when it is first asked for.

    Args:
        function: its definition.
        file: where that stands.
        outer: values of names in the checks that are no arguments.
    """

    function: ast.FunctionDef
    file: Path
    outer: Mapping[str, Any]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """As :func:`inspect.signature` gives it once the function is loaded.

        Annotations are types of the call syntax (numbers, texts, None, tuples, sequences, literals, unions of them); any
        other one is ``Any``. Defaults that are no plain values, such as an attack, are calls.
        """
        return _signature(self.function, self.file)

    @functools.cached_property
    def checks(self) -> tuple[Check, ...]:
        """The lines ``check_...(...)`` with which the function begins."""
        return tuple(_checks(self.function, self.file, self.outer))


@functools.cache
def sources(kind: str) -> dict[str, Source]:
    """The functions of a family by name; none where the package is installed without its source.

    Args:
        kind: a key of ``FAMILIES``.
    """
    found = {}
    _, *parts = FAMILIES[kind].split(".")
    place = PACKAGE.joinpath(*parts)
    decorator, (maker, module) = DECORATORS.get(kind, ""), MAKERS.get(kind, ("", ""))
    marks = [f'factory("{kind}")', *(f"{name}(" for name in (decorator, maker) if name)]
    for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
        if not file.is_file() or not any(mark in file.read_text(encoding="utf-8") for mark in marks):
            continue
        for node in _tree(file).body:
            if isinstance(node, ast.FunctionDef) and any(
                _registers(d, kind, decorator) for d in node.decorator_list
            ):
                found[node.name] = Source(node, file, {})
            elif isinstance(node, ast.Assign) and _is_call_of(node.value, maker):
                made = _made(node.value, file, maker, _file_of(module))
                found |= {target.id: made for target in node.targets if isinstance(target, ast.Name)}
    return found


@functools.cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _file_of(module: str) -> Path:
    """The file of a module of this package."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _called(node: ast.expr) -> str:
    """The name of the function that an expression calls; empty where it calls none."""
    if not isinstance(node, ast.Call):
        return ""
    return ast.unparse(node.func).rpartition(".")[2]


def _is_call_of(node: ast.expr, name: str) -> TypeGuard[ast.Call]:
    """Whether an expression calls the function of this name."""
    return bool(name) and _called(node) == name


def _registers(node: ast.expr, kind: str, decorator: str) -> bool:
    """Whether a decorator registers its function in a family."""
    if decorator and _called(node) == decorator:
        return True
    return _called(node) == "factory" and ast.unparse(node).endswith(f"factory({kind!r})")


def _made(call: ast.Call, place: Path, maker: str, file: Path) -> Source:
    """The function that stands in a maker, as a call of the maker makes it.

    Args:
        call: of the maker.
        place: the file of the call.
        maker: a function.
        file: of the maker.
    """
    (outer,) = (node for node in _tree(file).body if isinstance(node, ast.FunctionDef) and node.name == maker)
    (inner,) = (node for node in outer.body if isinstance(node, ast.FunctionDef))
    known = {
        f"{parameter.arg}.{name}": value
        for parameter, given in zip(outer.args.args, call.args, strict=True)
        for name, value in _attributes(Place(given, place))
    }
    return Source(inner, file, known)


def _attributes(place: Place) -> Iterator[tuple[str, Any]]:
    """The attributes of an object that a call makes, whose arguments all have a name; of a dictionary, its keys."""
    if isinstance(place.node, ast.Name) and (meaning := _meaning(place.node.id, place.file)):
        place = meaning
    if not isinstance(place.node, ast.Call):
        return
    for keyword in place.node.keywords:
        value = keyword.value
        if isinstance(value, ast.Dict):
            value = ast.Tuple([key for key in value.keys if key], ast.Load())
        yield str(keyword.arg), _value(Place(value, place.file))


# ---------------------------------------------------------------- a function


def _checks(function: ast.FunctionDef, file: Path, outer: Mapping[str, Any]) -> Iterator[Check]:
    """The checks with which a function begins, below its docstring."""
    for line in function.body[ast.get_docstring(function) is not None :]:
        if not isinstance(line, ast.Expr) or not _called(line.value).startswith("check_"):
            return
        yield Check(parse(_plain(line.value)), file, outer)


def _signature(function: ast.FunctionDef, file: Path) -> inspect.Signature:
    a = function.args
    by_position: list[tuple[ast.arg, Any]] = [(p, Parameter.POSITIONAL_ONLY) for p in a.posonlyargs]
    by_position += [(p, Parameter.POSITIONAL_OR_KEYWORD) for p in a.args]
    defaults = [*[None] * (len(by_position) - len(a.defaults)), *a.defaults]
    found = [_parameter(p, k, d, file) for (p, k), d in zip(by_position, defaults, strict=True)]
    found += [_parameter(p, Parameter.VAR_POSITIONAL, None, file) for p in (a.vararg,) if p]
    keywords = zip(a.kwonlyargs, a.kw_defaults, strict=True)
    found += [_parameter(p, Parameter.KEYWORD_ONLY, default, file) for p, default in keywords]
    found += [_parameter(p, Parameter.VAR_KEYWORD, None, file) for p in (a.kwarg,) if p]
    return inspect.Signature(found)


def _parameter(node: ast.arg, kind: Any, default: ast.expr | None, file: Path) -> Parameter:
    annotation = Parameter.empty if node.annotation is None else _type(Place(node.annotation, file))
    value = Parameter.empty if default is None else _value(Place(default, file))
    return Parameter(node.arg, kind, default=value, annotation=annotation)


def _value(place: Place) -> Any:
    """The value of a default, where it is one of the call syntax; else what it is called."""
    if isinstance(place.node, ast.Name) and (meaning := _meaning(place.node.id, place.file)):
        return _value(meaning)
    text = _plain(place.node)
    try:
        ((_, value),) = parse(f"it(value={text})").kwargs
    except SpecError:
        return text
    return value


def _plain(node: ast.expr) -> str:
    """An expression in the call syntax, in which infinity has a name."""
    return ast.unparse(node).replace("math.inf", "inf")


def _type(place: Place) -> Any:
    """The type of an annotation, where it is one of the call syntax; else Any."""
    node, file = place
    match node:
        case ast.Constant(value=None):
            return None
        case ast.Name(id=name) if name in PLAIN:
            return PLAIN[name]
        case ast.Name(id=name) if meaning := _meaning(name, file):
            return _type(meaning)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=inside):
            return Literal[tuple(ast.literal_eval(item) for item in _items(inside))]
        case ast.Subscript(value=ast.Name(id=name), slice=inside) if name in SEVERAL:
            parts = tuple(... if _is_dots(item) else _type(Place(item, file)) for item in _items(inside))
            return SEVERAL[name][parts if name == "tuple" else parts[0]]
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            either = [_type(Place(side, file)) for side in (left, right)]
            return Any if Any in either else either[0] | either[1]
    return Any


def _items(inside: ast.expr) -> list[ast.expr]:
    return inside.elts if isinstance(inside, ast.Tuple) else [inside]


def _is_dots(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is ...


def _known(name: str, file: Path) -> Any:
    """What a name at the top of a file means: a plain value, or what is imported there from a module of this package.

    Raises:
        NameError: it is neither.
    """
    for node in _tree(file).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opnorm."):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return getattr(importlib.import_module(str(node.module)), alias.name)
    if (place := _meaning(name, file)) is None:
        raise NameError(f"{name} is no value of {file.name} that is known before it is loaded")
    return _value(place)


def _meaning(name: str, file: Path) -> Place | None:
    """What is assigned to a name at the top of a file, or of the file of this package from which it is imported."""
    for node in _tree(file).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(t, ast.Name) and t.id == name for t in node.targets
        ):
            return Place(node.value, file)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opnorm."):
            for alias in node.names:
                if (alias.asname or alias.name) == name and (source := _file_of(str(node.module))).is_file():
                    return _meaning(alias.name, source)
    return None
