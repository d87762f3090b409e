"""The results that the repository keeps: docs/results.md is made from results/, and each names its study."""

import json
import re
import runpy
from pathlib import Path

import pytest

from opnorm.report import Column, Report, Section, Stat, Table
from opnorm.studies._shared.minutes import laptop_minutes

ROOT = Path(__file__).parents[1]
SCRIPT = runpy.run_path(str(ROOT / "docs" / "write_results.py"))
NAMES = list(SCRIPT["names"]())
KEPT = sorted(path.parent.name for path in (ROOT / "results").glob("*/report.json"))


@pytest.fixture(scope="module")
def page():
    return SCRIPT["results_page"](SCRIPT["kept_reports"](), NAMES, "../results", SCRIPT["reasons"]())


def test_the_page_is_made_from_the_reports(page):
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == page, "make results-page writes it anew"


def test_the_list_of_studies_names_the_kept_times():
    for name, report in SCRIPT["kept_reports"]().items():
        taken = sum(run["seconds"] or 0 for run in report.runs) / 60
        assert laptop_minutes(name) == pytest.approx(taken, abs=1), "make results-page writes them anew"
    assert {name for name in NAMES if laptop_minutes(name) is not None} == set(KEPT)


def test_claims_without_a_positive_verdict_have_a_reason_and_no_others():
    reports = [json.loads((ROOT / "results" / name / "report.json").read_text()) for name in KEPT]
    open_ones = {
        (c["study"], c["name"]) for report in reports for c in report["claims"] if c["outcome"] != "holds"
    }
    reasons = {
        (study, claim): why for study, some in SCRIPT["reasons"]().items() for claim, why in some.items()
    }
    assert open_ones - reasons.keys() == set(), "results/reasons.toml says why, or that it is not known why"
    assert reasons.keys() - open_ones == set(), "these hold, or are gone"
    assert all(why.endswith(".") and len(why.split()) > 10 for why in reasons.values())


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
        assert f" {outcome.capitalize()}: {sum(c['outcome'] == outcome for c in claims)}." in page
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
        "name": "it_is",
        "sentence": "A sentence about <x> and a_b.",
        "outcome": "not decided",
        "evidence": "3 * 4 points",
        "section": "Section 2",
        "study": "liu2020.table1",
    }
    run = {"key": "k", "label": "l", "seed": 0, "seconds": 61.0}
    made = Report("T", "Why?", findings=["1 run failed."], runs=[run], claims=[claim], sections=[section])
    why = {"liu2020.table1": {"it_is": "Too few_points.", "gone": "Never shown."}}
    page = SCRIPT["results_page"](
        {"liu2020.table1": made}, ["liu2020.table1", "liu2020.table2"], "pictures", why
    )
    assert "1 claims. Holds: 0. Does not hold: 0. Not decided: 1." in page
    assert "Not run yet: liu2020.table2." in page
    row = (
        r"| A sentence about &lt;x> and a\_b. | 3 \* 4 points<br>Reason: Too few\_points. | Section 2 "
        "| [liu2020.table1](#liu2020table1) |"
    )
    assert page.count(row) == 2, "among all claims, and in its study"
    assert "Never shown" not in page
    for line in (
        "Why?",
        "opnorm study liu2020.table1 --size laptop --seeds 1",
        "1 run failed.",
        "What?",
        "| plain | **33.3 ±\u20091.0** |",
        "| other | failed: it diverged |",
    ):
        assert f"\n{line}\n" in page
    assert "runs: 1, 1 min 1 s of computing time" in page
