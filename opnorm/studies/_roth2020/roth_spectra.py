"""Theorem 1 and Figure 2: ascent beside the power method, spectra of Jacobians, alignment of attacks."""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from opnorm.report import Column, Section
from opnorm.runs.run import Result
from opnorm.studies._roth2020.roth_search import (
    ADVERSARIAL,
    CNN,
    DATA_DEPENDENT,
    GLOBAL,
    STANDARD,
    further_cases,
    measured,
    setting_text,
    standard_cases,
    training_eps,
)
from opnorm.studies._shared.claim import Claim, Verdict, above, decide, decided, within
from opnorm.studies._shared.methods_table import Quantity, accuracy_of, methods_table
from opnorm.studies._shared.outcomes import Case, Measure, MissingError, Outcomes, row_of, share_that
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import difference_in, share_of, times_the

__all__ = ["FIGURE2", "MATCHED", "THEOREM1", "cnn_more", "of_method"]

MATCHED = (ADVERSARIAL, DATA_DEPENDENT)
METHODS = (STANDARD, ADVERSARIAL, *GLOBAL, DATA_DEPENDENT)
ORDERS = (1, 2, math.inf)
EXACT = 1 - 1e-6  # a cosine of 1, in float64
WHOLE = 0.9  # the share of ranks that is "the whole spectrum"
HARDLY = 0.1  # a change of singular values that is "almost none", in log10: 26 %
FLOAT32_ERROR = 1e-6  # of the largest singular value; smaller ones are rounding


def cnn_more(
    analyses: Callable[[Setting, float], Sequence[str]], methods: Sequence[str]
) -> Callable[[Setting, Outcomes], list[Case]]:
    """The further cases of a figure of the 7-layer CNN."""

    def more(setting: Setting, outcomes: Outcomes) -> list[Case]:
        return further_cases(setting, outcomes, CNN, lambda eps: analyses(setting, eps), methods)

    return more


def of_method(outcomes: Outcomes, method: str) -> Outcomes:
    """The 7-layer CNN of the figures."""
    return outcomes.of(CNN.name, method)


# ---------------------------------------------------------------- Theorem 1


def _agreement_analyses(setting: Setting, eps: float) -> list[str]:
    points, steps = setting.pick(10, 50, 200), setting.pick(2, 10, 10)
    radii = tuple(float(f"{eps * factor:.3g}") for factor in (1e-4, 1e-2, 0.1, 0.5, 1))
    orders = [(2, 2)] if setting.size == "smoke" else [(p, q) for p in ORDERS for q in ORDERS]
    return [
        f"power_method_agreement(eps={radii!r}, p={p:g}, q={q:g}, steps={steps}, points={points})"
        for p, q in orders
    ]


def _agreement_section(setting: Setting, outcomes: Outcomes) -> Section:
    some, eps = measured(outcomes), training_eps(CNN, outcomes)
    radii = sorted({row["eps"] for o in some.good for row in o.result.find("power_method_agreement")})
    helps = {
        "cosine": "between the directions of ascent and power method after the last step",
        "same_region": "the share of points whose whole ascent stays in one linear region",
    }
    quantities = [
        Quantity(
            Column(
                f"{key}_{place}",
                f"{key.replace('_', ' ')}, {radius:g}",
                "percent" if key == "same_region" else "number",
                help=f"At a radius of {radius:g} (training: {eps:g}), p = q = 2: {help}.",
            ),
            _agreement(key, radius),
        )
        for place, radius in enumerate(radii)
        for key, help in helps.items()
    ]
    tables = {n: methods_table(some.of(n), quantities) for n in some.networks}
    charts = [
        chart
        for p in ORDERS
        for q in ORDERS
        for chart in _only(some, p, q).chart(
            "power_method_agreement", f"agreement-{p:g}-{q:g}", f"Agreement, p = {p:g}, q = {q:g}"
        )
    ]
    title = "Theorem 1: adversarial ascent beside the power method"
    return Section("theorem1", title, setting_text([CNN], outcomes), tables, charts)


def _agreement(key: str, eps: float) -> Callable[[Result], float]:
    return lambda result: float(row_of(result, "power_method_agreement", p="2", q="2", eps=eps)[key])


def _only(outcomes: Outcomes, p: float, q: float) -> Outcomes:
    """With the agreement of one pair of norms alone."""
    kept = []
    for o in outcomes.good:
        rows = {
            call: [row for row in found if (row.get("p"), row.get("q")) == (f"{p:g}", f"{q:g}")]
            for call, found in o.result.rows.items()
            if call.startswith("power_method_agreement")
        }
        if any(rows.values()):
            kept.append(replace(o, result=replace(o.result, rows=rows)))
    return Outcomes(kept)


def agrees_in_one_region(outcomes: Outcomes) -> Verdict:
    """The worst cosine of any step of any ascent that stays in one linear region."""
    some = measured(outcomes)
    rows = [
        row
        for method in some.methods
        for found in some.of(method=method).by_seed(lambda r: r.find("power_method_agreement")).values()
        for row in found
    ]
    inside = [row for row in rows if row["worst_inside"] is not None]
    if not inside:
        raise MissingError("no ascent stayed in one linear region" if rows else "no ascent was measured")
    worst = min(inside, key=lambda row: row["worst_inside"])
    ascents = sum(round(row["same_region"] * row["points"]) for row in inside)
    pairs = len({(row["p"], row["q"]) for row in inside})
    evidence = (
        f"Of {ascents} ascents within one linear region, with {pairs} pairs of norms, the smallest cosine of a step is "
        f"{worst['worst_inside']:.9f} (p = {worst['p']}, q = {worst['q']}, ε = {worst['eps']:g})"
    )
    return decided(
        worst["worst_inside"] >= EXACT,
        evidence + ".",
        len({o.seed for o in some.complete()}),
        rows[0]["points"],
    )


# ---------------------------------------------------------------- Figure 2


def _spectrum_analyses(setting: Setting, eps: float) -> list[str]:
    points, steps = setting.pick(10, 200, 200), setting.pick(2, 10, 10)
    attack = f"pgd(norm=2, eps={eps!r}, steps={steps})"
    return [
        f"{name}(points={points}, attack={attack})" for name in ("jacobian_spectrum", "singular_alignment")
    ]


def spectrum(result: Result, at: str) -> list[float]:
    """The mean singular values by rank, those above rounding."""
    values = row_of(result, "jacobian_spectrum", at=at)["mean"]
    return [value for value in values if value > FLOAT32_ERROR * values[0]]


def common_ranks(outcomes: Outcomes, at: str) -> int:
    """How many singular values are above rounding in every network; 0 where there is none."""
    return min((len(spectrum(o.result, at)) for o in outcomes.good), default=0)


def log_typical(at: str, ranks: int) -> Measure:
    """log10 of the geometric mean of the largest ``ranks`` singular values, the same ones in all networks; None of none."""
    return lambda result: float(np.mean(np.log10(spectrum(result, at)[:ranks]))) if ranks else None


def aligned(network: str, rank: int = 0) -> Callable[[Result], float]:
    """The cosine of attacks with a singular vector of the "own" Jacobian, or of that of "random" weights."""
    return lambda result: float(row_of(result, "singular_alignment", network=network)["mean"][rank])


def _chance(result: Result) -> float:
    return float(row_of(result, "singular_alignment")["chance"])


def _spectrum_section(setting: Setting, outcomes: Outcomes) -> Section:
    some = measured(outcomes)
    help = "Singular value of the Jacobian of the last hidden features at clean test images, mean: the {}."
    quantities = [
        accuracy_of(),
        Quantity(
            Column("largest", "largest", "number", "low", help.format("largest")),
            lambda r: next(iter(spectrum(r, "clean")), None),
        ),
        Quantity(
            Column(
                "typical",
                "log₁₀, mean",
                "number",
                "low",
                help.format("mean logarithm over the ranks that are above rounding in all"),
            ),
            log_typical("clean", common_ranks(some, "clean")),
        ),
        Quantity(
            Column(
                "typical_attacked",
                "log₁₀, mean, attacked",
                "number",
                "low",
                "The same at attacked test images.",
            ),
            log_typical("attacked", common_ranks(some, "attacked")),
        ),
        Quantity(
            Column("own", "cosine", "number", None, "Of attacks with the first singular vector, mean."),
            aligned("own"),
        ),
        Quantity(
            Column("random", "cosine, random net", "number", None, "The same with random weights."),
            aligned("random"),
        ),
        Quantity(Column("chance", "cosine, chance", "number", None, "Of a random direction."), _chance),
    ]
    tables = {n: methods_table(some.of(n), quantities) for n in some.networks}
    charts = some.chart("jacobian_spectrum", "spectrum", "Singular values of the Jacobian")
    charts += some.chart("singular_alignment", "alignment", "Alignment of attacks with singular vectors")
    return Section(
        "figure2",
        "Figure 2: singular values, and alignment of attacks",
        setting_text([CNN], outcomes),
        tables,
        charts,
    )


def share_of_ranks_lower(outcomes: Outcomes, method: str, at: str) -> Comparison:
    """The share of ranks at which a method's singular value is below standard training's, less what is "the whole"."""

    def above_rounding(result: Result) -> dict[int, float]:
        return dict(enumerate(spectrum(result, at)))

    def every_rank(result: Result) -> dict[int, float]:
        return dict(enumerate(row_of(result, "jacobian_spectrum", at=at)["mean"]))

    name = f"share of ranks that are lower, {method} against {STANDARD}, {at} points"
    standard, regularized = of_method(outcomes, STANDARD), of_method(outcomes, method)
    return share_that(name, standard, regularized, above_rounding, operator.gt, WHOLE, every_rank)


def whole_spectrum_shrinks(outcomes: Outcomes) -> Verdict:
    comparisons = [
        share_of_ranks_lower(outcomes, method, at) for method in MATCHED for at in ("clean", "attacked")
    ]
    return decide(comparisons, above(), unit=share_of("the ranks", WHOLE))


def global_changes_little(outcomes: Outcomes) -> Verdict:
    comparisons = []
    for method in GLOBAL:
        some, standard = of_method(outcomes, method), of_method(outcomes, STANDARD)
        ranks = common_ranks(Outcomes([*some.complete(), *standard.complete()]), "clean")
        name = f"{method} against {STANDARD}, {ranks} ranks"
        comparisons.append(some.compare(name, standard, log_typical("clean", ranks)))
    return decide(comparisons, within(HARDLY), unit=times_the("typical singular value"))


def _alignments(outcomes: Outcomes, other: Callable[[Result], float], name: str) -> Verdict:
    some, comparisons = measured(outcomes), []
    for method in some.methods:
        differences = some.of(method=method).by_seed(lambda r: aligned("own")(r) - other(r))
        comparisons.append(
            Comparison(f"{method}, first singular vector against {name}", tuple(differences.values()))
        )
    return decide(comparisons, above(), unit=difference_in("the cosine"))


WHERE = "Section 5.2, Figure 2"
THEOREM1 = Part(
    asks="Does adversarial ascent take the steps of the power method on the Jacobian, and up to which radius?",
    cases=lambda setting: standard_cases(setting, [CNN]),
    more=cnn_more(_agreement_analyses, (STANDARD, *MATCHED)),
    section=_agreement_section,
    claims=(
        Claim(
            "ascent_is_the_power_method",
            "Within one linear region, adversarial ascent takes exactly the steps of the power method.",
            "Section 4.3, Theorem 1",
            agrees_in_one_region,
        ),
    ),
)
FIGURE2 = Part(
    asks="Which ways of training shrink the singular values of the Jacobian, and do attacks align with its vectors?",
    cases=lambda setting: standard_cases(setting, [CNN]),
    more=cnn_more(_spectrum_analyses, METHODS),
    section=_spectrum_section,
    claims=(
        Claim(
            "whole_spectrum_shrinks",
            "Adversarial training and d.d. SNR lower the whole spectrum of the Jacobian, at nine in ten ranks at least.",
            f"{WHERE} left",
            whole_spectrum_shrinks,
        ),
        Claim(
            "global_snr_leaves_the_spectrum",
            "Global SNR hardly changes the Jacobian's singular values: their typical size by at most 26 %.",
            f"{WHERE} left",
            global_changes_little,
        ),
        Claim(
            "attacks_align_with_the_first_singular_vector",
            "Adversarial perturbations align with the Jacobian's first singular vector more than random directions do.",
            f"{WHERE} right",
            lambda outcomes: _alignments(outcomes, _chance, "chance"),
        ),
        Claim(
            "attacks_align_more_than_with_random_networks",
            "Adversarial perturbations align with the Jacobian's first singular vector more than with that of a network "
            "with random weights.",
            f"{WHERE} right",
            lambda outcomes: _alignments(outcomes, aligned("random"), "random weights"),
        ),
        Claim(
            "alignment_falls_with_rank",
            "Adversarial perturbations align less with the Jacobian's last singular vector than with the first.",
            f"{WHERE} right",
            lambda outcomes: _alignments(outcomes, aligned("own", -1), "the last one"),
        ),
    ),
)
