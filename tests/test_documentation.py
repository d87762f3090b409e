"""What the documentation shows is run: examples of the docstrings, of the pages and of the README, and its commands."""

import ast
import doctest
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import torch

import opnorm
from opnorm.cli import arguments
from opnorm.cli.commands import COMMANDS
from opnorm.models import cnn
from opnorm.spec import fill, full, names, parse

PACKAGE = Path(opnorm.__file__).parent
ROOT = PACKAGE.parent
PAGES = [page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()]
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if ">>>" in path.read_text(encoding="utf-8")]
OTHERS = {"accelerate", "foolbox", "pytorch_lightning", "torchattacks", "transformers"}
TAKEN_FROM_THE_DATA = {"classes": 10, "in_shape": (1, 8, 8)}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def passes(text: str, name: str, scope: dict) -> int:
    """Run the examples of a text; how many there are. Fails with what doctest reports."""
    test = doctest.DocTestParser().get_doctest(text, scope, name, None, 0)
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append, clear_globs=False)
    assert not result.failed, "".join(report)
    return result.attempted


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_examples_of_docstrings(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    nodes = [
        node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)
    ]
    torch.manual_seed(0)
    assert sum(passes(ast.get_docstring(node) or "", name, dict(vars(module))) for node in nodes)


LONG = ("transformers.md", "interoperation.md")
"""They load whole packages of others; tests/interop/ uses the same ones."""


@pytest.mark.parametrize(
    "page",
    [pytest.param(p, marks=[pytest.mark.slow] * (p.name in LONG)) for p in PAGES if p.parent != ROOT],
    ids=lambda p: p.name,
)
def test_examples_of_pages(page):
    torch.manual_seed(0)
    text = "\n\n".join(blocks(page, "python"))
    for package in sorted(OTHERS & set(re.findall(r"\w+", text))):
        pytest.importorskip(package, reason="the page shows a package of the extra interop")
    assert passes(text, page.name, {"__name__": "__main__"}) or not text


@pytest.mark.skipif(not PAGES, reason="the README is not here")
def test_python_of_the_readme():
    torch.manual_seed(0)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    scope = {
        "__name__": "__main__",
        "images": images,
        "labels": labels,
        "loader": [(images, labels)] * 2,
        "lr": 0.1,
    }
    first, *rest = blocks(ROOT / "README.md", "python")
    exec(first.replace("depth=20", "depth=8"), scope)
    scope["model"] = cnn(in_shape=(3, 32, 32), width=4)  # the blocks after the first take any model
    scope["optimizer"] = torch.optim.SGD(scope["model"].parameters(), lr=0.1)
    for block in rest:
        exec(block, scope)


def shell_commands() -> list[str]:
    """Every ``opnorm ...`` of the pages and the README, a line each, without its comment."""
    text = "\n".join(block for page in PAGES for block in blocks(page, "sh")).replace("\\\n", " ")
    lines = [re.sub(r"^.*-m opnorm", "opnorm", line.replace("...", "")) for line in text.splitlines()]
    return [" ".join(line.split()) for line in lines if line.startswith("opnorm ")]


@pytest.mark.parametrize("line", shell_commands())
def test_commands_of_the_pages_are_understood(line):
    """Each option exists, and each call that it names is in the registry and takes its arguments."""
    _, command, *args = shlex.split(line, comments=True)
    read = arguments.read([command, *args], COMMANDS)
    assert read.func is COMMANDS[command]
    for text in re.findall(r"[\w.]+\(.*\)", "\n".join(a for a in args)):
        call = parse(text)
        if not call.name.startswith("my_package."):
            full(fill(call, **TAKEN_FROM_THE_DATA))


@pytest.mark.parametrize("kind", ["objective", "regularizer", "model", "attack", "analysis"])
def test_the_pages_name_every(kind):
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES) or pytest.skip(
        "the pages are not here"
    )
    text = runpy.run_path(str(ROOT / "docs" / "conf.py"))["insert_tables"](text)
    assert [name for name in names(kind) if not re.search(rf"`{name}[(`]", text)] == []
