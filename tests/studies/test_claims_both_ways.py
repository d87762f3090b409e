"""Every claim of every paper, from made-up results for which it holds, and from others for which it does not."""

from dataclasses import replace

import pytest

from opnorm.studies import Setting, papers
from opnorm.studies._shared.claim import Verdict
from opnorm.studies._shared.outcomes import Outcome, Outcomes
from tests.studies.made_up_results import NUMBERS, Changes, outcomes_with

CLAIMS = {
    claim.name: (paper, name, claim)
    for paper in papers()
    for name, part in paper.parts.items()
    for claim in part.claims
}
SETTING = Setting("laptop", seeds=3)

AR_UP, AR_DOWN = "*: AR 16", "*: AR 4"
BOUNDED, FREE = "*norms at most*", "*not bounded: AR 16"
TRAINED = ("*: pgd_at*", "*: dd_snr*", "*: dd_onr*")


def of(*patterns: str, **numbers: float) -> dict[str, dict[str, float]]:
    """The same numbers for several patterns."""
    return dict.fromkeys(patterns, numbers)


# by claim: results for which it holds, results for which it does not; the usual numbers where none are named
WORLDS: dict[str, tuple[Changes, Changes]] = {
    "exact_norms_are_exact": ({}, of("*", difference=1e-3)),
    "exact_norms_are_fast": ({}, of("*", fast=2.0)),
    "norm_decay_shrinks_norms": (of("*norm decay*", norm=1.0), of("*norm decay*", norm=5.0)),
    "small_norms_generalize_no_worse": (of("*decay*", "*SVC*", clean=0.95), of("*decay*", "*SVC*", clean=0.7)),
    "smallest_norms_are_less_robust": (
        of("*: weight decay*", "*: SVC*", "*: ℓ*", robust=0.2), of("*: weight decay*", "*: SVC*", "*: ℓ*", robust=0.8),
    ),
    "robust_networks_have_typical_norms_no_smaller": ({}, of("*: PGD-AT", "*: ALP", "*: TRADES", norm=0.5)),
    "robust_networks_have_layers_no_smaller": ({}, of("*: PGD-AT", "*: ALP", "*: TRADES", norm=0.5)),
    "robust_networks_of_any_norm_exist": (of("*", robust=1.0), of("*1e+06", robust=0.9)),
    "ascent_is_the_power_method": ({}, of("*: pgd_at*", inside=0.99)),
    "whole_spectrum_shrinks": (of(*TRAINED, sigma=2.0), of("*: dd_snr*", sigma=20.0)),
    "global_snr_leaves_the_spectrum": ({}, of("*: global_snr*", sigma=2.0)),
    "attacks_align_with_the_first_singular_vector": ({}, of("*", own=0.01)),
    "attacks_align_more_than_with_random_networks": ({}, of("*", random=0.95)),
    "alignment_falls_with_rank": ({}, of("*", last=0.95)),
    "clean_accuracy_is_matched": ({}, of("*: global_snr*", clean=0.6)),
    "dd_snr_is_as_robust_as_adversarial_training": ({}, of("*: dd_*", robust=0.2)),
    "both_are_more_robust_than_standard": (of("*: standard", robust=0.1), of("*: standard", robust=0.8)),
    "global_snr_is_not_as_robust": (of("*: global_snr*", robust=0.1), {}),
    "iterations_of_global_snr_make_no_difference": ({}, of("*: global_snr*steps=10*", robust=0.8)),
    "mixtures_are_as_robust_as_adversarial_training": ({}, of("*: mixed", robust=0.2)),
    "adversarially_trained_networks_are_more_linear": (of(*TRAINED, deviation=0.1), of(*TRAINED, deviation=0.9)),
    "top_singular_value_stays_low": (of(*TRAINED, top=2.0), of(*TRAINED, top=20.0)),
    "top_singular_value_stays_flat": (of(*TRAINED, flat=0.1), of(*TRAINED, flat=5.0)),
    "more_shared_activations_around_data": (of(*TRAINED, shared=0.95), of(*TRAINED, shared=0.5)),
    "more_around_data_than_elsewhere": (of(*TRAINED, shared=0.95), of(*TRAINED, shared_noise=0.95)),
    "loss_variation_falls": (of(AR_DOWN, variation=0.5), of(AR_UP, variation=0.5)),
    "margins_concentrate": (of(AR_UP, margin=1.0), of(AR_UP, margin=9.0)),
    "confidence_falls": (of(AR_UP, confidence=0.5), of(AR_UP, confidence=0.99)),
    "singular_values_come_closer": (of(AR_UP, spread=0.5), of(AR_UP, spread=2.0)),
    "fgsm_shrinks_the_loss_gap": (of(AR_UP, loss_gap=0.1), of(AR_UP, loss_gap=0.9)),
    "fgsm_lowers_test_accuracy": (of(AR_UP, clean=0.7), of(AR_UP, clean=0.99)),
    **{f"loss_gap_shrinks_table{n}": (of(AR_UP, loss_gap=0.1), of(AR_UP, loss_gap=0.9)) for n in (3, 4, 5)},
    **{f"test_accuracy_falls_table{n}": (of(AR_UP, clean=0.7), of(AR_UP, clean=0.99)) for n in (3, 4, 5)},
    "spectral_normalization_shrinks_the_loss_gap": (of(BOUNDED, loss_gap=0.1), of(BOUNDED, loss_gap=0.9)),
    "spectral_normalization_alone_is_not_robust": (of(FREE, robust=0.9), of(FREE, robust=0.1)),
    **{
        f"weissi_is_as_accurate_{training}_table{n}": ({}, of("*: WEISSI", clean=0.6))
        for training in ("standard", "adversarial")
        for n in (1, 2, 3)
    },
    **{
        f"weissi_is_more_robust_{training}_table{n}": (of("*: WEISSI", robust=0.8), of("*: WEISSI", robust=0.2))
        for training in ("standard", "adversarial")
        for n in (1, 2, 3)
    },
    "convex_aggregation_costs_clean_accuracy": (of("*: WEISSI-CA", clean=0.7), of("*: WEISSI-CA", clean=0.99)),
    "convex_aggregation_is_more_robust": (of("*: WEISSI-CA", robust=0.8), of("*: WEISSI-CA", robust=0.2)),
    "weissi_helps_the_loss_of_max_mahalanobis_centers": (of("*: WEISSI", robust=0.8), of("*: WEISSI", robust=0.2)),
    "weissi_lowers_the_energy": (of("*: WEISSI", energy=5.0), of("*: WEISSI", energy=40.0)),
    "convex_aggregation_lowers_the_complexity": (of("*: WEISSI-CA", complexity=5.0), of("*: WEISSI-CA", complexity=90.0)),
    "weissi_shortens_input_gradients": (of("*: WEISSI", gradient=0.01), of("*: WEISSI", gradient=1.0)),
    "both_terms_are_needed": (of("*: WEISSI-CA", robust=0.8), of("*: WEISSI-CA", robust=0.2)),
    "weissi_is_invariant_under_scale_shifts": ({}, of("*", shift=0.1)),
}  # fmt: skip


def outcomes_for(name: str, changes: Changes) -> Outcomes:
    paper, part, _ = CLAIMS[name]
    return outcomes_with(paper, part, changes, SETTING)


def test_every_claim_is_here():
    assert set(WORLDS) == set(CLAIMS)


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_holds(name):
    """And where a seed of one of the methods fails, it is not decided, or nothing of its verdict changes."""
    claim, outcomes = CLAIMS[name][2], outcomes_for(name, WORLDS[name][0])
    verdict = claim.verdict(outcomes)
    assert verdict.outcome == "holds", verdict.evidence
    assert any(undecided_without(name, verdict, outcomes, network) for network in outcomes.networks)


def undecided_without(name: str, verdict: Verdict, outcomes: Outcomes, network: str) -> int:
    """How many of a network's methods the claim needs: without the first seed of one it is not decided."""
    needed = 0
    for method in outcomes.of(network).methods:
        which = (network, method, 0)
        some = [failed(o) if (o.case.network, o.case.method, o.seed) == which else o for o in outcomes.all]
        without = CLAIMS[name][2].verdict(Outcomes(some))
        if without != verdict:
            assert without.outcome == "not decided", method
            assert "the loss was not finite" in without.evidence
            needed += 1
    return needed


def failed(outcome: Outcome) -> Outcome:
    """As if it had failed."""
    return replace(
        outcome, result=replace(outcome.result, rows={}, metrics=[], failure="the loss was not finite")
    )


@pytest.mark.parametrize("name", CLAIMS)
def test_the_claim_does_not_hold(name):
    verdict = CLAIMS[name][2].verdict(outcomes_for(name, WORLDS[name][1]))
    assert verdict.outcome == "does not hold", verdict.evidence


@pytest.mark.parametrize("name", CLAIMS)
def test_networks_that_are_dead(name):
    """All that is measured is 0, but for what cannot be: a verdict, or the reason why there is none, and no error."""
    zeros = {"*": dict.fromkeys(NUMBERS.keys() - {"radius", "slow", "fast", "complexity"}, 0.0)}
    verdict = CLAIMS[name][2].verdict(outcomes_for(name, zeros))
    assert verdict.outcome in ("holds", "does not hold", "not decided")
    assert verdict.evidence.endswith(".")
