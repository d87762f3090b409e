"""The API reference, from the ``__all__`` of every public module: docs/reference/, written when Sphinx starts."""

import ast
import functools
import importlib
import inspect
import itertools
import pkgutil
from typing import Any

from method_pages import cell, methods

import opnorm

COMMANDS = "opnorm.cli"  # documented by --help, and by the pages


@functools.cache
def public_modules() -> dict[str, tuple[str, ...]]:
    """The public names of every module without an underscore in its path; packages before what is in them."""
    found = {"opnorm": tuple(opnorm.__all__)}
    for module in pkgutil.walk_packages(opnorm.__path__, "opnorm."):
        private = any(part.startswith("_") for part in module.name.split("."))
        if not private and not f"{module.name}.".startswith(f"{COMMANDS}."):
            loaded = importlib.import_module(module.name)
            found[module.name] = tuple(getattr(loaded, "__all__", ()))
    return dict(sorted(found.items(), key=lambda item: (item[0].count("."), item[0])))


def _value(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


def _is_documented_once(value: Any) -> bool:
    return inspect.isfunction(value) or inspect.isclass(value) or hasattr(value, "cache_info")


@functools.cache
def on_method_pages() -> dict[int, str]:
    """What has a page of its own, by its identity."""
    return {id(method.value): method.path for method in methods()}


@functools.cache
def places() -> dict[int, str]:
    """Where a class or function is documented, by its identity: its method's page, or the first module with it."""
    found = dict(on_method_pages())
    for module, names in public_modules().items():
        for name in names:
            value = _value(module, name)
            if _is_documented_once(value):
                found.setdefault(id(value), f"{module}.{name}")
    return found


def place_of(path: str) -> str | None:
    """Where the object of a dotted path is documented; None where there is none."""
    module, _, name = path.rpartition(".")
    try:
        return places().get(id(_value(module, name)))
    except (ImportError, AttributeError, ValueError):
        return None  # a method of a class, or another package's name


@functools.cache
def _comments(module: str) -> dict[str, str]:
    """The string below each assignment of a module."""
    found = {}
    for node, after in itertools.pairwise(ast.parse(inspect.getsource(importlib.import_module(module))).body):
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if (
            isinstance(target, ast.Name)
            and isinstance(after, ast.Expr)
            and isinstance(after.value, ast.Constant)
        ):
            found[target.id] = " ".join(str(after.value.value).split())
    return found


def _comment(module: str, name: str) -> str:
    """What a constant is: the string below its assignment, here or in a module of this package; else its type."""
    for path in (module, *(each for each in public_modules() if each.startswith(f"{module}."))):
        if text := _comments(path).get(name):
            return text.replace("*", "\\*").replace("|", "\\|")
    value = _value(module, name)
    return f"A {type(value).__name__}." if type(value).__module__ == "builtins" else f"``{value}``"


def _entry(module: str, name: str) -> str:
    """The directive of one name."""
    value, path = _value(module, name), f"{module}.{name}"
    if inspect.ismodule(value):
        return f"- :py:mod:`{path}`"
    if not _is_documented_once(value):
        return f".. py:data:: {name}\n   :module: {module}\n\n   {_comment(module, name)}"
    if (place := places()[id(value)]) != path or id(value) in on_method_pages():
        role = "class" if inspect.isclass(value) else "func"
        here = "" if place == path else f"``{path}``: "
        return f"- {here}:py:{role}:`{place}`"
    if inspect.isclass(value):
        return f".. autoclass:: {path}\n   :members:"
    return f".. autofunction:: {path}"


def module_page(module: str) -> str:
    """The page of one module, as Markdown: its docstring, then its names, those of other pages as links."""
    entries = [_entry(module, name) for name in public_modules()[module]]
    links = "\n".join(entry for entry in entries if entry.startswith("-"))
    blocks = [entry for entry in entries if not entry.startswith("-")]
    body = "\n\n".join([f".. automodule:: {module}\n   :no-members:", *([links] if links else []), *blocks])
    return f"# {module}\n\n```{{eval-rst}}\n{body}\n```\n"


def all_places() -> set[str]:
    """The dotted name of everything that the reference documents."""
    data = {
        f"{module}.{name}"
        for module, names in public_modules().items()
        for name in names
        if not _is_documented_once(_value(module, name)) and not inspect.ismodule(_value(module, name))
    }
    return data | set(places().values())


def short_list(text: str) -> str:
    """A table of some names, a dotted one a line, ``module.*`` for all of a module, with their first sentences."""
    rows = []
    for line in text.split():
        module, _, name = line.rpartition(".")
        for each in public_modules()[module] if name == "*" else (name,):
            value = _value(module, each)
            if _is_documented_once(value):
                role = "class" if inspect.isclass(value) else "func"
                first = cell((inspect.getdoc(value) or "").partition("\n")[0])
                rows.append(f"| {{py:{role}}}`{module}.{each}` | {first} |")
    return "| name | what it is |\n|---|---|\n" + "\n".join(rows)


def index_page() -> str:
    """The list of modules, with their first sentences."""
    rows = []
    for module in public_modules():
        text = (inspect.getdoc(importlib.import_module(module)) or "").partition("\n\n")[0].replace("\n", " ")
        rows.append(f"| [`{module}`]({module}.md) | {cell(text)} |")
    listed = "\n".join(public_modules())
    return (
        "# Every public name\n\nOne page for each module. What [the short list](../api.md) names is meant for users "
        "and stays; the rest is public for those who extend opnorm.\n\n| module | what it holds |\n|---|---|\n"
        + "\n".join(rows)
        + f"\n\n```{{toctree}}\n:hidden:\n\n{listed}\n```\n"
    )


def pages() -> dict[str, str]:
    """The text of each page, by its path below docs/."""
    texts = {f"reference/{module}.md": module_page(module) for module in public_modules()}
    return {"reference/index.md": index_page(), **texts}
