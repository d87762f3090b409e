"""The pages that are made when Sphinx starts: a page for each method, its other names, and every public name."""

import importlib
import pkgutil
import re
import sys
from pathlib import Path

import pytest

import opnorm

DOCS = Path(opnorm.__file__).parents[1] / "docs"
if not DOCS.is_dir():
    pytest.skip("the pages are not here", allow_module_level=True)
sys.path.insert(0, str(DOCS))
method_pages = importlib.import_module("method_pages")
reference_pages = importlib.import_module("reference_pages")
sys.path.remove(str(DOCS))

METHODS = list(method_pages.methods())


def test_every_registered_method_has_a_page_and_no_other():
    known = {(method.kind, method.name) for method in METHODS if method.kind != "norm"}
    assert known == method_pages.registered(), "docs/methods.toml"
    assert {f"{method.page}.md" for method in METHODS} < set(method_pages.pages())
    assert len({method.page for method in METHODS}) == len(METHODS)


def test_a_page_has_cost_failure_and_the_docstring():
    for method in METHODS:
        assert f".. autofunction:: {method.path}" in method_pages.method_page(method)
        assert callable(method.value), method.name
        assert method.names, method.name
        assert method.cost[-1] == method.fails[-1] == ".", method.name


@pytest.mark.parametrize(
    ("searched", "page"),
    [
        ("spectral norm regularization", "global_snr"),
        ("Parseval networks", "parseval"),
        ("Jacobian regularization", "dd_snr"),
        ("Lipschitz margin", "proof"),
        ("gradient regularization", "input_gradient"),
        ("double backpropagation", "input_gradient"),
        ("orthogonal regularization", "parseval"),
        ("weight clipping", "spectral_normalization"),
        ("adversarial training", "pgd_at"),
        ("local Lipschitz constant", "jacobian_norm"),
    ],
)
def test_a_method_is_found_by_its_other_names(searched, page):
    (row,) = re.findall(rf"^\| {searched} \| .*$", method_pages.names_table(), re.MULTILINE)
    assert f"(methods/{page}.md)" in row
    text = method_pages.pages()[f"methods/{page}.md"]
    assert f"! single: {searched}" in text, "the general index"
    assert text.count(searched) > 1, "the search"


def test_every_public_name_is_in_the_reference():
    pages = "\n".join([*reference_pages.pages().values(), *method_pages.pages().values()])
    documented = set(
        re.findall(r"^(?:\.\. auto(?:function|class):: |- ``|- :py:\w+:`)([\w.]+)", pages, re.MULTILINE)
    )
    constants = re.findall(r"^\.\. py:data:: (\w+)\n   :module: ([\w.]+)", pages, re.MULTILINE)
    documented |= {f"{module}.{name}" for name, module in constants}
    modules = {"opnorm"} | {found.name for found in pkgutil.walk_packages(opnorm.__path__, "opnorm.")}
    public = {
        f"{name}.{each}"
        for name in modules
        if "._" not in name and not f"{name}.".startswith("opnorm.cli.")
        for each in getattr(importlib.import_module(name), "__all__", ())
    }
    assert {name for name in public - documented if name not in modules} == set()


def test_a_name_leads_to_where_it_is_documented():
    assert reference_pages.place_of("opnorm.measure") == "opnorm.norms.measure"
    assert (
        reference_pages.place_of("opnorm.norms.network.lipschitz.NetworkBound") == "opnorm.norms.NetworkBound"
    )
    assert reference_pages.place_of("opnorm.no_such_name") is None


def test_the_short_list_names_what_exists():
    for names in re.findall(
        r"<!-- names:\n(.*?)-->", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL
    ):
        rows = reference_pages.short_list(names).splitlines()[2:]
        assert len(rows) >= len(names.split())


def test_the_short_list_has_every_name_at_the_top_of_the_package():
    listed = re.findall(r"<!-- names:\n(.*?)-->", (DOCS / "api.md").read_text(encoding="utf-8"), re.DOTALL)
    names = {
        reference_pages.place_of(path)
        for path in re.findall(r"\{py:\w+\}`([\w.]+)`", "".join(map(reference_pages.short_list, listed)))
    }
    modules = {found.name for found in pkgutil.walk_packages(opnorm.__path__, "opnorm.")}
    top = {f"opnorm.{name}" for name in opnorm.__all__} - modules
    assert {name for name in top if reference_pages.place_of(name) not in names} == set()


def test_every_page_is_in_the_table_of_contents():
    text = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = " ".join(
        re.findall(r"^```{toctree}\n(?::[^\n]*\n)*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ).split()
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert {name for name in listed if "/" not in name} == pages
    assert len(listed) == len(set(listed))
