"""The results that the repository keeps: docs/results.md is made from results/, and each names its study."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "write_results.py"))
KEPT = sorted(path.parent.name for path in (ROOT / "results").glob("*/report.json"))


@pytest.fixture(scope="module")
def page():
    return SCRIPT["page"]()


def test_the_page_is_made_from_the_reports(page):
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == page, "make results-page writes it anew"


def test_every_kept_study_exists_and_is_on_the_page(page):
    assert KEPT
    assert set(KEPT) <= set(SCRIPT["names"]())
    for name in KEPT:
        assert f"\n## {name}\n" in page
        assert f"opnorm study {name} --size laptop" in page


def test_every_picture_is_there_and_shown(page):
    shown = {(ROOT / "docs" / path).resolve() for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)}
    there = {path.resolve() for path in (ROOT / "results").glob("*/*.svg")}
    assert shown == there
    assert sum(path.stat().st_size for path in (ROOT / "results").rglob("*")) < 20e6
