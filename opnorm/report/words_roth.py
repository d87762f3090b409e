"""What one network's rows of an analysis say, in a line of plain words."""

import itertools
import math
import statistics
from collections.abc import Sequence
from typing import Any

from opnorm.errors import OpnormError
from opnorm.report.vega import ORDS, Row

__all__ = ["says"]


def says(analysis: str, rows: Sequence[Row]) -> str:
    """One or two sentences with the measured numbers.

    Args:
        analysis: the name of one of those in :mod:`opnorm.analyses.roth` or :mod:`opnorm.analyses.jacobian`.
        rows: what it gave for one network.

    Raises:
        OpnormError: an analysis that has no words here, or no rows.
    """
    if analysis not in WORDS or not rows:
        raise OpnormError(
            f"no words for {len(rows)} rows of {analysis!r}; known: {', '.join(sorted(WORDS))}, one row or more"
        )
    return str(WORDS[analysis](rows))


def _spectrum(rows: Sequence[Row]) -> str:
    clean, attacked = (next(r["mean"][0] for r in rows if r["at"] == at) for at in ("clean", "attacked"))
    return (
        f"The last hidden features amplify a small change of an image by up to {clean:.3g} on average, and that of an "
        f"attacked image by up to {attacked:.3g}."
    )


def _alignment(rows: Sequence[Row]) -> str:
    own, random = (next(r for r in rows if r["network"] == name) for name in ("own", "random"))
    first, last = own["mean"][0], own["mean"][-1]
    return (
        f"The attack's change of an image has a cosine of {first:.2f} with the first singular vector of the network's "
        f"Jacobian and {last:.2g} with the last (chance: {own['chance']:.2g}); with the first one of a network of random "
        f"weights it is {random['mean'][0]:.2g}."
    )


def _linearity(rows: Sequence[Row]) -> str:
    at: dict[str, list[Row]] = {}
    for row in rows:
        at.setdefault(row["direction"], []).append(row)
    ends = {direction: max(group, key=lambda r: r["distance"]) for direction, group in at.items()}
    far = next(iter(ends.values()))["distance"]
    deviations = " and ".join(f"{row['deviation']:.3g} in {d} directions" for d, row in ends.items())
    sigmas = " and ".join(f"{row['sigma']:.3g}" for row in ends.values())
    return (
        f"At a distance of {far:g} the features end {deviations} from where the Jacobian says; the largest singular value "
        f"there is {sigmas}."
    )


def _cells(rows: Sequence[Row]) -> str:
    largest = max(row["eps"] for row in rows)
    data, noise = (
        next(r["mean"] for r in rows if (r["around"], r["eps"]) == (around, largest))
        for around in ("data", "noise")
    )
    compared = "larger" if data > noise else "smaller" if data < noise else "as large"
    return (
        f"Noise of {largest:g} on every pixel leaves {100 * data:.1f} % of the ReLU units as they are around test images "
        f"and {100 * noise:.1f} % around uniform noise: the linear regions around the data are {compared}"
        f"{'' if data == noise else ' than elsewhere'}."
    )


def _agreement(rows: Sequence[Row]) -> str:
    def reach(key: str, least: float) -> str:
        ordered = sorted(rows, key=lambda row: row["eps"])
        held = [row["eps"] for row in itertools.takewhile(lambda row: row[key] >= least, ordered)]
        return f"up to ε = {held[-1]:g}" if held else f"not even at ε = {ordered[0]['eps']:g}"

    return (
        "Adversarial ascent and the power method end in nearly the same direction (cosine 0.9 or more) "
        f"{reach('cosine', 0.9)}; most ascents stay in one linear region {reach('same_region', 0.5)}."
    )


def _bracket(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        below = max(row["secant"], row["jacobian"])
        name = ORDS.get(row["norm"], row["norm"])
        if row["upper"] is None:
            parts.append(
                f"in {name} slopes up to {below:.3g} are seen; a bound is not known ({row['reason']})"
            )
        elif below > 0:
            parts.append(
                f"in {name} the layers allow a slope of {row['upper']:.3g}; at the data at most {below:.3g} is seen, "
                f"{row['upper'] / below:.3g} times less"
            )
        else:
            parts.append(
                f"in {name} the layers allow a slope of {row['upper']:.3g}; none is seen at the data"
            )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def _radius(rows: Sequence[Row]) -> str:
    parts = []
    for row in rows:
        certified = statistics.median(row["certified"])
        attacked = statistics.median(math.inf if d is None else d for d in row["attacked"])
        above = f"fooled at {attacked:.3g}" if attacked < math.inf else f"not fooled up to {row['highest']:g}"
        parts.append(
            f"in {ORDS.get(row['norm'], row['norm'])} half of the images are proven to stand changes of {certified:.3g}, "
            f"and half are {above}"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


WORDS: dict[str, Any] = {
    "jacobian_spectrum": _spectrum,
    "singular_alignment": _alignment,
    "local_linearity": _linearity,
    "relu_cells": _cells,
    "power_method_agreement": _agreement,
    "lipschitz_bracket": _bracket,
    "robust_radius": _radius,
}
