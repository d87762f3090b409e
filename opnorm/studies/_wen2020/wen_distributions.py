"""Table 1, Figures 1, 4, 5 and 8, B.2 and Theorem 3.1: margins, confidence, singular values, variation of the loss."""

import math
import operator

import numpy as np

from opnorm.report import Cell, Chart, Column, Section, Table
from opnorm.runs.run import Result
from opnorm.studies._shared.claim import Claim, Verdict, above, below, decide
from opnorm.studies._shared.methods_table import Quantity, methods_table, value_of
from opnorm.studies._shared.outcomes import Case, Measure, MissingError, Outcomes, row_of, share_that
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.printed import printed_numbers
from opnorm.studies._shared.unit import POINTS, difference_in, share_of
from opnorm.studies._wen2020.wen_gaps import ends_of, strongest_against_weakest, strongest_lies
from opnorm.studies._wen2020.wen_networks import DIGITS_SCALE, cases

__all__ = ["B2", "FIGURE4", "TABLE1", "THEOREM31"]

VARIED = (1, 2, 4)  # gray levels


def _resnets(setting: Setting, *analyses: str) -> list[Case]:
    """ResNet-56 on the two data sets of the figures."""
    data = ("CIFAR-10", "CIFAR-100")[: setting.pick(1, 2, 2)]
    return [case for name in data for case in cases(setting, name, analyses, networks=["ResNet-56"])]


def _charts(outcomes: Outcomes, *analyses: str) -> list[Chart]:
    """The charts of analyses, of each network."""
    return [
        chart
        for number, network in enumerate(outcomes.networks, 1)
        for analysis in analyses
        for chart in outcomes.of(network).chart(
            analysis, f"{analysis.replace('_', '-')}-{number}", f"{network}: {analysis.replace('_', ' ')}"
        )
    ]


# ---------------------------------------------------------------- Table 1: variation of the loss


def _radii(setting: Setting) -> tuple[float, ...]:
    scale = 1.0 if setting.size == "paper" else DIGITS_SCALE
    return tuple(scale * level / 255 for level in VARIED)


def _variation_cases(setting: Setting) -> list[Case]:
    points = setting.pick(20, 300, None)
    return _resnets(setting, f"loss_variation(eps={_radii(setting)!r}, points={points})")


def _variation(key: str, eps: float) -> Measure:
    return lambda result: float(row_of(result, "loss_variation", eps=eps)[key])


def _variation_section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        Quantity(
            Column(
                f"{key}_{level}",
                f"{name}, {level}/255" + ("" if setting.size == "paper" else f" × {DIGITS_SCALE:g}"),
                "number",
                "low",
                help,
            ),
            _variation(key, eps),
        )
        for level, eps in zip(VARIED, _radii(setting), strict=True)
        for key, name, help in (
            ("mean", "mean", "Largest change of the loss within the radius, mean over the test images."),
            ("std", "std", "Its standard deviation over the test images."),
        )
    ]
    tables = {
        network: methods_table(
            outcomes.of(network), quantities, printed_numbers("wen2020", "table1", network),
            same_setting=setting.published, heading="adversarial training",
        )
        for network in outcomes.networks
    }  # fmt: skip
    return Section(
        "table1",
        "Table 1: variation of the loss around test points",
        tables=tables,
        charts=_charts(outcomes, "loss_variation"),
    )


def variation_falls(outcomes: Outcomes) -> Verdict:
    eps = sorted({row["eps"] for o in outcomes.good for row in o.result.find("loss_variation")})
    comparisons = [
        c for radius in eps for c in strongest_against_weakest(outcomes, _variation("mean", radius))
    ]
    return decide(comparisons, below(), unit=difference_in("the mean change"))


# ---------------------------------------------------------------- margins and confidence


def _margin(result: Result) -> float:
    """The mean distance of the test margins from 0."""
    return float(np.abs(row_of(result, "margins", split="test")["margins"]).mean())


def _confidence(result: Result) -> float | None:
    """The mean probability of the right class over the test points that are classified correctly."""
    probabilities = np.array(row_of(result, "predictions", split="test")["probabilities"])
    correct = np.array(row_of(result, "margins", split="test")["margins"]) > 0
    return float(probabilities[correct].mean()) if correct.any() else None


def _margins_section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        Quantity(
            Column("margin", "distance of margins from 0", "number", None, "Mean over the test images."),
            _margin,
        ),
        Quantity(
            Column(
                "confidence",
                "confidence",
                "percent",
                None,
                "Mean probability of the right class, of the correct test images.",
            ),
            _confidence,
        ),
    ]
    tables = {
        n: methods_table(outcomes.of(n), quantities, heading="adversarial training")
        for n in outcomes.networks
    }
    return Section(
        "figure4",
        "Figures 1b, 4, 5a and 5b: margins and confidence",
        tables=tables,
        charts=_charts(outcomes, "margins", "predictions"),
    )


# ---------------------------------------------------------------- singular values


def _spread_of(result: Result) -> dict[str, float]:
    """The standard deviation of the singular values of each layer, of circular padding as in the paper."""
    rows = result.find("singular_spread")
    return {row["layer"]: row["circular_std"] for row in rows if row.get("circular_std") is not None}


def _share_that_fell(outcomes: Outcomes) -> list[Comparison]:
    found = []
    for network in outcomes.networks:
        some = outcomes.of(network)
        weakest, strongest = ends_of(some)
        name = f"share of layers whose spread fell from {weakest} to {strongest}, {network}"
        first, last = some.of(method=strongest), some.of(method=weakest)
        found.append(share_that(name, first, last, _spread_of, operator.lt, 0.5))
    return found


def spread_falls(outcomes: Outcomes) -> Verdict:
    return decide(_share_that_fell(outcomes), above(), unit=share_of("the layers", 0.5))


def _changes(outcomes: Outcomes, network: str) -> dict[str, float]:
    """Sum and mean of the layers' changes from the weakest to the strongest, those that fell and those that rose."""
    some = outcomes.of(network)
    weakest, strongest = ends_of(some)
    before, after = some.of(method=weakest).by_seed(_spread_of), some.of(method=strongest).by_seed(_spread_of)
    found: dict[str, list[float]] = {"fell": [], "rose": []}
    for seed in before.keys() & after.keys():
        for layer in before[seed].keys() & after[seed].keys():
            change = after[seed][layer] - before[seed][layer]
            found["fell" if change < 0 else "rose"].append(abs(change))
    seeds = max(len(before), 1)
    return {
        f"{way}_{key}": (math.fsum(changes) / (seeds if key == "sum" else max(len(changes), 1)))
        for way, changes in found.items()
        for key in ("sum", "mean")
    }


def _spread_section(setting: Setting, outcomes: Outcomes) -> Section:
    labels = {
        "fell_sum": "fell, sum",
        "fell_mean": "fell, mean",
        "rose_sum": "rose, sum",
        "rose_mean": "rose, mean",
    }
    names = [Column("method", "network", "text")]
    help = "Change of the standard deviation of a layer's singular values, over the layers where it {}."
    for key, label in labels.items():
        names.append(Column(key, label, "number", None, help.format(label.split(",")[0])))
        names.append(Column(f"{key}_paper", "paper" if setting.published else "paper, other setting"))
    rows: list[dict[str, Cell]] = []
    for network in outcomes.networks:
        printed = printed_numbers("wen2020", "b2", network).get("AR 16", {})
        row: dict[str, Cell] = {"method": network} | {f"{k}_paper": v for k, v in printed.items()}
        try:
            rows.append({**row, **_changes(outcomes, network)})
        except MissingError as e:
            rows.append(row | {"_failed": str(e)})
    return Section(
        "b2", "B.2, Figures 1a, 5c and 5d: spread of singular values",
        tables={"From the weakest adversarial training to the strongest": Table(names, rows)},
        charts=_charts(outcomes, "singular_spread"),
    )  # fmt: skip


# ---------------------------------------------------------------- Theorem 3.1


def _bound_section(setting: Setting, outcomes: Outcomes) -> Section:
    help = "Of the bound of Theorem 3.1; above 1 it says nothing."
    quantities = [
        value_of(
            "u_min",
            "u_min",
            "wen_bound",
            "A lower bound of the margins in the covering balls of training points.",
        ),
        value_of("margin_term", "margin term", "wen_bound", help),
        value_of("covering_term", "covering term", "wen_bound", help),
        value_of("confidence_term", "confidence term", "wen_bound", help),
        value_of("value", "bound", "wen_bound", "Of the generalization error of the ramp loss."),
    ]
    tables = {
        n: methods_table(outcomes.of(n), quantities, heading="adversarial training")
        for n in outcomes.networks
    }
    return Section("theorem31", "Theorem 3.1: the bound and its terms", tables=tables)


CHAIN = "a network without shortcuts"  # the theorem is about chains of layers; residual networks are none
WHERE = "Section 4.2.1, Figures 1b, 4, 5a and 5b"
TABLE1 = Part(
    asks="How much does the loss change around test points, as adversarial training grows stronger?",
    cases=_variation_cases,
    section=_variation_section,
    claims=(
        Claim(
            "loss_variation_falls",
            "The largest change of the loss around a test point falls as adversarial training grows stronger.",
            "Appendix B.5, Table 1, Figure 8",
            variation_falls,
        ),
    ),
)
FIGURE4 = Part(
    asks="Do margins concentrate around zero, and does confidence fall, as adversarial training grows stronger?",
    cases=lambda s: _resnets(
        s, "margins()", "margins(split='train')", "predictions()", "predictions(split='train')"
    ),
    section=_margins_section,
    claims=(
        Claim(
            "margins_concentrate",
            "Margins concentrate around zero as adversarial training grows stronger.",
            WHERE,
            strongest_lies(below(), _margin, unit=difference_in("the mean distance of margins from 0")),
        ),
        Claim(
            "confidence_falls",
            "Predictions become less confident as adversarial training grows stronger.",
            WHERE,
            strongest_lies(below(), _confidence, unit=POINTS),
        ),
    ),
)
B2 = Part(
    asks="Do the singular values of each layer come closer together as adversarial training grows stronger?",
    cases=lambda setting: _resnets(setting, "singular_spread()"),
    section=_spread_section,
    claims=(
        Claim(
            "singular_values_come_closer",
            "In most layers the standard deviation of the singular values falls as adversarial training grows stronger.",
            "Section 4.2.2, Appendix B.2, Figures 1a, 5c and 5d",
            spread_falls,
        ),
    ),
)
THEOREM31 = Part(
    asks="How large is the generalization bound of Theorem 3.1 for each network, and which term makes it so?",
    cases=lambda setting: cases(setting, "CIFAR-10", ("accuracy()", "wen_bound()"), networks=[CHAIN]),
    section=_bound_section,
)
