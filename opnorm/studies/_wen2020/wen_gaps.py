"""Tables 2 to 6 with Figures 3, 6, 7 and 9: gaps between training and test as adversarial training grows stronger."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from opnorm.report import Section
from opnorm.runs.run import Result
from opnorm.studies._shared.claim import Claim, Region, Verdict, above, below, decide
from opnorm.studies._shared.methods_table import methods_table
from opnorm.studies._shared.outcomes import Case, Measure, Outcomes, correct_points, row_of
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.printed import printed_numbers
from opnorm.studies._wen2020.wen_networks import cases, columns, evaluation

__all__ = ["PARTS", "strongest_against_weakest"]

SPECTRAL_NORMS = (1, 3, 5)


def strongest_against_weakest(
    outcomes: Outcomes, measure: Measure, networks: Sequence[str] | None = None
) -> list[Comparison]:
    """The strongest adversarial training against the weakest, of each network."""
    found = []
    for network in networks or outcomes.networks:
        some = outcomes.of(network)
        weakest, strongest = some.methods[0], some.methods[-1]
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


def _decide(
    measure: Measure, region: Region, *, percent: bool = False, unit: str = ""
) -> Callable[[Outcomes], Verdict]:
    def verdict(outcomes: Outcomes) -> Verdict:
        return decide(strongest_against_weakest(outcomes, measure), region, percent=percent, unit=unit)

    return verdict


def _claims(table: str, figure: str) -> tuple[Claim, ...]:
    where = f"Section 4.1, {table}, {figure}"
    name = table.lower().replace(" ", "")
    return (
        Claim(
            f"loss_gap_shrinks_{name}",
            "The gap between test and training loss shrinks as adversarial training grows stronger.",
            where,
            _decide(gap_of("loss_gap"), below(), unit="of the loss gap"),
        ),
        Claim(
            f"test_accuracy_falls_{name}",
            "Test accuracy falls as adversarial training grows stronger.",
            where,
            _decide(correct_points("accuracy"), below(), percent=True),
        ),
    )


def _gaps_part(name: str, data: str, figures: tuple[str, ...], strengths: tuple[int, ...]) -> Part:
    label = name.replace("table", "Table ")
    return Part(
        name=name,
        asks=f"What does ever stronger adversarial training do to accuracies, losses and their gaps ({data})?",
        cases=lambda setting: cases(setting, data, _analyses(setting), strengths=strengths),
        section=_gaps_section(name, f"{label}: adversarial training of growing strength, {data}"),
        claims=_claims(label, figures[0].replace("figure", "Figure ")),
        also=figures,
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


def normalization_is_not_enough(outcomes: Outcomes) -> Verdict:
    """At the weakest adversarial training, bounding norms does not make robust what the strongest does."""
    free = [network for network in outcomes.networks if network.endswith("not bounded")]
    strongest = outcomes.of(free[0] if free else None, outcomes.methods[-1])

    def robust(result: Result) -> float:
        return float(row_of(result, "wen_robust_accuracy")["accuracy"])

    comparisons = [
        strongest.compare(
            f"{outcomes.methods[-1]} without bounds against {outcomes.methods[0]}, {network}",
            outcomes.of(network, outcomes.methods[0]),
            robust,
        )
        for network in outcomes.networks
        if network not in free
    ]
    return decide(comparisons, above(), percent=True)


def normalization_shrinks_gap(outcomes: Outcomes) -> Verdict:
    """Bounded against not bounded, at each strength."""
    free = [network for network in outcomes.networks if network.endswith("not bounded")]
    comparisons = [
        outcomes.of(network, method).compare(
            f"{network.rpartition(', ')[2]}, {method}, against not bounded",
            outcomes.of(free[0], method),
            gap_of("loss_gap"),
        )
        for network in outcomes.networks
        if free and network not in free
        for method in outcomes.methods
    ]
    return decide(comparisons, below(), share_needed=0.5, unit="of the loss gap")


def fgsm_robustness_is_no_higher(outcomes: Outcomes) -> Verdict:
    """The loss gap of the FGSM variant, as with PGD."""
    return decide(strongest_against_weakest(outcomes, gap_of("loss_gap")), below(), unit="of the loss gap")


WHERE_FGSM = "Appendix B.6, Table 2, Figures 9 to 11"
PARTS = (
    Part(
        name="table2",
        asks="Does adversarial training with one step of the attack (FGSM) do the same as with ten?",
        cases=_fgsm_cases,
        section=_gaps_section("table2", "Table 2: adversarial training with FGSM"),
        claims=(
            Claim(
                "fgsm_shrinks_the_loss_gap",
                "With FGSM instead of PGD, too, the loss gap shrinks as adversarial training grows stronger.",
                WHERE_FGSM,
                fgsm_robustness_is_no_higher,
            ),
            Claim(
                "fgsm_lowers_test_accuracy",
                "With FGSM, too, test accuracy falls as adversarial training grows stronger.",
                WHERE_FGSM,
                _decide(correct_points("accuracy"), below(), percent=True),
            ),
        ),
        also=("figure9", "figure10", "figure11"),
    ),
    _gaps_part("table3", "CIFAR-10", ("figure3", "figure7", "figure12"), (4, 8, 16)),
    _gaps_part("table4", "CIFAR-100", ("figure3b",), (4, 8, 16)),
    _gaps_part("table5", "Tiny-ImageNet", ("figure3c",), (0, 4, 8, 16)),
    Part(
        name="table6",
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
        also=("figure6",),
    ),
)
