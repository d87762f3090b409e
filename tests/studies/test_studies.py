"""Studies are found by their files; the tour's report of made-up results, and its claims."""

import math

import pytest

from opnorm import spec, studies
from opnorm.errors import SpecError
from opnorm.report import Stat, Table
from opnorm.runs.run import Result
from opnorm.runs.runner import Study
from opnorm.studies import tour
from opnorm.studies._tour import findings
from opnorm.studies.claims import compared, percent, rank_correlation

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
        {"norm": norm, "eps": eps, "accuracy": 0.8 - eps / 2, "points": 200, "attack": "APGD"}
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


def cells(clean, robust, norm, n=3):
    return {"clean": Stat(clean, 0.01, n), KEY: Stat(robust, 0.01, n), "norm_inf": Stat(norm, 0.1, n)}


def test_findings_name_the_measured_numbers():
    rows = {
        "plain": cells(0.95, 0.1, 8.0),
        "norm_decay(p=inf, beta=0.1)": cells(0.94, 0.105, 3.0),
        "pgd_at(eps=0.1)": cells(0.9, 0.7, 9.0),
        "dd_snr(lam=0.1)": cells(0.9, 0.6, 7.0),
        "global_snr(lam=0.1)": cells(0.9, 0.2, 4.0),
    }
    table = Table([], [{"method": m} | row for m, row in rows.items()] + [{"method": "x", "_failed": "nan"}])
    failed, best, penalties, adversarial, local, correlation = findings(table)
    assert failed == "No result: x. The table gives the reason."
    assert best.startswith("Most robust at ε = 0.1: pgd_at(eps=0.1), 70.0% ± 1.0 (plain: 10.0% ± 1.0)")
    assert "Norm penalties shrink norms" in penalties
    assert "within the spread of seeds of plain training's" in penalties
    assert "9, above plain training's 8" in adversarial
    assert "60.0% ± 1.0 at ε = 0.1, below adversarial training's 70.0% ± 1.0" in local
    assert "is +0.40 (" in correlation


def test_a_difference_needs_more_than_the_spread():
    a, b = Stat(0.5, 0.1, 3), Stat(0.6, 0.1, 3)
    assert compared(a, b) == "within the spread of seeds of"
    assert compared(a, Stat(0.9, 0.1, 3)) == "below"
    assert compared(Stat(0.5, 0, 1), Stat(0.5, 0, 1)) == "not distinguishable, with one seed, from"
    assert compared(Stat(0.5, 0, 1), Stat(0.4, 0, 1)) == "(one seed, so no spread is known) above"
    assert compared(None, b) == "not comparable with"
    assert percent(None) == "not known"


@pytest.mark.parametrize(
    ("a", "b", "rho"),
    [
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 2, 3], [1, 3, 3, 9], 1),
        ([1, 2, 3, math.nan], [1, 3, 2, 0], 0.5),
        ([1, 2], [1, 2], None),
        ([1, 1, 1], [1, 2, 3], None),
    ],
)
def test_rank_correlation(a, b, rho):
    found = rank_correlation(a, b)
    assert found == (None if rho is None else pytest.approx(rho))
