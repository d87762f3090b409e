"""Propositions 1 and 2, Theorem 2: networks that are built, not trained."""

from opnorm.report import Section
from opnorm.runs.run import Result, Run
from opnorm.studies._shared.claim import Claim, Verdict, decided
from opnorm.studies._shared.methods_table import (
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


def cases(setting: Setting) -> list[Case]:
    data, points = setting.data or "digits()", setting.pick(6, POINTS, POINTS)
    attack = setting.pick("pgd", "autoattack", "autoattack")
    analyses = (
        "accuracy()",
        f"robust_accuracy(eps=({EPS},), points={points}, attack={attack!r})",
        "norm_table()",
        f"lipschitz_bracket(norm=inf, radius={EPS}, points={min(points, 10)})",
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
            f"ℓ∞ ε = {EPS}", "Share of the memorized points that AutoAttack leaves correct.", eps=EPS
        ),
        typical_norm_of("inf", "ℓ∞"),
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
    holds = all(row["correct"] == row["points"] for row in rows)
    parts = [
        f"{row['correct']} of {row['points']} points robust with a layer of ℓ∞ norm {norm:.3g}"
        for row, norm in zip(rows, norms, strict=True)
    ]
    return decided(holds, f"{rows[0]['attack']}: {', '.join(parts)}.", 1, min(row["points"] for row in rows))


def _largest_norm(result: Result) -> float:
    return max(row["norms"]["inf"]["lower"] for row in result.find("norm_table") if "inf" in row["norms"])


PART = Part(
    name="constructions",
    asks="Can a network be robust whatever the norms of its layers?",
    cases=cases,
    section=section,
    claims=(
        Claim(
            "robust_networks_of_any_norm_exist",
            "For separated points there is a network that is robust at all of them, however large its Lipschitz constant "
            "and its norms are wanted to be.",
            "Theorem 2, Proposition 2",
            robust_with_any_norm,
        ),
    ),
)
