"""Figure 2: the norms of adversarially trained networks."""

import math
from collections.abc import Iterator
from dataclasses import replace

from opnorm.analyses._shared.layer_rows import KINDS
from opnorm.report import Section, layers_against_epoch, slug
from opnorm.runs.run import Result
from opnorm.studies._liang2021.liang_networks import (
    NETWORKS,
    PLAIN,
    base_run,
    columns,
    evaluation,
    norm_charts,
)
from opnorm.studies._shared.claim import Claim, Verdict, above, decide, no_lower
from opnorm.studies._shared.methods_table import Quantity, log_typical_norm, methods_table
from opnorm.studies._shared.outcomes import Case, Outcomes, share_that
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import share_of, times_the

__all__ = ["PART"]

LAPTOP_EPOCHS = 5  # an epoch of ten attack steps costs as much as ten plain ones
COMPARABLE = 0.8  # of plain training's norm, and more, is "comparable or larger"


def _eps(setting: Setting) -> float:
    return 8 / 255 if setting.size == "paper" else 0.1


def _objectives(setting: Setting) -> dict[str, str]:
    eps, steps = _eps(setting), setting.pick(2, 10, 10)
    if setting.size == "paper":  # as the authors' program
        common = "eps=0.031, step=0.007, steps=10, start='gaussian', mode='eval'"
        return {
            PLAIN: "plain()",
            "PGD-AT": f"pgd_at({common})",
            "ALP": f"alp(beta=1, {common})",
            "TRADES": f"trades(beta=1, passes=2, {common})",
        }
    common = f"eps={eps!r}, steps={steps}"
    return {
        PLAIN: "plain()",
        "PGD-AT": f"pgd_at({common})",
        "ALP": f"alp({common})",
        "TRADES": f"trades(beta=1, {common})",
    }


def cases(setting: Setting) -> list[Case]:
    analyses = evaluation(setting, _eps(setting))
    return [
        case
        for network in list(NETWORKS)[: setting.pick(1, 4, 4)]
        for label, objective in _objectives(setting).items()
        for case in setting.repeated(
            Case(
                network,
                label,
                replace(base_run(setting, network, 0.1, analyses, LAPTOP_EPOCHS), objective=objective),
            ),
            setting.pick(1, 3, 3),
        )
    ]


def section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        q if q.column.key[:4] != "norm" else _neither(q) for q in columns(setting, outcomes, _eps(setting))
    ]
    tables = {network: methods_table(outcomes.of(network), quantities) for network in outcomes.networks}
    charts = []
    for network in outcomes.networks:
        some = outcomes.of(network)
        charts += norm_charts(outcomes, network)
        epochs = layers_against_epoch(some.metrics(), some.methods)
        charts.append(
            replace(epochs, key=f"epochs-{slug(network)}", title=f"Norms of {network} against epoch")
        )
    return Section(
        "figure2", "Figure 2: norms of adversarially trained networks", tables=tables, charts=charts
    )


def _neither(quantity: Quantity) -> Quantity:
    return replace(quantity, column=replace(quantity.column, better=None))


def _norms(result: Result) -> dict[str, float]:
    rows = [row for row in result.find("norm_table") if row["kind"] in KINDS]
    return {row["layer"]: row["norms"]["inf"]["lower"] for row in rows}


def _pairs(outcomes: Outcomes) -> Iterator[tuple[str, Outcomes, Outcomes]]:
    for network in outcomes.networks:
        of_network = outcomes.of(network)
        for method in of_network.methods:
            if method != PLAIN:
                name = f"{method} against plain, {network}"
                yield name, of_network.of(method=method), of_network.of(method=PLAIN)


def typical_no_smaller(outcomes: Outcomes) -> Verdict:
    comparisons = [
        trained.compare(name, plain, log_typical_norm("inf")) for name, trained, plain in _pairs(outcomes)
    ]
    return decide(
        comparisons,
        no_lower(-math.log10(COMPARABLE)),
        share_needed=0.5,
        unit=times_the("typical ℓ∞ norm"),
    )


def each_no_smaller(outcomes: Outcomes) -> Verdict:
    """The share of layers whose norm is comparable or larger, against one half."""
    comparisons = [
        share_that(f"share of layers, {name}", trained, plain, _norms, lambda a, b: a >= COMPARABLE * b, 0.5)
        for name, trained, plain in _pairs(outcomes)
    ]
    return decide(comparisons, above(), share_needed=0.5, unit=share_of("the layers", 0.5))


SECTION = "Section “The Norms of Adversarially Robust Networks”, Figure 2"
PART = Part(
    asks="Are the norms of layers smaller in networks that adversarial training made robust?",
    cases=cases,
    section=section,
    claims=(
        Claim(
            "robust_networks_have_typical_norms_no_smaller",
            "The typical norm of a layer of an adversarially trained network is comparable to plain training's, or larger.",
            SECTION,
            typical_no_smaller,
        ),
        Claim(
            "robust_networks_have_layers_no_smaller",
            "Most layers of an adversarially trained network have norms comparable to plain training's, or larger.",
            SECTION,
            each_no_smaller,
        ),
    ),
)
