"""The studies of papers: their parts, their claims, and their smoke size, run as a user runs it."""

import json
import math
import re
from dataclasses import replace

import pytest

from opnorm import spec, studies
from opnorm.errors import SpecError
from opnorm.runs import study_page
from opnorm.runs.run import Result
from opnorm.runs.runner import run_study
from opnorm.runs.store import Store
from opnorm.studies import Setting, papers, study_call
from opnorm.studies._shared.minutes import laptop_minutes
from opnorm.studies._shared.outcomes import Outcomes
from opnorm.studies._shared.paper import SIZES, outcomes_of
from opnorm.studies._shared.printed import printed_numbers
from tests.studies.made_up_results import outcomes_with

PAPERS = {paper.name: paper for paper in papers()}
SMOKE = Setting("smoke")
CLAIMS = [claim for paper in papers() for part in paper.parts.values() for claim in part.claims]


@pytest.mark.parametrize("name", PAPERS)
def test_every_size_is_complete(name):
    paper = PAPERS[name]
    assert set(paper.sizes) == set(SIZES)
    for name, part in paper.parts.items():
        for size in SIZES:
            cases = part.cases(Setting(size))
            assert cases, name
            who = {(c.network, c.method, c.run.seed) for c in cases}
            assert len({(c.run.key, c.run.analyses) for c in cases}) == len(who) == len(cases)
        assert part.asks.endswith("?")


def test_laptop_size_has_all_that_the_paper_has():
    for paper in papers():
        for name, part in paper.parts.items():
            laptop, full = (
                {(c.network, re.sub(r"[\d.e-]+", "#", c.method)) for c in part.cases(Setting(s))}
                for s in ("laptop", "paper")
            )
            assert full <= laptop, f"{paper.name}.{name}"


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_every_claim_names_its_section(claim):
    assert re.search(r"Section|Table|Figure|Theorem|Proposition|Appendix", claim.section)
    assert re.fullmatch(r"[a-z0-9_]+", claim.name)
    assert claim.sentence.endswith(".")


def test_names_of_claims_are_unique():
    names = [claim.name for claim in CLAIMS]
    assert len(set(names)) == len(names)


PRINTED = [
    (name, part) for name, paper in PAPERS.items() for part in paper.parts if printed_numbers(name, part)
]


def test_every_printed_table_has_its_part():
    assert set(PRINTED) == {(name, table) for name, tables in printed_numbers().items() for table in tables}


@pytest.mark.parametrize(("name", "part"), PRINTED)
def test_every_printed_number_is_shown(name, part, monkeypatch):
    """Beside the measured one, in the table of its network, the row of its method (or of its network) and its column."""
    monkeypatch.setattr(Outcomes, "chart", lambda *_: [])  # tables alone
    setting = Setting("paper", seeds=1)
    paper = PAPERS[name]
    tables = paper.parts[part].section(setting, outcomes_with(paper, part, {}, setting)).tables
    beside = {t: table for t, table in tables.items() if any(c.key.endswith("_paper") for c in table.columns)}
    for network, methods in printed_numbers(name, part).items():
        of_network = [beside[title] for title in beside if f"{title}, ".startswith(f"{network}, ")]
        for method, numbers in methods.items():
            names = (method,) if of_network else (method, network)
            shown = [
                (table, row)
                for table in of_network or beside.values()
                for row in table.rows
                if row["method"] in names
            ]
            ((table, row),) = shown
            keys = {column.key for column in table.columns}
            for key, number in numbers.items():
                assert f"{key}_paper" in keys, (network, method, key)
                assert row[f"{key}_paper"] == number


LONG = PAPERS.keys() - {"liu2020"}  # the quickest of the four


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in LONG)) for name in PAPERS]
)
def test_smoke(name, main, tmp_path, monkeypatch):
    """The whole paper by one command: page, tables, a verdict on every claim."""
    monkeypatch.setattr(
        study_page, "LEAST", math.inf
    )  # one page under way: check_pages_under_way makes the others
    status, out, _ = main("study", name, "--size", "smoke", "--out", "runs", "--jobs", "1")
    assert status == 0
    (folder,) = (tmp_path / "runs").glob(f"{name}-*")
    assert out.splitlines()[-1] == str(folder.relative_to(tmp_path) / "report.html")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    wanted = [claim.name for part in PAPERS[name].parts.values() for claim in part.claims]
    assert [claim["name"] for claim in report["claims"]] == wanted
    assert {claim["outcome"] for claim in report["claims"]} <= {"holds", "does not hold", "not decided"}
    assert [section["key"] for section in report["sections"]] == list(PAPERS[name].parts)
    failed = [
        row for s in report["sections"] for t in s["tables"].values() for row in t["rows"] if "_failed" in row
    ]
    assert not failed
    monkeypatch.setattr(Outcomes, "chart", lambda *_: [])  # verdicts and findings alone
    made_up_failures_leave_claims_undecided(name)


def verdicts(name, study, results):
    """By claim, the verdict that these results give, those of searches included; what these ask for next is to come."""
    further = {
        run.key: Result.to_come(run) for run in (study.more(list(results.values())) if study.more else ())
    }
    known = list((results | further).values())
    return {
        claim.name: claim.verdict(outcomes_of(part, SMOKE, part.cases(SMOKE), known))
        for part in PAPERS[name].parts.values()
        for claim in part.claims
    }


def made_up_failures_leave_claims_undecided(name):
    """Some of the runs, or all, as if they had failed: no claim gets another verdict than "not decided".

    test_claims_both_ways does so for every method of every claim.
    """
    study = spec.build(f"{name}(size='smoke')", "study")
    results = {r.run.key: r for r in run_study(study, Store("runs"), jobs=1)}
    failed = {
        key: replace(r, rows={}, metrics=[], failure="the loss was not finite") for key, r in results.items()
    }
    before = verdicts(name, study, results)
    assert not any(verdict.evidence.startswith("Not run yet") for verdict in before.values())
    for key in list(results)[:: max(len(results) // 3, 1)]:
        for claim, verdict in verdicts(name, study, results | {key: failed[key]}).items():
            assert verdict == before[claim] or verdict.outcome == "not decided", claim
    check_pages_under_way(study, list(results.values()))
    report = study.report(list(failed.values()))
    assert {claim["outcome"] for claim in report.claims} <= {"not decided"}
    assert report.findings[0].startswith(f"{len(failed)} runs failed, and claims that need them")


def check_pages_under_way(study, whole):
    """A report of a part of the runs says what is not known, and decides no claim on a part of what it needs."""
    evidence = {claim["name"]: claim["evidence"] for claim in study.report(whole).claims}
    for ended in sorted({0, 1, len(whole) // 2, len(whole) - 1}):
        report = study.report([r if i < ended else Result.to_come(r.run) for i, r in enumerate(whole)])
        assert len(report.runs) == ended
        # the search of Roth may end at a strength that diverges, which counts as accuracy 0
        assert all("dd_snr" in finding or "dd_onr" in finding for finding in report.findings)
        assert [claim["name"] for claim in report.claims] == list(evidence)
        for claim in report.claims:
            waits = claim["outcome"] == "not decided" and claim["evidence"].startswith("Not run yet")
            assert waits or (ended and claim["evidence"] == evidence[claim["name"]]), claim


def test_the_list_names_every_part_with_its_runs_and_time(main):
    status, out, _ = main("study", "--list", "--json")
    assert status == 0
    rows = {row["study"]: row for row in json.loads(out)}
    assert rows.keys() == {"tour"} | {f"{name}.{part}" for name, p in PAPERS.items() for part in p.parts}
    assert all(row["runs"] > 0 and row["asks"].endswith("?") for row in rows.values())
    assert rows["liu2020.table1"]["minutes"] == laptop_minutes("liu2020.table1") > 1
    some = json.loads(main("study", "wen2020", "--list", "--json")[1])
    assert [row["study"] for row in some] == [study for study in rows if study.startswith("wen2020.")]
    (one,) = json.loads(main("study", "wen2020.figure8", "--list", "--json")[1])  # another name of the part
    assert one == rows["wen2020.table1"]
    (tour,) = json.loads(main("study", "tour", "--list", "--json")[1])
    assert tour == rows["tour"]
    assert main("study", "wen2002.table6", "--list")[2].count("did you mean 'wen2020.table6'?") == 1


def test_names_of_parts_are_unique():
    for paper in PAPERS.values():
        assert not paper.parts.keys() & paper.also.keys()
        assert set(paper.also.values()) <= paper.parts.keys()
        for name in paper.parts:
            assert paper.study(name, SMOKE).name == f"{paper.name}.{name}"
        with pytest.raises(
            SpecError, match=f"{paper.name} has no part 'nosuch'; there are {next(iter(paper.parts))}"
        ):
            paper.study("nosuch", SMOKE)
        for other, name in paper.also.items():
            assert paper.study(other, SMOKE).runs == paper.study(name, SMOKE).runs


def test_one_part_by_its_name():
    assert str(study_call("liang2021.table2(seeds=2)")) == 'liang2021(part="table2", seeds=2)'
    assert str(study_call("tour(epochs=5)")) == "tour(epochs=5)"
    assert str(study_call("lab.study()")) == "lab.study()"
    study = spec.build(study_call("liang2021.figure2(size='smoke')"), "study")
    assert study.name == "liang2021.figure2"


def test_runs_that_parts_share_are_trained_once():
    whole = studies.liang2021()
    parts = [
        run.key
        for part in PAPERS["liang2021"].parts
        for run in PAPERS["liang2021"].study(part, Setting()).runs
    ]
    assert len({run.key for run in whole.runs}) == len(whole.runs) == len(set(parts))


def test_some_of_the_runs():
    some = studies.liang2021(part="figure2", only="trades")
    assert {run.objective.partition("(")[0] for run in some.runs} == {"trades"}
    assert len(studies.liang2021(part="figure2", only="vgg*").runs) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"part": "tabel2"}, "did you mean liang2021.table2"),
        ({"part": "nothing"}, "there are table"),
        ({"only": "mamba"}, "matches no run; there are .*VGG-11"),
        ({"size": "huge"}, "expected"),
        ({"seeds": 0}, "at least 1"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SpecError, match=message):
        studies.liang2021(**settings)
