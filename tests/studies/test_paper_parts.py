"""What single parts of the papers do with results that are made up: nothing is trained."""

import pytest
import torch

from opnorm import spec
from opnorm.analyses._shared.by_point import pack
from opnorm.runs.run import Result
from opnorm.studies import Setting, papers
from opnorm.studies._liu2020.liu_networks import ABLATION, WEISSI, WEISSI_CA
from opnorm.studies._liu2020.liu_tables import median_trials
from opnorm.studies._roth2020.roth_robustness import FIGURE3
from opnorm.studies._roth2020.roth_search import CNN, standard_cases, training_eps
from opnorm.studies._shared.outcomes import Case, MissingError, Outcome, Outcomes, row_of, share_that

PARTS = {f"{paper.name}.{name}": part for paper in papers() for name, part in paper.parts.items()}


def outcome(case, rows=None, failure=""):
    calls = {call: rows.get(spec.parse(call).name, []) for call in case.run.analyses} if rows else {}
    return Outcome(case, Result(case.run, [], calls, 1.0, failure))


def verdict(part, name, outcomes):
    (claim,) = (c for c in PARTS[part].claims if c.name == name)
    return claim.verdict(Outcomes(outcomes))


def accuracy(share, points=200):
    correct = torch.arange(points) < round(share * points)
    return {"accuracy": float(correct.double().mean()), "points": points, "by_point": pack(correct)}


# ---------------------------------------------------------------- Roth


def test_a_failed_first_seed_is_not_replaced_by_another():
    cases = standard_cases(Setting("laptop"), [CNN])
    rows = {"attack_radius": [{"eps": 0.5}], "accuracy": [accuracy(0.9)]}
    whole = [outcome(case, rows) for case in cases]
    assert len(whole) == 3
    assert training_eps(CNN, Outcomes(whole)) == 0.5
    assert training_eps(CNN, Outcomes([outcome(cases[0], failure="diverged"), *whole[1:]])) is None


def test_a_claim_does_not_pass_over_a_network_that_has_no_radius():
    cases = FIGURE3.cases(Setting("laptop"))
    networks = list(dict.fromkeys(case.network for case in cases))
    assert len(networks) == 3
    some = [outcome(c, failure="diverged") for c in cases if c.network == networks[0]]
    found = verdict("roth2020.figure3", "both_are_more_robust_than_standard", some)
    assert found.outcome == "not decided"
    assert "seed 0: failed: diverged" in found.evidence


# ---------------------------------------------------------------- Wen


@pytest.mark.parametrize("name", ["loss_gap_shrinks_table3", "test_accuracy_falls_table3"])
def test_one_strength_alone_is_not_compared_with_itself(name):
    cases = [c for c in PARTS["wen2020.table3"].cases(Setting("laptop")) if c.method == "AR 4"]
    rows = {"generalization_gap": [{"loss_gap": 0.1}], "accuracy": [accuracy(0.9)]}
    found = verdict("wen2020.table3", name, [outcome(c, rows) for c in cases])
    assert found.outcome == "not decided"
    assert "left out" in found.evidence


@pytest.mark.parametrize("claim", PARTS["wen2020.table6"].claims, ids=lambda c: c.name)
def test_bounds_without_the_network_without_bounds(claim):
    cases = [c for c in PARTS["wen2020.table6"].cases(Setting("laptop")) if "at most" in c.network]
    rows = {"generalization_gap": [{"loss_gap": 0.1}], "wen_robust_accuracy": [{"accuracy": 0.5}]}
    found = claim.verdict(Outcomes([outcome(c, rows) for c in cases]))
    assert found.outcome == "not decided"
    assert "left out" in found.evidence


# ---------------------------------------------------------------- Liu


def test_the_ablation_changes_the_terms_alone():
    """Network, sums and strengths are those of WEISSI-CA."""
    for size in ("laptop", "paper"):
        some = {c.method: c.run for c in PARTS["liu2020.figure4"].cases(Setting(size, seeds=1))}
        assert tuple(some) == ABLATION
        assert len({run.model for run in some.values()}) == 1
        assert "convex" in some[WEISSI_CA].model
        terms = {m: dict(spec.parse(run.regularizers[0]).kwargs) for m, run in some.items()}
        both = terms[WEISSI_CA]
        assert terms["energy alone"] == both | {"complexity": 0.0}
        assert terms["complexity alone"] == both | {"energy": 0.0}
        assert both["energy"] > 0 < both["complexity"]


def test_number_of_trials_at_the_size_paper():
    for part, trials in (("table1", 5), ("table2", 3), ("table3", 3), ("table4", 3)):
        assert {c.run.seed for c in PARTS[f"liu2020.{part}"].cases(Setting("paper"))} == set(range(trials))


@pytest.mark.parametrize("part", [p for p in PARTS if not p.endswith(("constructions", "theorem31"))])
def test_three_seeds_at_least_at_the_size_paper(part):
    assert len({c.run.seed for c in PARTS[part].cases(Setting("paper"))}) >= 3


def test_the_trial_of_median_accuracy():
    cases = [
        c
        for c in PARTS["liu2020.table2"].cases(Setting("paper"))
        if c.network == "VGG-16, standard" and c.method == WEISSI
    ]
    trials = [outcome(c, {"accuracy": [accuracy(a)]}) for c, a in zip(cases, (0.9, 0.2, 0.8), strict=True)]
    (median,) = median_trials(Outcomes(trials)).all
    assert row_of(median.result, "accuracy")["accuracy"] == pytest.approx(0.8)
    failed = [*trials[:2], outcome(cases[2], failure="diverged")]
    assert len(median_trials(Outcomes(failed)).all) == 3


def test_the_cost_of_convex_sums():
    cases = [c for c in PARTS["liu2020.table3"].cases(Setting("laptop")) if c.method in (WEISSI, WEISSI_CA)]
    for cost, wanted in ((0.1, "holds"), (-0.1, "does not hold")):
        some = [
            outcome(
                c, {"accuracy": [accuracy(0.8 - cost * (c.method == WEISSI_CA) + 0.01 * c.run.seed, 500)]}
            )
            for c in cases
        ]
        assert verdict("liu2020.table3", "convex_aggregation_costs_clean_accuracy", some).outcome == wanted


# ---------------------------------------------------------------- Liang


@pytest.mark.parametrize(
    ("slope", "robust", "wanted"), [(2e6, 40, "holds"), (10, 40, "does not hold"), (2e6, 39, "does not hold")]
)
def test_built_networks_are_as_steep_as_asked_for(slope, robust, wanted):
    rows = {
        "robust_accuracy": [{"eps": 0.05, "correct": robust, "points": 40, "attack": "autoattack()"}],
        "norm_table": [{"norms": {"inf": {"lower": 1e7}}}],
        "lipschitz_bracket": [{"jacobian": 1.0, "secant": 2.0, "along": slope}],
    }
    some = [outcome(c, rows) for c in PARTS["liang2021.constructions"].cases(Setting("laptop"))]
    found = verdict("liang2021.constructions", "robust_networks_of_any_norm_exist", some)
    assert found.outcome == wanted
    assert "asked for: 1e+06" in found.evidence


@pytest.mark.parametrize("part", ["table2", "figure2"])
def test_the_table_names_the_attack_that_ran(part):
    case = PARTS[f"liang2021.{part}"].cases(Setting("laptop"))[0]
    eps = 0.05 if part == "table2" else 0.1
    rows = {
        "accuracy": [accuracy(0.9) | {"split": "test"}],
        "robust_accuracy": [
            accuracy(0.5) | {"eps": eps, "attack": f'apgd(eps={eps}, version="fast")', "correct": 100}
        ],
    }
    section = PARTS[f"liang2021.{part}"].section(Setting("laptop"), Outcomes([outcome(case, rows)]))
    (table,) = section.tables.values()
    (help,) = (c.help for c in table.columns if c.key.startswith("robust"))
    assert 'apgd(version="fast")' in help
    assert "AutoAttack" not in help


# ---------------------------------------------------------------- shares


def test_shares_count_what_both_have():
    def made(values):
        run = PARTS["wen2020.b2"].cases(Setting("laptop"))[0].run
        return Outcomes([Outcome(Case("net", "way", run), Result(run, [{"values": values}], {}, 1.0))])

    def measure(result):
        return result.metrics[0]["values"]

    first, second = made({"a": 1.0, "b": 2.0, "c": 3.0}), made({"a": 2.0, "b": 1.0, "c": 4.0, "d": 0.0})
    found = share_that("lower", first, second, measure, lambda a, b: a < b, 0.5)
    assert found.effect == pytest.approx(2 / 3 - 0.5)
    with pytest.raises(MissingError, match="in common"):
        share_that("lower", first, made({"z": 1.0}), measure, lambda a, b: a < b, 0.5)
