"""Tables 1 to 4: WEISSI beside weight decay and Parseval networks, clean and attacked."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from opnorm.report import Section
from opnorm.studies._liu2020.liu_networks import (
    MNIST_NETWORKS,
    RADII,
    TRAININGS,
    WEIGHT_DECAY,
    WEISSI,
    WEISSI_CA,
    attacked,
    cases,
    columns,
    evaluation,
    methods_of,
)
from opnorm.studies._shared.claim import Claim, Verdict, above, below, decide, no_lower
from opnorm.studies._shared.methods_table import methods_table
from opnorm.studies._shared.outcomes import Case, Measure, Outcomes, correct_points, row_of
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.printed import printed_numbers
from opnorm.studies._shared.unit import POINTS

__all__ = ["TABLE1", "TABLE2", "TABLE3", "TABLE4", "compared", "made_attacks", "median_trials"]


def _table_section(
    table: str, title: str, radii: Sequence[float] = RADII
) -> Callable[[Setting, Outcomes], Section]:
    """One table a network and training, with the printed numbers beside."""

    def section(setting: Setting, outcomes: Outcomes) -> Section:
        tables, heading = {}, "regularization"
        for network in outcomes.networks:
            some, printed, caption = outcomes.of(network), printed_numbers("liu2020", table, network), network
            if setting.size == "paper" and not network.startswith(MNIST_NETWORKS):
                tables[f"{network}, all trials"] = methods_table(
                    some, columns(setting, radii), heading=heading
                )
                some, caption = median_trials(some), f"{network}, trial of median accuracy, as in the paper"
            tables[caption] = methods_table(
                some, columns(setting, radii), printed, same_setting=setting.published, heading=heading
            )
        charts = [
            chart
            for number, network in enumerate(outcomes.networks, 1)
            for chart in outcomes.of(network).chart("liu_robust_accuracy", f"attacks-{number}", network)
        ]
        return Section(table, title, tables=tables, charts=charts)

    return section


def median_trials(outcomes: Outcomes) -> Outcomes:
    """Of each method the trial whose clean test accuracy is the median; of an even number the lower of the middle two.

    All trials of a method of which one failed, since its median is not known.
    """
    found = []
    for method in outcomes.methods:
        trials = outcomes.of(method=method).all
        if not any(o.result.failure for o in trials):
            trials = sorted(trials, key=lambda o: float(row_of(o.result, "accuracy")["accuracy"]))
            trials = [trials[(len(trials) - 1) // 2]]
        found += trials
    return Outcomes(found)


def _table_cases(networks: Sequence[str], radii: Sequence[float] = RADII) -> Callable[[Setting], list[Case]]:
    def make(setting: Setting) -> list[Case]:
        analyses = ("accuracy()", evaluation(setting, radii))
        some = networks[: setting.pick(1, None, None)]
        return [case for n in some for case in cases(setting, n, analyses, methods_of(n, setting))]

    return make


def _mmc_cases(setting: Setting) -> list[Case]:
    analyses = ("accuracy()", evaluation(setting))
    found = [
        case
        for network in ("VGG-16", "WRN-28-10")[: setting.pick(1, 2, 2)]
        for case in cases(
            setting, network, analyses, (WEIGHT_DECAY, WEISSI), trainings=("standard",),
            objective=f"mmc(radius={setting.pick(3, 3, 10)})", label=f"{network}, MMC",
        )
    ]  # fmt: skip
    # the gradients of MMC are longer than those of cross-entropy: at the 0.03 of the small one, VGG-16 dies
    return [
        replace(case, run=replace(case.run, optimizer="sgd(lr=0.01)"))
        if case.network.startswith("VGG-16")
        else case
        for case in found
    ]


# ---------------------------------------------------------------- claims


def compared(
    outcomes: Outcomes,
    measures: Sequence[tuple[str, Measure]],
    training: str,
    method: str = WEISSI,
    other: str = WEIGHT_DECAY,
) -> list[Comparison]:
    """A method against another, of each network in a training, by each measure."""
    found = []
    for network in outcomes.networks:
        some = outcomes.of(network)
        if network.endswith(training) and method in some.methods and other in some.methods:
            for name, measure in measures:
                label = f"{method} against {other}, {network}, {name}"
                found.append(some.of(method=method).compare(label, some.of(method=other), measure))
    return found


def made_attacks(outcomes: Outcomes) -> list[tuple[str, Measure]]:
    """Every attack that was made, by its call and radius."""
    rows = outcomes.good[0].result.find("liu_robust_accuracy") if outcomes.good else []
    kinds = [("fgsm" if row["attack"].startswith("fgsm") else "pgd", row["eps"]) for row in rows]
    return [(f"{kind.upper()} {eps:g}", attacked(kind, eps)) for kind, eps in kinds]


CLEAN: list[tuple[str, Measure]] = [("clean", correct_points("accuracy"))]


def clean_accuracy_falls(outcomes: Outcomes) -> Verdict:
    """Of convex aggregation, in standard training."""
    return decide(compared(outcomes, CLEAN, "standard", WEISSI_CA, WEISSI), below(), unit=POINTS)


def _clean(training: str) -> Callable[[Outcomes], Verdict]:
    return lambda outcomes: decide(compared(outcomes, CLEAN, training), no_lower(0.01), unit=POINTS)


def _robust(training: str, method: str = WEISSI, other: str = WEIGHT_DECAY) -> Callable[[Outcomes], Verdict]:
    return lambda outcomes: decide(
        compared(outcomes, made_attacks(outcomes), training, method, other),
        above(),
        share_needed=0.5,
        unit=POINTS,
    )


def _claims(table: str, number: int, networks: str) -> tuple[Claim, ...]:
    found = []
    for training in TRAININGS:
        words = "adversarial training" if training == "adversarial" else "standard training"
        where = f"Section 6.{2 if training == 'standard' else 3}, Table {number}"
        found += [
            Claim(
                f"weissi_is_as_accurate_{training}_{table}",
                f"With {words}, {networks} are as accurate with WEISSI as with weight decay, or more so.",
                where,
                _clean(training),
            ),
            Claim(
                f"weissi_is_more_robust_{training}_{table}",
                f"With {words}, {networks} stay correct under FGSM and PGD more often with WEISSI than with weight decay.",
                where,
                _robust(training),
            ),
        ]
    return tuple(found)


MNIST_RADII = (0.03,)
TABLE1 = Part(
    asks="Are small networks more accurate and robust with WEISSI than with weight decay?",
    cases=_table_cases(MNIST_NETWORKS, MNIST_RADII),
    section=_table_section("table1", "Table 1: a perceptron and a small convolutional network", MNIST_RADII),
    claims=_claims("table1", 1, "small networks"),
)
TABLE2 = Part(
    asks="Is a VGG network more accurate and robust with WEISSI?",
    cases=_table_cases(("VGG-16",)),
    section=_table_section("table2", "Table 2: VGG-16"),
    claims=_claims("table2", 2, "VGG networks"),
)
TABLE3 = Part(
    asks="Is a wide residual network more accurate and robust with WEISSI, and with convex aggregation?",
    cases=_table_cases(("WRN-28-10",)),
    section=_table_section("table3", "Table 3: a wide residual network"),
    claims=(
        *_claims("table3", 3, "wide residual networks"),
        Claim(
            "convex_aggregation_is_more_robust",
            "Convex aggregation makes networks trained with WEISSI more robust under FGSM and PGD.",
            "Section 6.3, Table 3",
            _robust("standard", WEISSI_CA, WEISSI),
        ),
        Claim(
            "convex_aggregation_costs_clean_accuracy",
            "Convex aggregation costs networks trained with WEISSI some clean accuracy.",
            "Section 6.3, Table 3",
            clean_accuracy_falls,
        ),
    ),
)
TABLE4 = Part(
    asks="Does WEISSI help a robust loss, that of Max-Mahalanobis centers, too?",
    cases=_mmc_cases,
    section=_table_section("table4", "Table 4: with the loss of Max-Mahalanobis centers"),
    claims=(
        Claim(
            "weissi_helps_the_loss_of_max_mahalanobis_centers",
            "With the loss of Max-Mahalanobis centers, networks stay correct under FGSM and PGD more often with WEISSI "
            "than with weight decay.",
            "Section 6.4, Table 4",
            _robust("MMC"),
        ),
    ),
)
