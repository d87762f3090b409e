"""Studies are found by their files; the tour's report of made-up results, and its claims."""

import math
import re
from dataclasses import replace

import pytest
import torch

from opnorm import spec, studies
from opnorm.analyses._shared.by_point import pack
from opnorm.errors import SpecError
from opnorm.report import NOT_RUN_YET, Stat
from opnorm.runs.run import Result
from opnorm.runs.runner import Study
from opnorm.studies import tour
from opnorm.studies._shared.outcomes import Case, Outcome, Outcomes
from opnorm.studies.claims import percent, rank_correlation
from opnorm.studies.tour_claims import CLAIMS

KEY = "robust_inf_0.1"


def test_every_study_is_found_and_named():
    assert set(spec.names("study")) == set(studies.__all__) - {"Setting", "papers", "study_call"}
    assert "tour" in studies.__all__
    for name in spec.names("study"):
        study = spec.build(f"{name}(size='smoke', seeds=1)", "study")
        assert isinstance(study, Study)
        assert study.name == name
        assert len({run.key for run in study.runs}) == len(study.runs)


@pytest.mark.parametrize(
    ("settings", "message"), [({"seeds": 0}, "at least 1"), ({"size": "huge"}, "'laptop'")]
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(SpecError, match=message):
        tour(**settings)


def result(run, scale):
    norms = {p: {"lower": scale, "upper": 1.01 * scale} for p in ("1", "2", "inf")}
    robust = [
        {
            "norm": norm,
            "eps": eps,
            "accuracy": 0.8 - eps / 2,
            "points": 200,
            "attack": "APGD",
            "by_point": "0" * 50,
        }
        for norm, radii in (("inf", (0.05, 0.1, 0.15, 0.2)), ("2", (0.25, 0.5, 1.0)))
        for eps in radii
    ]
    rows = {
        "accuracy()": [{"split": "test", "accuracy": 0.9, "points": 10}],
        "norm_table()": [{"layer": "0", "kind": "Linear", "norms": norms}],
        "margins()": [{"split": "test", "margins": [-1.0, 0.5, 2.0]}],
        run.analyses[3]: robust[:4],
        run.analyses[4]: robust[4:],
    }
    return Result(run, [{"epoch": 1, "test_accuracy": 0.9, "loss": 1.0, "norm_1": scale}], rows, 2.0)


def test_the_size_smoke_is_one_seed_and_one_batch_unless_told_otherwise():
    smoke, laptop = tour(size="smoke").runs, tour().runs
    assert len(laptop) == 3 * len(smoke)
    assert {(run.epochs, run.limit, run.seed) for run in smoke} == {(1, 64, 0)}
    assert {run.seed for run in tour(size="smoke", seeds=2).runs} == {0, 1}
    assert {run.limit for run in tour(size="smoke", limit=10).runs} == {10}


def test_the_report_of_the_tour():
    study = tour(size="smoke", seeds=2)
    results = [result(run, 1.0 + i // 2) for i, run in enumerate(study.runs)]
    results[-1] = results[-2] = Result(study.runs[-1], [], {}, 0.0, "diverged")
    report = study.report(results)
    assert report.table.rows[0]["method"] == "plain"
    first = report.table.rows[0]
    assert first["clean"] == Stat(0.9, 0.0, 2, points=10)
    assert first[KEY] == Stat(0.75, 0.0, 2, points=200)
    assert first["norm_inf"].mean == pytest.approx(1)
    assert report.table.rows[-1]["_failed"] == "diverged"
    assert {column.key for column in report.table.columns} <= first.keys()
    keys = [chart.key for chart in report.charts]
    assert keys == [
        "accuracy-against-eps",
        "accuracy-against-norm",
        "layer-norms",
        "against-epoch",
        "margins",
    ]
    assert not any(chart.empty for chart in report.charts)
    at_zero = [v for v in report.charts[0].spec["datasets"]["rows"] if v["x"] == 0]
    assert {v["panel"] for v in at_zero} == {"2", "inf"}, "the clean accuracy begins every curve"
    assert {v["value"] for v in at_zero} == {0.66667}, "of the points that are attacked"


def test_the_tour_under_way():
    study = tour(size="smoke", seeds=2)
    first = sorted(range(len(study.runs)), key=lambda i: (study.runs[i].seed, study.rank(study.runs[i])))[:6]
    assert {study.runs[i].seed for i in first} == {0}
    told = {study.runs[i].label.partition("(")[0] for i in first}
    assert told == {"plain", "norm_decay", "pgd_at", "dd_snr", "global_snr", "weight_decay"}
    results = [result(run, 1.0) if i in first else Result.to_come(run) for i, run in enumerate(study.runs)]
    report = study.report(results)
    whole = study.report([result(run, 1.0) for run in study.runs])
    assert [row["method"] for row in report.table.rows] == [row["method"] for row in whole.table.rows]
    assert [row["_failed"] for row in report.table.rows if "_failed" in row] == [NOT_RUN_YET] * 22
    assert report.table.rows[0]["clean"].n == 1
    assert len(report.runs) == 6
    assert not any("failed" in finding for finding in report.findings)
    assert {claim["evidence"] for claim in report.claims} == {"Not run yet: 50 of the 56 runs behind it."}
    assert study.report([Result.to_come(run) for run in study.runs]).findings == []


def made_up(method, seed, robust, norm, failure=""):
    """A result of the tour with so many of 100 points robust."""
    run = next(r for r in tour(seeds=3).runs if r.label == method and r.seed == seed)
    of_seed = result(run, norm * (1 + seed * robust / 100))
    for row in of_seed.rows[run.analyses[3]]:
        robust_points = torch.rand(200, generator=torch.Generator().manual_seed(seed)) < robust
        row |= {"accuracy": float(robust_points.double().mean()), "by_point": pack(robust_points)}
    return replace(of_seed, rows={}, failure=failure) if failure else of_seed


METHODS = {
    "plain": (0.1, 8.0),
    "norm_decay(p=inf, beta=0.1)": (0.105, 3.0),
    "pgd_at(eps=0.1)": (0.7, 9.0),
    "dd_snr(lam=0.1)": (0.5, 7.0),
    "global_snr(lam=0.1)": (0.2, 4.0),
}


def test_claims_of_the_tour():
    results = [made_up(m, seed, *values) for m, values in METHODS.items() for seed in range(3)]
    outcomes = Outcomes([Outcome(Case(r.run.model, r.run.label, r.run), r) for r in results])
    claims = {claim.name: claim.as_dict(outcomes) for claim in CLAIMS}
    assert [claim["outcome"] for claim in claims.values()] == [
        "holds", "holds", "holds", "does not hold", "holds",
    ]  # fmt: skip
    assert all(claim["seeds"] == 3 for claim in claims.values())
    assert claims["spectral_norm_at_the_data_is_as_robust"]["points"] == 200
    evidence = claims["norm_decay_is_no_more_robust"]["evidence"]
    assert "one-sided p = " in evidence
    assert " over 3 seeds" in evidence


def test_a_failed_run_of_the_tour_leaves_its_claims_undecided():
    results = [made_up(m, seed, *values) for m, values in METHODS.items() for seed in range(3)]
    results[6] = made_up("pgd_at(eps=0.1)", 0, 0.7, 9.0, "the loss was not finite")
    report = tour().report(results)
    outcomes = {claim["name"]: claim["outcome"] for claim in report.claims}
    assert [name for name, outcome in outcomes.items() if outcome == "not decided"] == [
        "adversarial_training_keeps_norms_as_large",
        "spectral_norm_at_the_data_is_as_robust",
    ]
    assert report.table.columns[-1].label == "failed runs"
    assert report.table.rows[2]["failures"] == "seed 0: the loss was not finite"
    failed, best, correlation = report.findings
    assert failed.startswith("1 run failed, and claims that need it are not decided.")
    assert best.startswith("Most robust at ε = 0.1: pgd_at(eps=0.1), ")
    assert re.search(r"is \+0.\d+ \(", correlation)


def test_percent():
    assert percent(None) == "not known"
    assert percent(Stat(0.5, 0.0, 1)) == "50.0%"


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 2, 3], [1, 3, 3, 9], 1),
        ([1, 2, 2, 3], [1, 2, 3, 4], math.sqrt(0.9)),
        ([1, 2, 3, math.nan], [1, 3, 2, 0], 0.5),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(a, b, rho):
    found = rank_correlation(a, b)
    assert found == (None if rho is None else pytest.approx(rho))
