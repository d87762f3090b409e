"""Roth's search for a radius and for weights, and its claims, from made-up results: nothing is trained."""

import functools
import math

import numpy as np
import pytest
import torch

from opnorm import spec, studies
from opnorm.analyses._shared.by_point import pack
from opnorm.runs.run import Result

POINTS, EPS, TARGET = 500, 0.8, 0.85


def share(fraction):
    """A row with so many of the points correct, the first ones."""
    correct = torch.arange(POINTS) < round(fraction * POINTS)
    return {"accuracy": float(correct.double().mean()), "points": POINTS, "by_point": pack(correct)}


def weight(run):
    return float(dict(spec.parse(run.regularizers[0]).kwargs)["lam"]) if run.regularizers else 0.0


def clean(run):
    """Adversarial training has 85 %; a regularizer as much with a weight of 0.05."""
    if run.objective.startswith(("pgd_at", "mixed")):
        return TARGET
    return TARGET + 0.05 * math.log(0.05 / weight(run)) if run.regularizers else 0.97


def kind(run):
    if run.objective != "plain()":
        return run.objective.partition("(")[0]
    return run.regularizers[0].partition("(")[0] if run.regularizers else "plain"


def results_of(study, robust, radius=EPS):
    """The results of a study whose runs give these accuracies at the training radius, by the kind of training."""
    results, runs, rounds = {}, list(study.runs), 0
    while runs:
        rounds += 1
        assert rounds < 20
        for run in runs:
            rows = {}
            for call in run.analyses:
                settings = dict(spec.full(call, "analysis").kwargs)
                if call.startswith("accuracy"):
                    rows[call] = [{"split": "test", **share(min(0.99, max(0.1, clean(run))))}]
                elif call.startswith("attack_radius"):
                    rows[call] = [{"norm": "2", "eps": radius, "share": 0.99, "points": 10, "reason": ""}]
                else:
                    rows[call] = [
                        {"norm": "2", "eps": eps, "attack": "pgd()"}
                        | share(robust[kind(run)] + 0.004 * run.seed)
                        for eps in settings["eps"]
                    ]
            results[run.key] = Result(run, [], rows, 1.0)
        runs = list(study.more(list(results.values())))
    return list(results.values())


EQUAL = {"plain": 0.05, "pgd_at": 0.5, "dd_snr": 0.49, "dd_onr": 0.5, "global_snr": 0.1, "mixed": 0.5}
CONTRARY = EQUAL | {"plain": 0.6, "dd_snr": 0.3, "global_snr": 0.5}
STUDY = {"part": "figure3", "only": "7-layer CNN, ℓ2"}


@functools.cache
def report_of(contrary=False):
    study = studies.roth2020(**STUDY)
    return study.report(results_of(study, CONTRARY if contrary else EQUAL))


@functools.cache
def mixtures():
    """Figure 7, and its results."""
    study = studies.roth2020(part="figure7")
    return study, results_of(study, EQUAL)


def test_the_search_finds_the_weight_of_equal_accuracy():
    _, results = mixtures()
    final = [r.run for r in results if any(a.startswith("roth_robust") for a in r.run.analyses)]
    (chosen,) = {weight(run) for run in final if kind(run) == "dd_snr"}
    assert 0.03 < chosen < 0.08, "0.05 has the accuracy of adversarial training"
    trials = {weight(r.run): r.run for r in results if kind(r.run) == "dd_snr" and r.run.seed == 0}
    assert min(trials, key=lambda w: abs(clean(trials[w]) - TARGET)) == chosen
    assert {run.seed for run in final if kind(run) == "dd_snr"} == {0, 1, 2}
    radii = {dict(spec.parse(run.objective).kwargs)["eps"] for run in final if kind(run) == "pgd_at"}
    assert radii == {EPS}
    weights = sorted(weight(run) for run in final if kind(run) == "mixed" and run.seed == 0)
    assert weights == pytest.approx([chosen / 4, chosen / 2, chosen * 3 / 4])


def test_a_stopped_search_goes_on():
    """What is asked next depends on what is known alone, and at the end nothing is asked."""
    study, results = mixtures()
    assert not study.more(results)
    for known in range(len(study.runs), len(results), 6):
        further = {run.key for run in study.more(results[:known])}
        assert further
        assert further <= {r.run.key for r in results}


def test_the_best_trial_is_asked_for_what_the_figure_shows():
    """It has been trained for the search, with its accuracy alone."""
    study, results = mixtures()
    bare = []
    for result in results:
        rows = {call: rows for call, rows in result.rows.items() if call.startswith("accuracy")}
        if kind(result.run) == "dd_snr" and result.run.seed == 0:
            result = Result(result.run, [], rows, 1.0)
        bare.append(result)
    (run,) = [run for run in study.more(bare) if kind(run) == "dd_snr" and run.seed == 0]
    assert any(call.startswith("roth_robust_accuracy") for call in run.analyses)


def test_no_radius_no_claims():
    study = studies.roth2020(**STUDY, size="smoke")
    report = study.report(results_of(study, EQUAL, radius=None))
    assert {claim["outcome"] for claim in report.claims} == {"not decided"}


@pytest.mark.parametrize(
    "name",
    [
        "dd_snr_is_as_robust_as_adversarial_training",
        "global_snr_is_not_as_robust",
        "both_are_more_robust_than_standard",
    ],
)
def test_claims_of_figure_3_either_way(name):
    for contrary, outcome in ((False, "holds"), (True, "does not hold")):
        (claim,) = [claim for claim in report_of(contrary).claims if claim["name"] == name]
        assert claim["outcome"] == outcome, claim["evidence"]
        assert (claim["seeds"], claim["points"]) == (3, POINTS)


def test_the_page_shows_the_search_by_itself():
    study = studies.roth2020(part="table2", only="7-layer CNN, ℓ2", seeds=1)
    (section,) = study.report(results_of(study, EQUAL)).sections
    shown, search = section.tables.values()
    assert [row["method"] for row in shown.rows] == [
        "standard", "adversarial training", "global SNR, 1 iteration", "global SNR, 10 iterations", "d.d. SNR",
    ]  # fmt: skip
    chosen = [row["method"] for row in search.rows if row["chosen"]]
    assert [name.rpartition(", λ")[0] for name in chosen] == [row["method"] for row in shown.rows[2:]]
    assert np.isclose(next(row["target"] for row in search.rows), TARGET)
