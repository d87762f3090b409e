"""Propositions 1 and 2, Theorem 2: networks that are built, not trained."""

from opnorm import spec
from opnorm.report import Column, Section
from opnorm.runs.run import Result, Run
from opnorm.studies._liang2021.liang_networks import attack_of
from opnorm.studies._shared.claim import Claim, Verdict, decided
from opnorm.studies._shared.methods_table import (
    Quantity,
    accuracy_of,
    methods_table,
    robust_accuracy_of,
    typical_norm_of,
)
from opnorm.studies._shared.outcomes import Case, Outcomes, row_of
from opnorm.studies._shared.paper import Part, Setting

__all__ = ["PART"]

EPS = 0.05  # digits of different classes are more than 2 ε apart
POINTS = 40
SLOPES = (0.0, 1e3, 1e6)  # the Lipschitz constant is at least this
ALONG = (
    4.0  # the slope is past the data in the direction of the first pixel, at 2 + ε beyond its largest value
)


def cases(setting: Setting) -> list[Case]:
    data, points = setting.data or "digits()", setting.pick(6, POINTS, POINTS)
    attack = setting.pick("pgd", "autoattack", "autoattack")
    analyses = (
        "accuracy()",
        f"robust_accuracy(eps=({EPS},), points={points}, attack={attack!r})",
        "norm_table()",
        f"lipschitz_bracket(norm=inf, radius={EPS}, points={min(points, 10)}, along={ALONG:g})",
    )
    found = []
    for slope in SLOPES[: setting.pick(1, 3, 3)]:
        model = f"opnorm.theory.memorizer_of({data}, limit={points}, eps={EPS}, lipschitz={slope!r})"
        run = Run(model=model, data=data, epochs=0, limit=points, analyses=analyses)
        found.append(Case("memorizer", f"Lipschitz constant at least {slope:g}", run))
    return found


def section(setting: Setting, outcomes: Outcomes) -> Section:
    quantities = [
        accuracy_of(),
        robust_accuracy_of(
            f"ℓ∞ ε = {EPS}",
            f"Share of the memorized points that {attack_of(outcomes)} leaves correct.",
            eps=EPS,
        ),
        typical_norm_of("inf", "ℓ∞"),
        Quantity(
            Column("slope", "slope found", "number", None, "A lower end of the Lipschitz constant, ℓ∞."),
            steepest,
        ),
    ]
    table = methods_table(outcomes, quantities, heading="network")
    return Section(
        "constructions",
        "Theorem 2 and Proposition 2: robust networks of any norm",
        tables={"Built networks": table},
    )


def robust_with_any_norm(outcomes: Outcomes) -> Verdict:
    rows = [row_of(o.result, "robust_accuracy", eps=EPS) for o in outcomes.complete()]
    norms = [_largest_norm(o.result) for o in outcomes.all]
    slopes = [steepest(o.result) for o in outcomes.all]
    wanted = [asked_slope(o.case.run) for o in outcomes.all]
    robust = all(row["correct"] == row["points"] for row in rows)
    steep = all(slope >= least for slope, least in zip(slopes, wanted, strict=True))
    parts = [
        f"{row['correct']} of {row['points']} points robust with a layer of ℓ∞ norm {norm:.3g} and a slope of {slope:.3g} "
        f"(asked for: {least:g})"
        for row, norm, slope, least in zip(rows, norms, slopes, wanted, strict=True)
    ]
    return decided(
        robust and steep, f"{rows[0]['attack']}: {', '.join(parts)}.", 1, min(row["points"] for row in rows)
    )


def steepest(result: Result) -> float:
    """The lower end of the Lipschitz constant."""
    row = row_of(result, "lipschitz_bracket")
    return max(row["jacobian"], row["secant"], row["along"])


def asked_slope(run: Run) -> float:
    """The Lipschitz constant that a network was built for."""
    slope = dict(spec.parse(run.model).kwargs)["lipschitz"]
    assert isinstance(slope, int | float), "a slope is a number"
    return float(slope)


def _largest_norm(result: Result) -> float:
    return max(row["norms"]["inf"]["lower"] for row in result.find("norm_table") if "inf" in row["norms"])


PART = Part(
    asks="Can a network be robust whatever the norms of its layers?",
    cases=cases,
    section=section,
    claims=(
        Claim(
            "robust_networks_of_any_norm_exist",
            "For separated points there is a network that is robust at all of them, however large a Lipschitz constant "
            "and norms are asked for.",
            "Theorem 2, Proposition 2",
            robust_with_any_norm,
        ),
    ),
)
