"""Tables 2 to 6 with Figures 3, 6, 7 and 9: gaps between training and test as adversarial training grows stronger."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from opnorm.report import Section
from opnorm.runs.run import Result
from opnorm.studies._shared.claim import Claim, Region, Verdict, above, below, decide
from opnorm.studies._shared.methods_table import methods_table
from opnorm.studies._shared.outcomes import Case, Measure, MissingError, Outcomes, correct_points, row_of
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.printed import printed_numbers
from opnorm.studies._shared.unit import POINTS, Unit, difference_in
from opnorm.studies._wen2020.wen_networks import cases, columns, evaluation

__all__ = [
    "TABLE2",
    "TABLE3",
    "TABLE4",
    "TABLE5",
    "TABLE6",
    "ends_of",
    "strongest_against_weakest",
    "strongest_lies",
]

SPECTRAL_NORMS = (1, 3, 5)


def ends_of(outcomes: Outcomes) -> tuple[str, str]:
    """The weakest and the strongest adversarial training.

    Raises:
        MissingError: there is one only, because the others were left out.
    """
    if len(outcomes.methods) < 2:
        raise MissingError("the trainings that it compares were left out")
    return outcomes.methods[0], outcomes.methods[-1]


def strongest_against_weakest(
    outcomes: Outcomes, measure: Measure, networks: Sequence[str] | None = None
) -> list[Comparison]:
    """The strongest adversarial training against the weakest, of each network."""
    found = []
    for network in networks or outcomes.networks:
        some = outcomes.of(network)
        weakest, strongest = ends_of(some)
        name = f"{strongest} against {weakest}, {network}"
        found.append(some.of(method=strongest).compare(name, some.of(method=weakest), measure))
    return found


def gap_of(key: str) -> Callable[[Result], float]:
    """A field of the training and test losses and errors."""
    return lambda result: float(row_of(result, "generalization_gap")[key])


def _analyses(setting: Setting) -> tuple[str, ...]:
    return ("accuracy()", "generalization_gap()", evaluation(setting))


def _gaps_section(table: str, title: str) -> Callable[[Setting, Outcomes], Section]:
    def section(setting: Setting, outcomes: Outcomes) -> Section:
        charts = [
            chart
            for number, network in enumerate(outcomes.networks, 1)
            for chart in outcomes.of(network).chart(
                "generalization_gap", f"gaps-{number}", f"Gaps of {network}"
            )
        ]
        tables = {
            network: methods_table(
                outcomes.of(network), columns(), printed_numbers("wen2020", table, network),
                same_setting=setting.published, heading="adversarial training",
            )
            for network in outcomes.networks
        }  # fmt: skip
        return Section(table, title, tables=tables, charts=charts)

    return section


def strongest_lies(region: Region, measure: Measure, unit: Unit) -> Callable[[Outcomes], Verdict]:
    """Whether the difference of the strongest adversarial training to the weakest is in a region."""

    def verdict(outcomes: Outcomes) -> Verdict:
        return decide(strongest_against_weakest(outcomes, measure), region, unit=unit)

    return verdict


def _claims(table: str, figure: str, data: str) -> tuple[Claim, ...]:
    where = f"Section 4.1, {table}, {figure}"
    name = table.lower().replace(" ", "")
    return (
        Claim(
            f"loss_gap_shrinks_{name}",
            f"On {data}, the gap between test and training loss shrinks as adversarial training grows stronger.",
            where,
            strongest_lies(below(), gap_of("loss_gap"), unit=difference_in("the loss gap")),
        ),
        Claim(
            f"test_accuracy_falls_{name}",
            f"On {data}, test accuracy falls as adversarial training grows stronger.",
            where,
            strongest_lies(below(), correct_points("accuracy"), unit=POINTS),
        ),
    )


def _gaps_part(name: str, data: str, figure: str, strengths: tuple[int, ...]) -> Part:
    label = name.replace("table", "Table ")
    return Part(
        asks=f"What does ever stronger adversarial training do to accuracies, losses and their gaps ({data})?",
        cases=lambda setting: cases(setting, data, _analyses(setting), strengths=strengths),
        section=_gaps_section(name, f"{label}: adversarial training of growing strength, {data}"),
        claims=_claims(label, figure, data),
    )


# ---------------------------------------------------------------- FGSM, and spectral normalization


def _fgsm_cases(setting: Setting) -> list[Case]:
    data = ("CIFAR-10", "CIFAR-100")[: setting.pick(1, 2, 2)]
    return [
        case
        for name in data
        for case in cases(setting, name, _analyses(setting), networks=["ResNet-56"], method="fgsm_at")
    ]


def _spectral_cases(setting: Setting) -> list[Case]:
    found: list[Case] = []
    for sp in (None, *SPECTRAL_NORMS[: setting.pick(1, 3, 3)]):
        regularizers: tuple[str, ...] = () if sp is None else (f"spectral_normalization(sp={sp})",)
        name = "not bounded" if sp is None else f"norms at most {sp}"
        some = cases(
            setting, "CIFAR-10", _analyses(setting), networks=["ResNet-56"], regularizers=regularizers
        )
        found += [replace(case, network=f"ResNet-56, CIFAR-10, {name}") for case in some]
    return found


def _bounded(outcomes: Outcomes) -> tuple[str, list[str]]:
    """The network whose norms are not bounded, and those whose are; MissingError where the first was left out."""
    free = [network for network in outcomes.networks if network.endswith("not bounded")]
    if not free:
        raise MissingError("the network without bounds was left out")
    return free[0], [network for network in outcomes.networks if network not in free]


def normalization_is_not_enough(outcomes: Outcomes) -> Verdict:
    """At the weakest adversarial training, bounding norms does not make robust what the strongest does."""
    free, bounded = _bounded(outcomes)
    weakest, most = ends_of(outcomes)
    strongest = outcomes.of(free, most)

    def robust(result: Result) -> float:
        return float(row_of(result, "wen_robust_accuracy")["accuracy"])

    comparisons = [
        strongest.compare(
            f"{most} without bounds against {weakest}, {network}", outcomes.of(network, weakest), robust
        )
        for network in bounded
    ]
    return decide(comparisons, above(), unit=POINTS)


def normalization_shrinks_gap(outcomes: Outcomes) -> Verdict:
    """Bounded against not bounded, at each strength."""
    free, bounded = _bounded(outcomes)
    comparisons = [
        outcomes.of(network, method).compare(
            f"{network.rpartition(', ')[2]}, {method}, against not bounded",
            outcomes.of(free, method),
            gap_of("loss_gap"),
        )
        for network in bounded
        for method in outcomes.methods
    ]
    return decide(comparisons, below(), share_needed=0.5, unit=difference_in("the loss gap"))


WHERE_FGSM = "Appendix B.6, Table 2, Figures 9 to 11"
TABLE2 = Part(
    asks="Does adversarial training with one step of the attack (FGSM) do the same as with ten?",
    cases=_fgsm_cases,
    section=_gaps_section("table2", "Table 2: adversarial training with FGSM"),
    claims=(
        Claim(
            "fgsm_shrinks_the_loss_gap",
            "The gap between test and training loss shrinks as adversarial training with FGSM grows stronger, too.",
            WHERE_FGSM,
            strongest_lies(below(), gap_of("loss_gap"), unit=difference_in("the loss gap")),
        ),
        Claim(
            "fgsm_lowers_test_accuracy",
            "Test accuracy falls as adversarial training with FGSM grows stronger, too.",
            WHERE_FGSM,
            strongest_lies(below(), correct_points("accuracy"), unit=POINTS),
        ),
    ),
)
TABLE3 = _gaps_part("table3", "CIFAR-10", "Figure 3", (4, 8, 16))
TABLE4 = _gaps_part("table4", "CIFAR-100", "Figure 3b", (4, 8, 16))
TABLE5 = _gaps_part("table5", "Tiny-ImageNet", "Figure 3c", (0, 4, 8, 16))
TABLE6 = Part(
    asks="Does keeping the spectral norms of layers small do what adversarial training does?",
    cases=_spectral_cases,
    section=_gaps_section("table6", "Table 6: spectral norms bounded after every epoch"),
    claims=(
        Claim(
            "spectral_normalization_shrinks_the_loss_gap",
            "Bounding the spectral norms of the layers shrinks the loss gap, too.",
            "Appendix B.4.2, Table 6, Figure 6",
            normalization_shrinks_gap,
        ),
        Claim(
            "spectral_normalization_alone_is_not_robust",
            "Bounding the spectral norms does not make a network as robust as strong adversarial training does.",
            "Appendix B.4.2, Table 6",
            normalization_is_not_enough,
        ),
    ),
)
