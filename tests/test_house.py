"""The layout of the package: the order of imports, the names of its modules, the length of files and functions."""

import ast
import functools
import importlib
import inspect
import pkgutil
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import jaxtyping
import pytest
import torch

import opnorm
from opnorm.spec import FAMILIES, names

ROOT = Path(opnorm.__file__).parent


def order() -> dict[str, int]:
    """The rank of each family in the order of imports, which CONTRIBUTING.md states."""
    text = (ROOT.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")
    ranks = re.search(r"^ {4}errors .*?\n\n", text, re.MULTILINE | re.DOTALL).group().split("→")
    return {family.strip(): rank for rank, families in enumerate(ranks) for family in families.split("·")}


RANK = order()
FILE, FUNCTION, PARAMETERS = 350, 60, 8  # lines of a file and of a function, parameters of a function

SETTINGS = {
    name for kind in FAMILIES for name in names(kind)
}  # named in the call syntax: keywords are options
TOP_FILES = {
    ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile",
    "README.md", "constraints.txt", "pyproject.toml",
}  # fmt: skip
TOP_FOLDERS = {".ci", ".github", "benchmarks", "docs", "examples", "opnorm", "results", "tests"}
TEXTS = {
    "",
    ".cfg",
    ".cff",
    ".css",
    ".jinja",
    ".js",
    ".json",
    ".md",
    ".py",
    ".svg",
    ".toml",
    ".txt",
    ".typed",
    ".yaml",
    ".yml",
}
OTHERS = {
    "opnorm/data/digits.npz",
    "docs/report.png",
}  # the data set that comes along, the picture of the README
DATA = (
    "opnorm/studies/_shared/",
    "docs/gallery/",
    "benchmarks/results/",
    "results/",
)  # where figures are kept
MODULES = sorted(
    m.name for m in pkgutil.walk_packages(opnorm.__path__, "opnorm.") if not m.name.endswith("__main__")
)


@functools.cache
def trees() -> dict[str, ast.Module]:
    """The syntax tree of each file of the package, which takes a second: not for every process of the tests."""
    paths = sorted(ROOT.rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in paths}


def imported(name: str, tree: ast.AST) -> set[str]:
    """The families that a module imports, at its top or inside a function."""
    package = ["opnorm", *name.split("/")[:-1]]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names} if base == "opnorm" else {base}
    return {full.split(".")[1] for full in found if full.startswith("opnorm.")} & set(RANK)


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(module: str, function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many parameters a function has; keyword-only ones that a user writes as options do not count."""
    if module.startswith("cli/"):
        return 0
    named = function.args.posonlyargs + function.args.args
    named += [] if function.name in SETTINGS else function.args.kwonlyargs
    return len([argument for argument in named if argument.arg not in ("self", "cls")])


def tracked() -> list[str]:
    """The files that git has of the repository; of an unpacked release there is no such list."""
    if not (ROOT.parent / ".git").exists() or shutil.which("git") is None:
        pytest.skip(
            "this is no checkout of the repository, and only git tells its files from what was made there"
        )
    listed = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    names = subprocess.run(listed, cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout
    return [name for name in names.split("\0") if name and (ROOT.parent / name).exists()]


def test_no_file_stands_where_none_belongs():
    """Weights, data sets and pages that somebody tried something with are not committed by accident."""
    files = tracked()
    assert {name for name in files if "/" not in name} == TOP_FILES
    assert {name.partition("/")[0] for name in files if "/" in name} == TOP_FOLDERS
    no_texts = {name for name in files if Path(name).suffix not in TEXTS and Path(name).name not in TOP_FILES}
    no_texts |= {name for name in files if b"\0" in (ROOT.parent / name).read_bytes()[:8192]}
    assert sorted(no_texts - OTHERS) == []
    data = {name for name in files if Path(name).suffix in (".json", ".svg")}
    assert sorted(name for name in data if not name.startswith(DATA)) == []
    large = {name for name in files if (ROOT.parent / name).stat().st_size > 3_000_000}
    assert sorted(large) == []


def test_imports_keep_the_order():
    """A family imports only from itself and from those before it, lazily inside functions included."""
    backwards = set()
    for name, tree in trees().items():
        family = name.split("/")[0].removesuffix(".py")
        if family not in ("__init__", "__main__"):
            later = {f for f in imported(name, tree) - {family} if RANK[f] >= RANK[family]}
            backwards |= {f"{name} -> {other}" for other in later}
    assert sorted(backwards) == []


def test_every_family_has_its_place():
    top = {path.stem for path in ROOT.glob("*.py")} | {
        path.parent.name for path in ROOT.glob("*/__init__.py")
    }
    assert top - {"__init__", "__main__"} == set(RANK)
    assert {path.stem for path in ROOT.glob("*.py")} == {
        "__init__",
        "__main__",
        "errors",
        "objectives",
    }


def test_no_name_hides_a_module():
    for name in MODULES:
        importlib.import_module(name)
    hidden = set()
    for name in MODULES:
        package, _, module = name.rpartition(".")
        if not inspect.ismodule(getattr(importlib.import_module(package), module)):
            hidden.add(name)
    assert sorted(hidden) == []


def test_no_two_modules_have_one_name():
    stems = Counter(name.rpartition("/")[2].removesuffix(".py").strip("_") for name in trees())
    twins = {stem for stem, count in stems.items() if count > 1 and stem != "init"}
    assert sorted(twins) == []


def test_files_and_functions_are_short():
    found = {name for name in trees() if len((ROOT / name).read_text(encoding="utf-8").splitlines()) > FILE}
    for name, tree in trees().items():
        for function in functions(tree):
            lines = function.end_lineno - function.lineno + 1
            if lines > FUNCTION or parameters(name, function) > PARAMETERS:
                found.add(f"{name}:{function.name}")
    assert sorted(found) == []


def test_public_names_are_documented():
    bare = []
    for name in MODULES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            text = inspect.getdoc(value) or ""
            if (inspect.isclass(value) or inspect.isfunction(value)) and (
                not text or text.startswith(f"{public}(")
            ):
                bare.append(f"{name}.{public}")  # a dataclass without a docstring repeats its signature
    assert bare == []


def test_every_factory_is_imported_by_its_family():
    """Otherwise its name is not known in the call syntax, and the contract tests pass it by."""
    missing = set()
    for module, tree in trees().items():
        for function in functions(tree):
            for mark in (d for d in function.decorator_list if isinstance(d, ast.Call)):
                if isinstance(mark.func, ast.Name) and mark.func.id == "factory":
                    family = FAMILIES[mark.args[0].value]
                    if not hasattr(importlib.import_module(family), function.name):
                        missing.add(f"{module}: import {function.name} in {family}, and name it in __all__")
    assert sorted(missing) == []


def test_shapes_in_signatures_are_checked():
    with pytest.raises(jaxtyping.TypeCheckError, match="out in"):
        opnorm.norms.linear_l1(torch.zeros(2, 3, 4))
