"""Figures 2 to 4 and the invariance: energy and complexity, input gradients, the two terms alone, shifts of scale."""

import math
from collections.abc import Callable

import numpy as np

from opnorm.report import Column, Section, weights_against_epoch
from opnorm.runs.run import Result
from opnorm.studies._liu2020.liu_networks import (
    ABLATION,
    METHODS,
    RADII,
    WEIGHT_DECAY,
    WEISSI,
    WEISSI_CA,
    cases,
    columns,
    evaluation,
)
from opnorm.studies._liu2020.liu_tables import compared, made_attacks
from opnorm.studies._shared.claim import Claim, Verdict, above, below, decide, decided
from opnorm.studies._shared.methods_table import Quantity, methods_table, value_of
from opnorm.studies._shared.outcomes import Case, Outcomes, row_of
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import POINTS, Unit, difference_in, times_the

__all__ = ["FIGURE2", "FIGURE3", "FIGURE4", "INVARIANCE"]

NETWORK = "WRN-28-10"


def _standard(*analyses: str, methods: tuple[str, ...] = METHODS) -> Callable[[Setting], list[Case]]:
    return lambda setting: cases(
        setting, NETWORK, ("accuracy()", *analyses), methods, trainings=("standard",)
    )


def _last(key: str) -> Callable[[Result], float | None]:
    """A metric of the last epoch; None where it is not known, as the energy of weights that are all 0."""
    return lambda result: result.metrics[-1][key] if result.metrics else None


def _trace_section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        Quantity(
            Column(
                "log10_energy", "log₁₀ energy", "number", None, "Of the product of squared norms, at the end."
            ),
            _last("log10_weight_energy"),
        ),
        Quantity(
            Column(
                "complexity",
                "complexity",
                "number",
                None,
                "Sum of ℓ1 norms of normalized weights, at the end.",
            ),
            _last("weight_complexity"),
        ),
    ]
    tables = {
        n: methods_table(outcomes.of(n), quantities, heading="regularization") for n in outcomes.networks
    }
    chart = weights_against_epoch(outcomes.metrics(), outcomes.methods)
    return Section(
        "figure2",
        "Figure 2: energy and complexity against epoch",
        tables=tables,
        charts=[chart] if chart else [],
    )


def _pair(outcomes: Outcomes, method: str, measure: Callable[[Result], float | None], unit: Unit) -> Verdict:
    some = outcomes.of(method=method)
    name = f"{method} against weight decay"
    return decide([some.compare(name, outcomes.of(method=WEIGHT_DECAY), measure)], below(), unit=unit)


def energy_is_lower(outcomes: Outcomes) -> Verdict:
    return _pair(outcomes, WEISSI, _last("log10_weight_energy"), difference_in("log₁₀ energy"))


def complexity_is_lower(outcomes: Outcomes) -> Verdict:
    return _pair(outcomes, WEISSI_CA, _last("weight_complexity"), difference_in("the complexity"))


# ---------------------------------------------------------------- input gradients


def _median_length(result: Result) -> float:
    return float(np.median(row_of(result, "input_gradients")["lengths"]))


def _log_median(result: Result) -> float | None:
    """log10 of the median length; None where it is 0, as of a network whose logits do not change."""
    median = _median_length(result)
    return math.log10(median) if median else None


def _above_bound(result: Result) -> float | None:
    """The share of points whose input gradient is longer than its bound; 0 by the theorem. None where no bound is known."""
    row = row_of(result, "input_gradients")
    if row["bounds"] is None:
        return None
    return float(np.mean(np.array(row["lengths"]) > np.array(row["bounds"])))


def _gradients_section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        Quantity(
            Column(
                "median",
                "median length",
                "number",
                None,
                "Of the loss's gradient by the input, over test images.",
            ),
            _median_length,
        ),
        Quantity(
            Column("above", "above the bound", "percent", None, "Share of points above the bound of Eq. 24."),
            _above_bound,
        ),
    ]
    tables = {
        n: methods_table(outcomes.of(n), quantities, heading="regularization") for n in outcomes.networks
    }
    charts = outcomes.chart("input_gradients", "input-gradients", "Lengths of input gradients")
    return Section("figure3", "Figure 3: input gradients and their bounds", tables=tables, charts=charts)


def gradients_are_shorter(outcomes: Outcomes) -> Verdict:
    return _pair(outcomes, WEISSI, _log_median, times_the("median length"))


# ---------------------------------------------------------------- ablation and invariance


def _ablation_cases(setting: Setting) -> list[Case]:
    return cases(setting, NETWORK, ("accuracy()", evaluation(setting)), ABLATION, trainings=("standard",))


def _ablation_section(setting: Setting, outcomes: Outcomes) -> Section:
    tables = {
        n: methods_table(outcomes.of(n), columns(setting, RADII), heading="terms") for n in outcomes.networks
    }
    charts = outcomes.chart("liu_robust_accuracy", "attacks", "Accuracy under FGSM and PGD")
    return Section("figure4", "Figure 4: energy, complexity, both", tables=tables, charts=charts)


def both_terms_are_needed(outcomes: Outcomes) -> Verdict:
    comparisons = [
        comparison
        for alone in ABLATION[:2]
        for comparison in compared(outcomes, made_attacks(outcomes), "standard", WEISSI_CA, alone)
    ]
    return decide(comparisons, above(), share_needed=0.5, unit=POINTS)


def _shift_section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        value_of("decay", "weight decay", "scale_shift", "Sum of squared weights before the shift."),
        value_of(
            "least_decay",
            "least weight decay",
            "scale_shift",
            "The smallest that a shift of scales can give, Eq. 11.",
        ),
        value_of("log10_energy", "log₁₀ energy", "scale_shift"),
        value_of("log10_energy_after", "after the shift", "scale_shift"),
        value_of("complexity", "complexity", "scale_shift"),
        value_of("complexity_after", "after the shift", "scale_shift"),
        value_of(
            "logit_change",
            "change of logits",
            "scale_shift",
            "The largest at test points, over the largest logit.",
        ),
    ]
    tables = {
        n: methods_table(outcomes.of(n), quantities, heading="regularization") for n in outcomes.networks
    }
    return Section("invariance", "The invariance under shifts of the weights' scale", tables=tables)


def shifts_change_nothing(outcomes: Outcomes) -> Verdict:
    rows = [row_of(o.result, "scale_shift") for o in outcomes.complete()]
    energy = max(abs(row["log10_energy_after"] - row["log10_energy"]) for row in rows)
    complexity = max(abs(row["complexity_after"] / row["complexity"] - 1) for row in rows)
    logits = max(row["logit_change"] for row in rows)
    decay = min(row["decay"] / row["least_decay"] for row in rows)
    text = (
        f"Over {len(rows)} networks, a shift to equal norms changed the logits by {logits:.1e} at most (relative), log₁₀ "
        f"energy by {energy:.1e}, complexity by {complexity:.1e} (relative); it divided weight decay by {decay:.3g} at "
        "least."
    )
    return decided(
        max(energy, complexity, logits) < 1e-4 and decay >= 1, text, len({o.seed for o in outcomes.all})
    )


FIGURE2 = Part(
    asks="How do energy and complexity change during training with five regularizations?",
    cases=_standard(),
    section=_trace_section,
    claims=(
        Claim(
            "weissi_lowers_the_energy",
            "The weights of networks trained with WEISSI end with less energy than with weight decay.",
            "Section 6.3, Figure 2",
            energy_is_lower,
        ),
        Claim(
            "convex_aggregation_lowers_the_complexity",
            "The weights of networks trained with WEISSI and convex aggregation end with less complexity than "
            "with weight decay.",
            "Section 6.3, Figure 2",
            complexity_is_lower,
        ),
    ),
)
FIGURE3 = Part(
    asks="How long are the gradients of the loss by the input, and how close are their bounds?",
    cases=_standard("input_gradients()"),
    section=_gradients_section,
    claims=(
        Claim(
            "weissi_shortens_input_gradients",
            "Input gradients are shorter with WEISSI than with weight decay.",
            "Section 6.3, Figure 3",
            gradients_are_shorter,
        ),
    ),
)
FIGURE4 = Part(
    asks="Are both terms of WEISSI needed?",
    cases=_ablation_cases,
    section=_ablation_section,
    claims=(
        Claim(
            "both_terms_are_needed",
            "Networks trained with both terms of WEISSI are more robust under FGSM and PGD than with either term alone.",
            "Section 6.3, Figure 4",
            both_terms_are_needed,
        ),
    ),
)
INVARIANCE = Part(
    asks="Do WEISSI's terms stay the same when the scales of layers are shifted, and does weight decay not?",
    cases=lambda s: cases(
        s, "MLP", ("accuracy()", "scale_shift()"), (WEIGHT_DECAY, WEISSI), trainings=("standard",)
    ),
    section=_shift_section,
    claims=(
        Claim(
            "weissi_is_invariant_under_scale_shifts",
            "A shift of scales between layers changes neither the network nor WEISSI's terms, but changes weight decay.",
            "Section 4, Eqs. 5 to 13",
            shifts_change_nothing,
        ),
    ),
)
