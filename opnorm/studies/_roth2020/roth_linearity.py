"""Figures 4 and 5: how linear networks are around data, and how many activations neighbors share."""

from collections.abc import Callable

import numpy as np

from opnorm.report import Column, Section
from opnorm.runs.run import Result
from opnorm.studies._roth2020.roth_search import (
    CNN,
    STANDARD,
    known_eps,
    measured,
    setting_text,
    standard_cases,
    training_eps,
)
from opnorm.studies._roth2020.roth_spectra import MATCHED, cnn_more, of_method
from opnorm.studies._shared.claim import Claim, Region, Verdict, above, below, decide
from opnorm.studies._shared.methods_table import Quantity, accuracy_of, methods_table
from opnorm.studies._shared.outcomes import Outcomes, row_of
from opnorm.studies._shared.paper import Part, Setting
from opnorm.studies._shared.unit import POINTS, Unit, difference_in

__all__ = ["FIGURE4", "FIGURE5"]

METHODS = (STANDARD, *MATCHED)
FACTORS = (0, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2)  # of the training radius
DIRECTIONS = ("random", "adversarial")

Number = Callable[[Result], float]


def _against_standard(outcomes: Outcomes, measures: dict[str, Number], region: Region, unit: Unit) -> Verdict:
    """Adversarial training and d.d. SNR against standard training."""
    comparisons = [
        of_method(outcomes, method).compare(
            f"{method} against {STANDARD}, {name}", of_method(outcomes, STANDARD), measure
        )
        for method in MATCHED
        for name, measure in measures.items()
    ]
    return decide(comparisons, region, unit=unit)


# ---------------------------------------------------------------- Figure 4


def _linearity_analyses(setting: Setting, eps: float) -> list[str]:
    factors = (0, 1) if setting.size == "smoke" else FACTORS
    distances = tuple(eps if factor == 1 else float(f"{eps * factor:.3g}") for factor in factors)
    attack = f"pgd(norm=2, eps={eps!r}, steps={setting.pick(2, 10, 10)})"
    points = setting.pick(10, 100, 200)
    return [f"local_linearity(points={points}, distances={distances!r}, attack={attack})"]


def deviation(eps: float, direction: str) -> Number:
    """From linear, at the training radius."""
    return lambda r: float(row_of(r, "local_linearity", direction=direction, distance=eps)["deviation"])


def _sigmas(result: Result, eps: float, direction: str) -> list[float]:
    """The largest singular value at all distances within the training radius, the point itself included."""
    rows = result.find("local_linearity")
    return [row["sigma"] for row in rows if row["direction"] == direction and row["distance"] <= eps]


def top_value(eps: float, direction: str) -> Number:
    """The largest singular value within the training radius."""
    return lambda r: max(_sigmas(r, eps, direction))


def variation(eps: float, direction: str) -> Number:
    """By how much the largest singular value varies within the training radius."""
    return lambda r: max(_sigmas(r, eps, direction)) - min(_sigmas(r, eps, direction))


def _of_eps(make: Callable[[float, str], Number], unit: Unit) -> Callable[[Outcomes], Verdict]:
    def verdict(outcomes: Outcomes) -> Verdict:
        eps = known_eps(CNN, outcomes)
        measures = {f"{d} direction": make(eps, d) for d in DIRECTIONS}
        return _against_standard(outcomes, measures, below(), unit)

    return verdict


def _linearity_section(setting: Setting, outcomes: Outcomes) -> Section:
    some, eps = measured(outcomes), training_eps(CNN, outcomes)
    quantities = [accuracy_of()]
    made = (
        ("deviation", "deviation", deviation, "Distance of the features from their linearization, at the radius ε"),
        ("top", "top singular value", top_value, "Largest one of the Jacobian within the radius ε"),
        ("variation", "its variation", variation, "Its largest less its smallest value within the radius ε"),
    )  # fmt: skip
    quantities += [
        Quantity(
            Column(f"{key}_{d}", f"{label}, {d}", "number", "low", f"{help}, in {d} directions, mean."),
            make(eps, d),
        )
        for key, label, make, help in made
        for d in DIRECTIONS
        if eps is not None
    ]
    tables = {n: methods_table(some.of(n), quantities) for n in some.networks}
    return Section(
        "figure4",
        "Figure 4: linearity around images",
        setting_text([CNN], outcomes),
        tables,
        some.chart("local_linearity", "linearity", "Deviation from linear, and top singular value"),
    )


# ---------------------------------------------------------------- Figure 5


def _cells_analyses(setting: Setting) -> list[str]:
    noise = (0.0, 0.1) if setting.size == "smoke" else (0.0, 0.01, 0.02, 0.05, 0.1, 0.2)
    return [f"relu_cells(points={setting.pick(10, 200, 200)}, eps={noise!r})"]


def shared(around: str, key: str = "mean") -> Number:
    """The share of units that keep their state, mean over all sizes of noise above 0."""
    return lambda r: float(
        np.mean([row[key] for row in r.find("relu_cells") if row["around"] == around and row["eps"] > 0])
    )


def _more_around_data(result: Result) -> float:
    return shared("data")(result) - shared("noise")(result)


def _cells_section(setting: Setting, outcomes: Outcomes) -> Section:
    some = measured(outcomes)
    places = {"data": "around test images", "noise": "around uniform noise"}
    kinds = {"mean": "same state", "both_on": "on before and after"}
    quantities = [
        Quantity(
            Column(
                f"{key}_{around}", f"{kind}, {place}", "percent", None,
                f"Share of ReLU units, {kind} when noise is added {place}, mean over its sizes.",
            ),
            shared(around, key),
        )
        for key, kind in kinds.items()
        for around, place in places.items()
    ]  # fmt: skip
    tables = {n: methods_table(some.of(n), [accuracy_of(), *quantities]) for n in some.networks}
    return Section(
        "figure5",
        "Figure 5: shared activations",
        setting_text([CNN], outcomes),
        tables,
        some.chart("relu_cells", "cells", "Shared activations"),
    )


LINEAR, CELLS = "Section 5.4, Figure 4", "Section 5.5, Figure 5 and Figure 9"
UNIT = difference_in("the top singular value")
FIGURE4 = Part(
    asks="How linear are networks around images, and how does their top singular value change there?",
    cases=lambda setting: standard_cases(setting, [CNN]),
    more=cnn_more(_linearity_analyses, METHODS),
    section=_linearity_section,
    claims=(
        Claim(
            "adversarially_trained_networks_are_more_linear",
            "At the training radius, networks of adversarial training and d.d. SNR deviate less from their "
            "linearization than those of standard training.",
            f"{LINEAR} left",
            _of_eps(deviation, difference_in("the deviation")),
        ),
        Claim(
            "top_singular_value_stays_low",
            "Within the training radius, the Jacobian's largest singular value is lower with adversarial training and "
            "d.d. SNR than with standard training.",
            f"{LINEAR} right",
            _of_eps(top_value, UNIT),
        ),
        Claim(
            "top_singular_value_stays_flat",
            "Within the training radius, the Jacobian's largest singular value varies less with adversarial training "
            "and d.d. SNR than with standard training.",
            f"{LINEAR} right",
            _of_eps(variation, UNIT),
        ),
    ),
)
FIGURE5 = Part(
    asks="How many activations does an image share with its neighbors?",
    cases=lambda setting: standard_cases(setting, [CNN]),
    more=cnn_more(lambda setting, eps: _cells_analyses(setting), METHODS),
    section=_cells_section,
    claims=(
        Claim(
            "more_shared_activations_around_data",
            "Adversarial training and d.d. SNR give more shared activations around test images than standard training.",
            f"{CELLS} left",
            lambda outcomes: _against_standard(
                outcomes, {"around test images": shared("data")}, above(), POINTS
            ),
        ),
        Claim(
            "more_around_data_than_elsewhere",
            "Adversarial training and d.d. SNR add more shared activations around test images than around uniform "
            "noise.",
            f"{CELLS} right",
            lambda outcomes: _against_standard(
                outcomes,
                {"around test images less around noise": _more_around_data},
                above(),
                POINTS,
            ),
        ),
    ),
)
