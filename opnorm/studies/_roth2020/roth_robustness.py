"""Table 2, Figures 3 and 7: clean accuracies, accuracy against ε, mixtures of adversarial training and d.d. SNR."""

import math
from collections.abc import Sequence
from dataclasses import replace

from opnorm.report import Chart, Section
from opnorm.studies._roth2020.roth_search import (
    ADVERSARIAL,
    CNN,
    DATA_DEPENDENT,
    GLOBAL,
    STANDARD,
    Network,
    further_cases,
    known_eps,
    matched_strength,
    measured,
    search_table,
    searched,
    setting_text,
    standard_cases,
    training_eps,
)
from opnorm.studies._shared.claim import Claim, Region, Verdict, above, below, decide, no_lower, within
from opnorm.studies._shared.methods_table import accuracy_of, methods_table, robust_accuracy_of
from opnorm.studies._shared.outcomes import Case, MissingError, Outcomes, correct_points
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import POINTS

__all__ = ["FIGURE3", "FIGURE7", "TABLE2"]

NETWORKS = (
    CNN,
    Network("7-layer CNN, ℓ∞", "cnn7()", "cnn7(width=8)", math.inf),
    Network("WRN-28-10, ℓ2", "wrn(depth=28, width=10)", "wrn(depth=10, width=1)"),
)

METHODS = (STANDARD, ADVERSARIAL, *GLOBAL, DATA_DEPENDENT)
FACTORS = (0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 2)  # of the training radius
SHARES = (0.25, 0.5, 0.75)  # of adversarial training in a mixture
MARGIN = 0.05  # of accuracy: a smaller difference counts as none


def _radii(eps: float) -> tuple[float, ...]:
    return tuple(eps if factor == 1 else float(f"{eps * factor:.3g}") for factor in FACTORS)


def _curve(setting: Setting, network: Network, eps: float) -> str:
    radii = (0.0, eps) if setting.size == "smoke" else _radii(eps)
    settings = f"norm={network.norm:g}, eps={radii!r}, steps={setting.pick(2, 10, 10)}"
    return f"roth_robust_accuracy({settings}, points={setting.pick(20, 500, 2000)})"


def _networks(setting: Setting) -> tuple[Network, ...]:
    return NETWORKS[: setting.pick(1, 3, 3)]


def _accuracies_more(setting: Setting, outcomes: Outcomes) -> list[Case]:
    return [
        case
        for network in _networks(setting)
        for case in further_cases(setting, outcomes, network, lambda eps: [], METHODS)
    ]


def _curves_more(setting: Setting, outcomes: Outcomes) -> list[Case]:
    found = []
    for network in _networks(setting):

        def analyses(eps: float, network: Network = network) -> list[str]:
            return [_curve(setting, network, eps)]

        found += further_cases(setting, outcomes, network, analyses, METHODS)
    return found


def _section(key: str, title: str, outcomes: Outcomes, networks: Sequence[Network]) -> Section:
    some, charts, tables = measured(outcomes), [], {}
    for number, network in enumerate(networks, 1):
        of_network, eps = some.of(network.name), training_eps(network, outcomes)
        charts += _charts(of_network, number, network)
        if eps is None or not of_network.all:
            continue
        radii = [0.5 * eps, eps, 2 * eps]
        rows = {row["eps"] for o in of_network.good for row in o.result.find("roth_robust_accuracy")}
        help = "Share of test images that stay correct after ten steps of projected gradient ascent at this radius."
        columns = [
            robust_accuracy_of(f"ε = {radius:g}", help, "roth_robust_accuracy", eps=radius)
            for radius in (float(f"{r:.3g}") for r in radii)
            if radius in rows
        ]
        tables[network.name] = methods_table(of_network, [accuracy_of(), *columns])
    return Section(key, title, setting_text(networks, outcomes), tables, charts)


def _charts(outcomes: Outcomes, number: int, network: Network) -> list[Chart]:
    return outcomes.chart("roth_robust_accuracy", f"curve-{number}", f"Accuracy against ε, {network.name}")


def compared(
    outcomes: Outcomes,
    networks: Sequence[Network],
    pairs: Sequence[tuple[str, str]],
    *,
    clean: bool = False,
) -> list[Comparison]:
    """Accuracies of pairs of methods at the training radius, or clean.

    Raises:
        MissingError: a run failed, or the radius of a network is not known.
    """
    comparisons = []
    for network in networks:
        if not searched(network, outcomes).all:  # left out by the caller or the size
            continue
        some, eps = outcomes.of(network.name), known_eps(network, outcomes)
        right = correct_points("accuracy") if clean else correct_points("roth_robust_accuracy", eps=eps)
        where = "clean" if clean else f"at ε = {eps:g}"
        comparisons += [
            some.of(method=first).compare(
                f"{first} against {second}, {network.name}, {where}", some.of(method=second), right
            )
            for first, second in pairs
        ]
    return comparisons


def _verdict(
    outcomes: Outcomes, pairs: Sequence[tuple[str, str]], region: Region, clean: bool = False
) -> Verdict:
    return decide(compared(outcomes, NETWORKS, pairs, clean=clean), region, unit=POINTS)


def _accuracies_section(setting: Setting, outcomes: Outcomes) -> Section:
    some, networks = measured(outcomes), _networks(setting)
    tables = {name: methods_table(some.of(name), [accuracy_of()]) for name in some.networks}
    title = "Table 2: clean accuracies, and the search for equal ones"
    return Section(
        "table2", title, setting_text(networks, outcomes), tables | search_table(networks, outcomes)
    )


TABLE2 = Part(
    asks="Which radius fools the standard network, and which weights give the clean accuracy of adversarial training?",
    cases=lambda setting: standard_cases(setting, _networks(setting)),
    more=_accuracies_more,
    section=_accuracies_section,
    claims=(
        Claim(
            "clean_accuracy_is_matched",
            "A weight of each regularizer gives the clean accuracy of adversarial training, within 5 points.",
            "Section 5.1, Appendix 7.10, Table 2",
            lambda o: _verdict(
                o, [(m, ADVERSARIAL) for m in (*GLOBAL, DATA_DEPENDENT)], within(MARGIN), clean=True
            ),
        ),
    ),
)

WHERE = "Section 5.3, Figure 3"
FIGURE3 = Part(
    asks="At equal clean accuracy, which ways of training are how robust?",
    cases=lambda setting: standard_cases(setting, _networks(setting)),
    more=_curves_more,
    section=lambda setting, outcomes: _section(
        "figure3", "Figure 3: accuracy against ε", outcomes, _networks(setting)
    ),
    claims=(
        Claim(
            "dd_snr_is_as_robust_as_adversarial_training",
            "At equal clean accuracy d.d. SNR is as robust as adversarial training: at most 5 points less at its radius.",
            WHERE,
            lambda o: _verdict(o, [(DATA_DEPENDENT, ADVERSARIAL)], no_lower(MARGIN)),
        ),
        Claim(
            "both_are_more_robust_than_standard",
            "Adversarial training and d.d. SNR are more robust than standard training.",
            WHERE,
            lambda o: _verdict(o, [(m, STANDARD) for m in (ADVERSARIAL, DATA_DEPENDENT)], above()),
        ),
        Claim(
            "global_snr_is_not_as_robust",
            "Global SNR, with 1 iteration or 10, is less robust than adversarial training, by more than 5 points.",
            f"{WHERE}, Appendix 7.16",
            lambda o: _verdict(o, [(m, ADVERSARIAL) for m in GLOBAL], below(-MARGIN)),
        ),
        Claim(
            "iterations_of_global_snr_make_no_difference",
            "Global SNR with 10 iterations is as robust as with 1, within 5 points.",
            "Section 5.1, Appendix 7.16",
            lambda o: _verdict(o, [(GLOBAL[1], GLOBAL[0])], within(MARGIN)),
        ),
    ),
)


# ---------------------------------------------------------------- mixtures


def _mixture(share: float) -> str:
    return f"{share:.0%} adversarial training, {1 - share:.0%} d.d. SNR"


def _mixtures_more(setting: Setting, outcomes: Outcomes) -> list[Case]:
    def analyses(eps: float) -> list[str]:
        return [_curve(setting, CNN, eps)]

    found = further_cases(setting, outcomes, CNN, analyses, (STANDARD, ADVERSARIAL, DATA_DEPENDENT))
    eps, strength = training_eps(CNN, outcomes), matched_strength(CNN, DATA_DEPENDENT, outcomes)
    if eps is None or strength is None:
        return found
    for share in SHARES[: setting.pick(1, None, None)]:
        for case in [c for c in found if (c.network, c.method) == (CNN.name, STANDARD)]:
            steps = setting.pick(2, 10, 10)
            mixed = (
                f"mixed(lam={share!r}, clean={1 - share!r}, loss='ce', eps={eps!r}, norm=2, steps={steps})"
            )
            penalty = CNN.regularizers[DATA_DEPENDENT].format(repr((1 - share) * strength))
            run = replace(case.run, objective=mixed, regularizers=(penalty,))
            found.append(Case(CNN.name, _mixture(share), run))
    return found


def mixtures_are_as_robust(outcomes: Outcomes) -> Verdict:
    mixtures = [m for m in map(_mixture, SHARES) if m in outcomes.methods]
    if not mixtures:
        raise MissingError("there is no mixture, because the search for the weight has not ended")
    pairs = [(m, ADVERSARIAL) for m in mixtures]
    return decide(compared(outcomes, [CNN], pairs), no_lower(MARGIN), unit=POINTS)


FIGURE7 = Part(
    asks="Is every mixture of adversarial training and d.d. SNR as robust as either?",
    cases=lambda setting: standard_cases(setting, [CNN]),
    more=_mixtures_more,
    section=lambda setting, outcomes: _section(
        "figure7", "Figure 7: between adversarial training and d.d. SNR", outcomes, [CNN]
    ),
    claims=(
        Claim(
            "mixtures_are_as_robust_as_adversarial_training",
            "Mixtures of adversarial training and d.d. SNR are as robust as adversarial training, at most 5 points less.",
            "Section 5.3, Figure 7",
            mixtures_are_as_robust,
        ),
    ),
)
