"""Figure 2: the norms of adversarially trained networks."""

import math
from collections.abc import Iterator
from dataclasses import replace

from opnorm.analyses._shared.layer_rows import KINDS
from opnorm.report import Section, layers_against_epoch
from opnorm.runs.run import Result
from opnorm.studies._liang2021.liang_networks import NETWORKS, base_run, slug
from opnorm.studies._shared.claim import Claim, Verdict, above, decide, no_lower
from opnorm.studies._shared.methods_table import (
    Quantity,
    accuracy_of,
    methods_table,
    robust_accuracy_of,
    typical_norm_of,
)
from opnorm.studies._shared.outcomes import Case, Outcomes
from opnorm.studies._shared.paired_tests import Comparison
from opnorm.studies._shared.paper import Part, Setting

__all__ = ["PART"]

PLAIN = "plain"
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
    points, eps = setting.pick(10, 200, None), _eps(setting)
    attack = "'autoattack'" if setting.size == "paper" else "'apgd', version='fast', restarts=1"
    analyses = (
        "accuracy()",
        f"robust_accuracy(eps=({eps!r},), points={points}, attack={attack})",
        "norm_table()",
    )
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
            setting.pick(1, 3, 1),
        )
    ]


def section(setting: Setting, outcomes: Outcomes) -> Section:
    eps = "8/255" if setting.size == "paper" else f"{_eps(setting):g}"
    quantities = [
        accuracy_of(),
        robust_accuracy_of(
            f"ℓ∞ ε = {eps}", "Share of test images that stay correct after AutoAttack.", eps=_eps(setting)
        ),
        typical_norm_of("1", "ℓ1"),
        typical_norm_of("2", "ℓ2"),
        typical_norm_of("inf", "ℓ∞"),
    ]
    quantities = [q if q.column.key[:4] != "norm" else _neither(q) for q in quantities]
    tables = {network: methods_table(outcomes.of(network), quantities) for network in outcomes.networks}
    charts = []
    for network in outcomes.networks:
        some = outcomes.of(network)
        charts += some.chart("norm_table", f"norms-{slug(network)}", f"Norms of the layers of {network}")
        epochs = layers_against_epoch(some.metrics(), some.methods)
        charts.append(
            replace(epochs, key=f"epochs-{slug(network)}", title=f"Norms of {network} against epoch")
        )
    return Section(
        "figure2", "Figure 2: norms of adversarially trained networks", tables=tables, charts=charts
    )


def _neither(quantity: Quantity) -> Quantity:
    return replace(quantity, column=replace(quantity.column, better=None))


def _norms(result: Result) -> list[float]:
    return [row["norms"]["inf"]["lower"] for row in result.find("norm_table") if row["kind"] in KINDS]


def _log_typical(result: Result) -> float:
    norms = _norms(result)
    return math.fsum(map(math.log10, norms)) / len(norms)


def _pairs(outcomes: Outcomes) -> Iterator[tuple[str, Outcomes, Outcomes]]:
    for network in outcomes.networks:
        of_network = outcomes.of(network)
        for method in of_network.methods:
            if method != PLAIN:
                name = f"{method} against plain, {network}"
                yield name, of_network.of(method=method), of_network.of(method=PLAIN)


def typical_no_smaller(outcomes: Outcomes) -> Verdict:
    comparisons = [trained.compare(name, plain, _log_typical) for name, trained, plain in _pairs(outcomes)]
    return decide(
        comparisons,
        no_lower(-math.log10(COMPARABLE)),
        share_needed=0.5,
        unit="in log10 of the typical ℓ∞ norm",
    )


def each_no_smaller(outcomes: Outcomes) -> Verdict:
    """The share of layers whose norm is comparable or larger, against one half."""
    comparisons = []
    for name, trained, plain in _pairs(outcomes):
        first, second = trained.by_seed(_norms), plain.by_seed(_norms)
        counted = [
            [a >= COMPARABLE * b for a, b in zip(first[s], second[s], strict=True)]
            for s in first
            if s in second
        ]
        comparisons.append(Comparison.of_counts(f"share of layers, {name}", counted, 0.5))
    return decide(comparisons, above(), share_needed=0.5, unit="above one half")


SECTION = "Section “The Norms of Adversarially Robust Networks”, Figure 2"
PART = Part(
    name="figure2",
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
