"""The page of benchmarks is made from the figures that the repository keeps, which name their machine."""

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KEPT = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
pytestmark = pytest.mark.skipif(not KEPT, reason="the figures are not here")


def test_the_page_is_made_from_the_figures():
    script = runpy.run_path(str(ROOT / "docs" / "write_benchmarks.py"))
    page = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert page == script["page"](), "make benchmarks-page writes it anew"
    assert {path.stem for path in KEPT} <= set(script["PARTS"])
    for path in KEPT:
        about = json.loads(path.read_text(encoding="utf-8"))["about"]
        assert about["instruction sets"] in page
        assert f"benchmarks/{path.stem}.py" in page
