"""The studies of papers: their parts, their claims, and their smoke size, run as a user runs it."""

import json
import re
from dataclasses import replace

import pytest

from opnorm import spec, studies
from opnorm.errors import SpecError
from opnorm.runs.run import Result
from opnorm.runs.runner import run_study
from opnorm.runs.store import Store
from opnorm.studies import Setting, papers, study_call
from opnorm.studies._shared.outcomes import Outcome, Outcomes
from opnorm.studies._shared.paper import SIZES

PAPERS = {paper.name: paper for paper in papers()}
CLAIMS = [(paper, part, claim) for paper in papers() for part in paper.parts for claim in part.claims]


@pytest.mark.parametrize("name", PAPERS)
def test_every_size_is_complete(name):
    paper = PAPERS[name]
    assert set(paper.sizes) == set(SIZES)
    for part in paper.parts:
        for size in SIZES:
            cases = part.cases(Setting(size))
            assert cases, part.name
            names = {(c.network, c.method, c.run.seed) for c in cases}
            assert len({(c.run.key, c.run.analyses) for c in cases}) == len(names) == len(cases)
        assert part.asks.endswith("?")


def test_laptop_size_has_all_that_the_paper_has():
    for paper in papers():
        for part in paper.parts:
            laptop, full = (
                {(c.network, re.sub(r"[\d.e-]+", "#", c.method)) for c in part.cases(Setting(s))}
                for s in ("laptop", "paper")
            )
            assert len(laptop) >= len(full), f"{paper.name}.{part.name}"


@pytest.mark.parametrize(("paper", "part", "claim"), CLAIMS, ids=lambda x: x.name)
def test_every_claim_names_its_section(paper, part, claim):
    assert re.search(r"Section|Table|Figure|Theorem|Proposition|Appendix", claim.section)
    assert re.fullmatch(r"[a-z0-9_]+", claim.name)
    assert claim.sentence.endswith(".")


def test_names_of_claims_are_unique():
    names = [claim.name for _, _, claim in CLAIMS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", PAPERS)
def test_smoke(name, main, tmp_path):
    """The whole paper by one command: page, tables, a verdict on every claim."""
    status, out, _ = main("study", name, "--size", "smoke", "--out", "runs", "--jobs", "1")
    assert status == 0
    (folder,) = (tmp_path / "runs").glob(f"{name}-*")
    assert out.splitlines()[-1] == str(folder.relative_to(tmp_path) / "report.html")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    wanted = [claim.name for part in PAPERS[name].parts for claim in part.claims]
    assert [claim["name"] for claim in report["claims"]] == wanted
    assert {claim["outcome"] for claim in report["claims"]} <= {"holds", "does not hold", "not decided"}
    assert [section["key"] for section in report["sections"]] == [part.name for part in PAPERS[name].parts]
    failed = [
        row for s in report["sections"] for t in s["tables"].values() for row in t["rows"] if "_failed" in row
    ]
    assert not failed
    made_up_failures_leave_claims_undecided(name)


def verdicts(name, results):
    """By claim, the outcome that these results give."""
    found = {}
    for part in PAPERS[name].parts:
        cases = [case for case in part.cases(Setting("smoke")) if case.run.key in results]
        outcomes = Outcomes([Outcome(case, results[case.run.key]) for case in cases])
        found |= {claim.name: claim.verdict(outcomes).outcome for claim in part.claims}
    return found


def made_up_failures_leave_claims_undecided(name):
    """Each of the runs, or all, as if it had failed: no claim gets another verdict than "not decided"."""
    study = spec.build(f"{name}(size='smoke')", "study")
    results = {r.run.key: r for r in run_study(study, Store("runs"), jobs=1)}
    failed = {
        key: replace(r, rows={}, metrics=[], failure="the loss was not finite") for key, r in results.items()
    }
    before = verdicts(name, results)
    for key in results:
        for claim, outcome in verdicts(name, results | {key: failed[key]}).items():
            assert outcome in ("not decided", before[claim]), claim
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
        for run in PAPERS["liang2021"].study(part.name, Setting()).runs
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
