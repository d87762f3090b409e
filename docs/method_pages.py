"""One page for each method, from its docstring and docs/methods.toml: docs/methods/, written when Sphinx starts."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.spec import FAMILIES, names

HERE = Path(__file__).parent
TITLES = {
    "norm": "Norms",
    "objective": "Objectives",
    "regularizer": "Regularizers",
    "attack": "Attacks",
    "certificate": "Certificates",
    "analysis": "Analyses",
}
USE = {
    "objective": "opnorm train --objective '{call}'",
    "regularizer": "opnorm train --regularizers '{call}'",
    "attack": "opnorm attack KEY --attack '{call}'",
    "certificate": "opnorm attack KEY --attack 'autoattack(certify={call})'",
    "analysis": "opnorm analyze KEY --what '{call}'",
}


class Method(NamedTuple):
    """A method: what it is, where it stands, and what docs/methods.toml says about it."""

    kind: str
    name: str
    path: str
    names: tuple[str, ...]
    cost: str
    fails: str

    @property
    def value(self) -> Any:
        """The function itself."""
        module, _, name = self.path.rpartition(".")
        return getattr(importlib.import_module(module), name)

    @property
    def sentence(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.value) or "").splitlines()[0]

    @property
    def page(self) -> str:
        """The page's name below docs/; an analysis may have the name of the norm that it measures."""
        return f"methods/{self.name}" + "_norm" * (self.kind == "norm" and self.name in names("analysis"))


def methods() -> Iterator[Method]:
    """All of them, in the order of the file."""
    for kind, some in tomllib.loads((HERE / "methods.toml").read_text(encoding="utf-8")).items():
        module = FAMILIES.get(kind, "opnorm.norms")
        for name, entry in some.items():
            path = entry.get("path", f"{module}.{name}")
            yield Method(kind, name, path, tuple(entry["names"]), entry["cost"], entry["fails"])


def registered() -> set[tuple[str, str]]:
    """Kind and name of every method that the call syntax knows."""
    return {(kind, name) for kind in TITLES if kind in FAMILIES for name in names(kind)}


def _call(method: Method) -> str:
    required = {"norm_decay": "norm_decay(p=inf)"}
    return required.get(method.name, f"{method.name}()")


def method_page(method: Method) -> str:
    """The page of one method, as Markdown."""
    # "!": a main entry, which the search puts before pages that only hold the words
    entries = "\n".join(f"   ! single: {name}" for name in (method.name, *method.names))
    use = USE.get(method.kind)
    lines = [
        f"# {method.name}",
        f"```{{eval-rst}}\n.. index::\n{entries}\n```",
        f"Also searched as: {', '.join(method.names)}.",
        f"```{{eval-rst}}\n.. autofunction:: {method.path}\n```",
        f"## Cost\n\n{method.cost}",
        f"## When it fails\n\n{method.fails}",
    ]
    if use:
        lines.append(f"## On the command line\n\n```sh\n{use.format(call=_call(method))}\n```")
    return "\n\n".join(lines) + "\n"


def index_page(found: list[Method]) -> str:
    """The list of all methods, as Markdown, with the table of contents."""
    parts = [
        "# Methods\n\nOne page for each: its formula, its paper, its cost, and when it fails. Other names are in "
        "[the list of names](../names.md)."
    ]
    for kind, title in TITLES.items():
        rows = [f"| [`{m.name}`](../{m.page}.md) | {cell(m.sentence)} |" for m in found if m.kind == kind]
        parts.append(f"## {title}\n\n| method | what it is |\n|---|---|\n" + "\n".join(rows))
    listed = "\n".join(f"/{m.page}" for kind in TITLES for m in found if m.kind == kind)
    parts.append(f"```{{toctree}}\n:hidden:\n\n{listed}\n```")
    return "\n\n".join(parts) + "\n"


def cell(text: str) -> str:
    """A sentence of a docstring as a cell of a table in Markdown: names as code, everything else as it is written."""
    text = re.sub(r"(?::\w+:)?`+~?([^`]+)`+", r"`\1`", text)
    pieces = re.split(r"(`[^`]*`)", text)
    pieces[::2] = [re.sub(r"[\\*_]", r"\\\g<0>", piece) for piece in pieces[::2]]
    return "".join(pieces).replace("|", "\\|")


def names_table() -> str:
    """Every other name of a method, in alphabetical order, with the pages that it leads to."""
    places: dict[str, list[Method]] = {}
    for method in methods():
        for name in method.names:
            places.setdefault(name, []).append(method)
    rows = [
        f"| {name} | {', '.join(f'[`{m.name}`]({m.page}.md)' for m in places[name])} |"
        for name in sorted(places, key=str.casefold)
    ]
    return "| searched as | here |\n|---|---|\n" + "\n".join(rows)


def pages() -> dict[str, str]:
    """The text of each page, by its path below docs/."""
    found = list(methods())
    return {"methods/index.md": index_page(found), **{f"{m.page}.md": method_page(m) for m in found}}
