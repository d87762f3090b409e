"""Reports that are kept in a repository."""

import dataclasses
import json

import pytest

from opnorm.errors import RunError
from opnorm.report import (
    Column,
    Report,
    Section,
    Stat,
    Table,
    keep_report,
    read_report,
    results_page,
    write_json,
)


def claim(outcome, study="liu2020.table1"):
    return {
        "name": "a",
        "sentence": f"A sentence about <x> and a_b that {outcome}.",
        "outcome": outcome,
        "evidence": "3 * 4 points",
        "section": "Section 2",
        "study": study,
    }


def small_report(**changes):
    columns = [Column("method", "method", "text"), Column("clean", "clean", "percent", "high")]
    rows = [
        {"method": "plain", "clean": Stat(1 / 3, 0.01, 3, 50)},
        {"method": "other", "_failed": "it diverged"},
    ]
    section = Section("table1", "Table 1", "What?", {"First": Table(columns, rows, {"clean": [0]})})
    settings = {"machine": "m", "computing time": "5 s"}
    run = {"key": "k", "label": "l", "seed": 0, "seconds": 61.0}
    found = Report("T", "What?", settings=settings, runs=[run], claims=[claim("holds")], sections=[section])
    return dataclasses.replace(found, **changes)


def test_a_report_is_read_as_it_was_written(report, tmp_path):
    for i, some in enumerate([report, small_report(), Report("empty", "?")]):
        write_json(some, tmp_path / f"{i}.json")
        assert read_report(tmp_path / f"{i}.json") == some


def test_a_kept_report_is_small_and_has_its_pictures(report, tmp_path):
    folder = tmp_path / "tour"
    (tmp_path / "tour").mkdir()
    (folder / "of-an-earlier-one.svg").write_text("<svg/>")
    path = keep_report(report, folder)
    write_json(report, tmp_path / "whole.json")
    drawn = {chart.key for chart in report.all_charts if not chart.empty}
    assert {p.stem for p in folder.glob("*.svg")} == drawn
    assert drawn
    assert all(p.read_text().startswith("<svg") for p in folder.glob("*.svg"))
    assert path.stat().st_size <= (tmp_path / "whole.json").stat().st_size
    assert keep_report(small_report(), tmp_path / "small")
    kept = read_report(tmp_path / "small" / "report.json")
    assert kept.sections[0].tables["First"].rows[0]["clean"] == Stat(0.333333, 0.01, 3, 50)
    assert keep_report(kept, tmp_path / "again").read_bytes() == (tmp_path / "small/report.json").read_bytes()


@pytest.mark.parametrize(
    "content", [{}, {"table": 1, "charts": [], "sections": []}, {"table": None, "charts": 3}]
)
def test_another_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"report\.json is not the report of a study"):
        read_report(tmp_path / "report.json")


def test_the_page_has_every_claim_table_picture_and_command(report):
    other = small_report(
        claims=[claim("not decided", "liu2020.table2")],
        sections=[Section("table2", "Table 2", charts=report.charts)],
    )
    page = results_page({"liu2020.table1": small_report(), "liu2020.table2": other}, "../results")
    assert "2 claims: 1 holds, 0 does not hold, 1 not decided." in page
    row = r"| A sentence about &lt;x> and a\_b that holds. | 3 \* 4 points | Section 2 | [liu2020.table1](#liu2020table1) |"
    assert page.count(row) == 2, "among all claims, and in its study"
    assert "| plain | **33.3 ±\u20091.0** |" in page
    assert "| other | failed: it diverged |" in page
    assert "opnorm study liu2020.table2 --size laptop" in page
    assert "runs: 1, 1 min 1 s of computing time" in page
    for chart in report.charts:
        assert (f"(../results/liu2020.table2/{chart.key}.svg)" in page) == (not chart.empty)
