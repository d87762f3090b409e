"""The gallery: each script opens as a notebook and answers its question; the page is what the scripts have left."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))
QUICK = ("linear_regions", "weight_scale", "power_iteration")
pytestmark = pytest.mark.skipif(not SCRIPTS, reason="the gallery is not here")


@pytest.fixture(scope="module")
def gallery():
    return runpy.run_path(str(ROOT / "docs" / "write_gallery.py"))


@pytest.mark.parametrize(
    "script",
    [p if p.stem in QUICK else pytest.param(p, marks=pytest.mark.slow) for p in SCRIPTS],
    ids=lambda path: path.stem,
)
def test_it_runs_and_answers(script, capsys):
    found = runpy.run_path(str(script))
    assert found["answer"] in capsys.readouterr().out
    assert re.search(r"\d", found["answer"]), "a measured number"
    assert len(re.split(r"\. (?=[A-Z])", found["answer"])) <= 3
    picture = found["chart"]._repr_svg_()
    assert picture.startswith("<svg")
    assert len(picture) < 60_000


def test_each_opens_as_a_notebook(gallery):
    assert {path.stem for path in SCRIPTS} == set(gallery["ORDER"])
    for name in gallery["ORDER"]:
        cells = gallery["notebook"](name)["cells"]
        kinds = [cell["cell_type"] for cell in cells]
        assert kinds[0] == "markdown", name
        assert kinds.count("code") >= 3, name
        assert re.match(r"# .*\?\n.", cells[0]["source"]), f"{name}: a question, and a sentence"
        for cell in cells[1:]:
            compile(cell["source"], name, "exec")


def test_the_page_is_made_of_what_the_scripts_left(gallery):
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    assert page == gallery["page"](), "make gallery writes it anew"
    for name in gallery["ORDER"]:
        assert f"](gallery/{name}.svg)" in page
        assert (ROOT / "docs" / "gallery" / f"{name}.svg").stat().st_size < 60_000
