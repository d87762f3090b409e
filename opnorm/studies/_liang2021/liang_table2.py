"""Table 2: accuracy, robustness and norms of four networks with norms kept small in four ways."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from opnorm.report import Section
from opnorm.runs.run import Result
from opnorm.studies._liang2021.liang_networks import (
    NETWORKS,
    PLAIN,
    base_run,
    columns,
    evaluation,
    norm_charts,
)
from opnorm.studies._shared.claim import Claim, Verdict, below, decide, no_lower
from opnorm.studies._shared.methods_table import log_typical_norm, methods_table
from opnorm.studies._shared.outcomes import Case, Outcomes, correct_points
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import POINTS, times_the

__all__ = ["PART"]

STRENGTHS = (1e-2, 1e-3, 1e-4, 1e-5)  # from the strongest to the weakest, as the columns of the table
CLIPS = (0.5, 1.0, 1.5, 2.0)


def methods(setting: Setting) -> dict[str, dict[str, str]]:
    """By family, the methods from the strongest to the weakest, each with its regularizer.

    Without thousands of steps, weak penalties show nothing: the laptop's strengths are 10 times the paper's.
    """
    scale = 1 if setting.size == "paper" else 10
    form = "'code'" if setting.size == "paper" else "'algorithm'"  # the program that made the table
    found: dict[str, dict[str, str]] = {
        "weight decay": {},
        "SVC": {},
        "ℓ1 norm decay": {},
        "ℓ∞ norm decay": {},
    }
    for s in STRENGTHS:
        strength = s * scale
        found["weight decay"][f"weight decay {strength:g}"] = f"weight_decay(lam={strength!r})"
        for p, name in (("1", "ℓ1 norm decay"), ("inf", "ℓ∞ norm decay")):
            found[name][f"{name} {strength:g}"] = f"norm_decay(p={p}, beta={strength!r}, form={form})"
    every = "100" if setting.size == "paper" else "'epoch'"
    found["SVC"] = {f"SVC {c:g}": f"svc(c={c!r}, every={every})" for c in CLIPS}
    return (
        found if setting.size != "smoke" else {name: dict(list(of.items())[:1]) for name, of in found.items()}
    )


def _eps(setting: Setting) -> float:
    """The paper's 1/255 leaves the digits as they are."""
    return 1 / 255 if setting.size == "paper" else 0.05


def cases(setting: Setting) -> list[Case]:
    analyses = evaluation(setting, _eps(setting))
    ways = {PLAIN: ()} | {label: (call,) for of in methods(setting).values() for label, call in of.items()}
    networks = list(NETWORKS)[: setting.pick(1, 4, 4)]
    return [
        case
        for network in networks
        for label, regularizers in ways.items()
        for case in setting.repeated(
            Case(
                network, label, replace(base_run(setting, network, 0.01, analyses), regularizers=regularizers)
            ),
            setting.pick(1, 3, 3),
        )
    ]


def section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = columns(setting, outcomes, _eps(setting))
    tables = {network: methods_table(outcomes.of(network), quantities) for network in outcomes.networks}
    charts = [chart for network in outcomes.networks for chart in norm_charts(outcomes, network)]
    return Section("table2", "Table 2: keeping norms small", tables=tables, charts=charts)


# ---------------------------------------------------------------- claims


def _strongest(outcomes: Outcomes, family: str) -> str | None:
    return next((m for m in outcomes.methods if m.startswith(family)), None)


FAMILIES = ("weight decay", "SVC", "ℓ1 norm decay", "ℓ∞ norm decay")


def _against_plain(
    outcomes: Outcomes, families: Sequence[str], measure: Callable[[Result], Any]
) -> list[Comparison]:
    """The strongest setting of each family against plain training, of each network."""
    found = []
    for network in outcomes.networks:
        of_network = outcomes.of(network)
        for family in families:
            method = _strongest(of_network, family)
            if method is not None:
                name = f"{method} against plain, {network}"
                found.append(of_network.of(method=method).compare(name, of_network.of(method=PLAIN), measure))
    return found


def shrinks(outcomes: Outcomes) -> Verdict:
    comparisons = [
        *_against_plain(outcomes, ("ℓ1 norm decay",), log_typical_norm("1")),
        *_against_plain(outcomes, ("ℓ∞ norm decay",), log_typical_norm("inf")),
    ]
    return decide(comparisons, below(), unit=times_the("typical norm"))


def generalizes(outcomes: Outcomes) -> Verdict:
    """Every setting but the strongest of each family."""
    comparisons = []
    for network in outcomes.networks:
        of_network = outcomes.of(network)
        strongest = {_strongest(of_network, family) for family in FAMILIES}
        for method in of_network.methods:
            if method != PLAIN and method not in strongest:
                name = f"{method} against plain, {network}"
                plain = of_network.of(method=PLAIN)
                comparisons.append(
                    of_network.of(method=method).compare(name, plain, correct_points("accuracy"))
                )
    return decide(comparisons, no_lower(0.02), share_needed=0.5, unit=POINTS)


def lowers_robustness(outcomes: Outcomes) -> Verdict:
    comparisons = _against_plain(outcomes, FAMILIES, correct_points("robust_accuracy"))
    return decide(comparisons, below(), share_needed=0.5, unit=POINTS)


PART = Part(
    asks="How accurate and how robust are four networks whose norms were kept small in four ways, each at four strengths?",
    cases=cases,
    section=section,
    claims=(
        Claim(
            "norm_decay_shrinks_norms",
            "Norm decay makes the norms of the layers smaller.",
            "Section “Regularizing Norms Improves Generalization but Can Hurt Adversarial Robustness”, Table 2",
            shrinks,
        ),
        Claim(
            "small_norms_generalize_no_worse",
            "Networks whose norms are kept moderately small are as accurate as plain ones, or more so.",
            "Section “Regularizing Norms Improves Generalization but Can Hurt Adversarial Robustness”, Table 2",
            generalizes,
        ),
        Claim(
            "smallest_norms_are_less_robust",
            "The strongest setting of each method, with the smallest norms, mostly lowers the accuracy under AutoAttack.",
            "Section “Regularizing Norms Improves Generalization but Can Hurt Adversarial Robustness”, Table 2",
            lowers_robustness,
        ),
    ),
)
