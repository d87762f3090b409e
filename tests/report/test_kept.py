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
    write_figures,
    write_json,
    write_page,
)

CLAIM = {
    "name": "a",
    "sentence": "S.",
    "outcome": "holds",
    "evidence": "3 points",
    "section": "2",
    "study": "liu2020.table1",
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
    found = Report("T", "What?", settings=settings, runs=[run], claims=[CLAIM], sections=[section])
    return dataclasses.replace(found, **changes)


def test_a_report_is_read_as_it_was_written(report, tmp_path):
    for i, some in enumerate([report, small_report(), Report("empty", "?")]):
        write_json(some, tmp_path / f"{i}.json")
        assert read_report(tmp_path / f"{i}.json") == some


def test_a_kept_report_is_small_and_has_its_pictures(report, tmp_path):
    folder = tmp_path / "tour"
    earlier = dataclasses.replace(report.charts[0], key="of-an-earlier-one")
    keep_report(dataclasses.replace(report, charts=[earlier]), folder)
    assert (folder / "of-an-earlier-one.svg").exists()
    (folder / "of-the-user.svg").write_text("<svg/>")
    path = keep_report(report, folder)
    write_json(report, tmp_path / "whole.json")
    drawn = {chart.key for chart in report.all_charts if not chart.empty}
    assert {p.stem for p in folder.glob("*.svg")} == drawn | {"of-the-user"}
    assert drawn
    assert all(p.read_text().startswith("<svg") for p in folder.glob("*.svg"))
    assert path.stat().st_size <= (tmp_path / "whole.json").stat().st_size
    assert keep_report(small_report(), tmp_path / "small")
    kept = read_report(tmp_path / "small" / "report.json")
    assert kept.sections[0].tables["First"].rows[0]["clean"] == Stat(0.333333, 0.01, 3, 50)
    assert keep_report(kept, tmp_path / "again").read_bytes() == (tmp_path / "small/report.json").read_bytes()


def test_of_a_large_chart_the_picture_is_kept(report, tmp_path):
    chart = report.charts[0]
    large = dataclasses.replace(chart, spec=chart.spec | {"usermeta": "x" * 300_000})
    path = keep_report(dataclasses.replace(report, charts=[large], sections=[]), tmp_path)
    assert path.stat().st_size < 200_000
    picture = (tmp_path / f"{chart.key}.svg").read_bytes()
    again = read_report(path)
    assert (again.charts[0].title, again.charts[0].spec) == (chart.title, {})
    assert f"{chart.key}.svg, not its data" in write_page(again, tmp_path / "page.html").read_text()
    assert write_figures(again, tmp_path / "figures") == []
    keep_report(again, tmp_path)
    assert (tmp_path / f"{chart.key}.svg").read_bytes() == picture


@pytest.mark.parametrize(
    "content", [{}, {"table": 1, "charts": [], "sections": []}, {"table": None, "charts": 3}]
)
def test_another_file_is_refused_by_name(content, tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"report\.json is not the report of a study"):
        read_report(tmp_path / "report.json")
