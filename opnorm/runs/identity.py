"""What a result depends on: calls with all their arguments, the user's code that they reach, files, the network.

A result that is kept is found by a key made of these, so that the key changes whenever the result could. What no key
can see, such as a file that the user's code opens by itself, is noticed by the outputs of the network on fixed inputs.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import math
import os
import site
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import opnorm
from opnorm import spec
from opnorm._core.weight_paths import INDEX, shards_of

__all__ = ["hash_of", "identity", "same_outputs", "sources", "users_file", "with_full_paths"]

PATHS = {"file": "path", "folder": "path", "parquet": "path"}
"""The functions of opnorm that read a file or a folder, and the argument that names it."""

NOT_THE_USERS = {"opnorm", *sys.stdlib_module_names} - {"__main__"}


@functools.cache
def _installed() -> tuple[str, ...]:
    """The folders of the standard library and of installed packages."""
    own = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return (*site.getsitepackages(), site.getusersitepackages(), *own)


def hash_of(*values: Any) -> str:
    """Twelve hex digits of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:12]


def identity(call: spec.Call) -> dict[str, Any]:
    """The call with all arguments, the sources of the user's modules that it reaches, its files, opnorm's version."""
    parts = list(spec.calls_in(call))
    return {
        "call": str(call),
        "sources": sources(part.name.rpartition(".")[0] for part in parts if "." in part.name),
        "files": {path: file_state(Path(path)) for part in parts for path in _paths(part)},
        "opnorm": opnorm.__version__,
    }


def with_full_paths(call: spec.Call) -> spec.Call:
    """The call with the absolute paths of files and folders that exist, so that it means the same in every folder."""
    call = spec.map_calls(call, with_full_paths)
    path = PATHS.get(call.name)
    full = {
        k: os.path.abspath(os.path.expanduser(v)) for k, v in call.kwargs if k == path and isinstance(v, str)
    }
    existing = {k: v for k, v in full.items() if os.path.exists(v)}
    return spec.Call(call.name, call.args, tuple((k, existing.get(k, v)) for k, v in call.kwargs))


def _paths(call: spec.Call) -> Iterator[str]:
    """The files and folders that the arguments of a call name: of the user's own function, every text that is a path."""
    texts = [(name, value) for name, value in call.kwargs if isinstance(value, str)]
    texts += [("", value) for value in call.args if isinstance(value, str)]
    for name, text in texts:
        path = os.path.abspath(os.path.expanduser(text))
        if text and (name == PATHS.get(call.name) or "." in call.name) and os.path.exists(path):
            yield path
            if path.endswith(INDEX) and call.name == "file":
                yield from (os.path.join(os.path.dirname(path), shard) for shard in shards_of(Path(path)))


def file_state(path: Path) -> Any:
    """The hash of a file's content; of the files of a folder, names, sizes and times of the last change."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    found = []
    for folder, _, names in os.walk(path):
        for name in names:
            stat = os.stat(os.path.join(folder, name))
            found.append((os.path.relpath(os.path.join(folder, name), path), stat.st_size, stat.st_mtime_ns))
    return hash_of(sorted(found))


# ---------------------------------------------------------------- the user's code

_loaded: dict[str, tuple[ModuleSpec | None, str]] = {}
"""The hash of the source of each module that is loaded, taken once: a later change of the file is not in this process."""


def sources(modules: Iterable[str]) -> dict[str, str]:
    """The hash of the source of each of the user's modules among these, and of those that they import, at any depth.

    Where one of them imports by a computed name, all modules of its package count. Installed packages, the standard library
    and opnorm are not the user's.
    """
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = users_file(name)
        if name in found or path is None:
            continue
        text = path.read_bytes()
        found[name] = _source_hash(name, text)
        waiting.append(name.rpartition(".")[0])
        if path.suffix == ".py":
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            waiting += _imports(package, text)
    return dict(sorted(found.items()))


def _source_hash(name: str, text: bytes) -> str:
    module, digest = sys.modules.get(name), hashlib.sha256(text).hexdigest()
    if module is None:
        return digest
    loaded = _loaded.get(name)
    if loaded is None or loaded[0] is not module.__spec__:  # another one after importlib.reload
        loaded = _loaded[name] = (module.__spec__, digest)
    return loaded[1]


def users_file(name: str) -> Path | None:
    """The file of a module of the user; None for every other one. Nothing is imported."""
    top, *below = name.split(".")
    if not top or top in NOT_THE_USERS:
        return None
    path = getattr(sys.modules.get(name), "__file__", None)
    if path is None and not below:
        found = _find(top)
        path = found.origin if found and found.has_location else None
    elif path is None:
        bases = [Path(folder, *below) for folder in _folders_of(top)]
        files = (file for base in bases for file in (base / "__init__.py", base.with_suffix(".py")))
        path = next((file for file in files if file.is_file()), None)
    path = None if path is None else Path(os.path.abspath(path))
    return None if path is None or any(path.is_relative_to(folder) for folder in _installed()) else path


def _find(top: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(top) or PathFinder.find_spec(
            top, [""]
        )  # as spec.resolve looks for it
    except (ImportError, ValueError):
        return None


def _folders_of(package: str) -> list[str]:
    found = _find(package)
    return list(found.submodule_search_locations or ()) if found else []


@functools.lru_cache(maxsize=4096)
def _imports(package: str, text: bytes) -> list[str]:
    """The modules that a source in this package may import, anywhere in it."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return []
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            found += _modules_of(package.split(".")[0]) if name in ("import_module", "__import__") else []
    return found


def _modules_of(package: str) -> list[str]:
    """All modules of a package, by their files."""
    files = [
        path.relative_to(folder) for folder in _folders_of(package) for path in Path(folder).rglob("*.py")
    ]
    parts = [file.with_suffix("").parts for file in files]
    return [".".join((package, *(part for part in names if part != "__init__"))) for names in parts]


def same_outputs(kept: Any, now: list[list[float]] | None) -> bool:
    """Whether outputs that were kept are those of now, up to rounding; so it is where one of them is random."""
    if kept is None or now is None:
        return True
    if [len(row) for row in kept] != [len(row) for row in now]:
        return False
    before = [math.nan if value is None else value for row in kept for value in row]
    scale = max((abs(value) for value in before if math.isfinite(value)), default=0.0)
    return all(
        math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3 * scale) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(before, (value for row in now for value in row), strict=True)
    )
