"""The results that the repository keeps: docs/results.md is made from results/, and each names its study."""

import json
import re
import runpy
from pathlib import Path

import pytest

from opnorm.report import Column, Report, Section, Stat, Table

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "write_results.py"))
NAMES = list(SCRIPT["names"]())
KEPT = sorted(path.parent.name for path in (ROOT / "results").glob("*/report.json"))


@pytest.fixture(scope="module")
def page():
    return SCRIPT["results_page"](SCRIPT["kept_reports"](), NAMES, "../results")


def test_the_page_is_made_from_the_reports(page):
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == page, "make results-page writes it anew"


def test_every_kept_study_exists_and_is_on_the_page(page):
    assert KEPT
    assert set(KEPT) <= set(NAMES)
    for name in NAMES:
        assert (f"\n## {name}\n" in page) == (name in KEPT)
        assert (f"opnorm study {name} --size laptop" in page) == (name in KEPT)
    missing = [name for name in NAMES if name not in KEPT]
    assert (f"Not run yet: {', '.join(missing)}." in page) == bool(missing)


def test_every_picture_is_there_and_shown(page):
    shown = {(ROOT / "docs" / path).resolve() for path in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", page)}
    there = {path.resolve() for path in (ROOT / "results").glob("*/*.svg")}
    assert shown == there
    assert sum(path.stat().st_size for path in (ROOT / "results").rglob("*")) < 20e6


def test_nothing_kept_names_a_folder_of_one_machine(page):
    texts = [
        page,
        *(path.read_text(encoding="utf-8") for path in (ROOT / "results").rglob("*") if path.is_file()),
    ]
    for text in texts:
        assert not re.findall(r"(?<![\w.:/])/(?:home|Users|root|work|tmp|mnt|var|opt)/[^\s\"]*", text)


def test_every_verdict_is_counted_and_shown(page):
    reports = [json.loads((ROOT / "results" / name / "report.json").read_text()) for name in KEPT]
    claims = [claim for report in reports for claim in report["claims"]]
    for outcome in ("holds", "does not hold", "not decided"):
        assert f"{sum(claim['outcome'] == outcome for claim in claims)} {outcome}" in page
        below = page.partition(f"## {outcome.capitalize()}\n")[2].partition("\n## ")[0]
        rows = [line for line in below.splitlines() if line.startswith("| ")][1:]
        assert len(rows) == sum(claim["outcome"] == outcome for claim in claims)


def test_a_page_of_made_up_reports():
    columns = [Column("method", "method", "text"), Column("clean", "clean", "percent", "high")]
    rows = [
        {"method": "plain", "clean": Stat(1 / 3, 0.01, 3, 50)},
        {"method": "other", "_failed": "it diverged"},
    ]
    section = Section("table1", "Table 1", "What?", {"First": Table(columns, rows, {"clean": [0]})})
    claim = {
        "sentence": "A sentence about <x> and a_b.",
        "outcome": "not decided",
        "evidence": "3 * 4 points",
        "section": "Section 2",
        "study": "liu2020.table1",
    }
    run = {"key": "k", "label": "l", "seed": 0, "seconds": 61.0}
    made = Report("T", "Why?", findings=["1 run failed."], runs=[run], claims=[claim], sections=[section])
    page = SCRIPT["results_page"]({"liu2020.table1": made}, ["liu2020.table1", "liu2020.table2"], "pictures")
    assert "1 claims: 0 holds, 0 does not hold, 1 not decided." in page
    assert "Not run yet: liu2020.table2." in page
    row = r"| A sentence about &lt;x> and a\_b. | 3 \* 4 points | Section 2 | [liu2020.table1](#liu2020table1) |"
    assert page.count(row) == 2, "among all claims, and in its study"
    for line in (
        "Why?",
        "1 run failed.",
        "What?",
        "| plain | **33.3 ±\u20091.0** |",
        "| other | failed: it diverged |",
    ):
        assert f"\n{line}\n" in page
    assert "runs: 1, 1 min 1 s of computing time" in page
