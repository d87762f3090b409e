"""One style for all charts: colors, dashes and symbols of the methods, and how numbers are written in tooltips."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from opnorm.report.document import Stat

INK = "#1f2328"
"""The baseline's color; the page puts its own text color in its place, for dark screens."""
NOTE = "#59636e"
"""The color of text and lines inside a chart; the page replaces it too."""

# Paul Tol's "vibrant" scheme with an ochre and a violet: distinguishable with the common color
# deficiencies and readable on white and on black. Beyond eight, dashes and symbols distinguish methods.
PALETTE = ["#0077bb", "#ee7733", "#009988", "#cc3311", "#22a7dd", "#ee3377", "#aa8800", "#8866cc"]
DASHES = [[1, 0], [7, 3], [2, 2], [8, 2, 2, 2]]
SHAPES = ["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"]
NORMS = {"1": "ℓ₁", "2": "ℓ₂", "inf": "ℓ∞"}

PAPER: dict[str, Any] = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "gridColor": "#dddddd",
        "labelColor": "black",
        "titleColor": "black",
        "titleFontWeight": "normal",
    },
    # a font that is not there is replaced by a wider one: labels of columns need room between them
    "legend": {"labelColor": "black", "columnPadding": 24},
    "title": {"color": "black", "fontSize": 12},
}
"""Vega-Lite's configuration of a saved figure, black on white."""


def norm_name(norm: str) -> str:
    """The symbol of a norm: "inf" is ℓ∞.

    Example:
        >>> norm_name("inf"), norm_name("3")
        ('ℓ∞', '3')
    """
    return NORMS.get(norm, norm)


def one_sentence(parts: Iterable[str]) -> str:
    """Parts with semicolons between them, a capital letter at the beginning and a full stop.

    Example:
        >>> one_sentence(["in ℓ₂ 3", "in ℓ∞ 4"])
        'In ℓ₂ 3; in ℓ∞ 4.'
    """
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def method_styles(present: Iterable[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    """The style of each method that a chart shows: ``method``, ``color``, ``strokeDash`` and ``shape``.

    Args:
        present: the methods of this chart.
        methods: all methods, so that each has the same style in every chart; the first is the baseline, in black.
    """
    drawn, styles = set(present), []
    for i, method in enumerate(methods):
        color = PALETTE[(i - 1) % len(PALETTE)] if i else INK
        dash = DASHES[(i - 1) // len(PALETTE) % len(DASHES)] if i else DASHES[0]
        if method in drawn:
            look = {"color": color, "strokeDash": dash, "shape": SHAPES[i % len(SHAPES)]}
            styles.append({"method": method, **look})
    return styles


def significant(x: float, digits: int = 5) -> float:
    """A number with so many significant digits; more than five cannot be seen and would only make a page larger."""
    return float(f"{x:.{digits}g}")


def stat_text(stat: Stat, percent: bool = False) -> str:
    """A number, or a fraction as a percentage, with its standard deviation and how many seeds there were."""
    mean, std, unit = f"{stat.mean:.3g}", f"{stat.std:.2g}", ""
    if percent:
        mean, std, unit = f"{100 * stat.mean:.1f}", f"{100 * stat.std:.1f}", " %"
    return f"{mean}{unit} (1 seed)" if stat.n == 1 else f"{mean} ± {std}{unit} ({stat.n} seeds)"


def eps_text(eps: float, norm: str = "inf") -> str:
    """ε as a number, and as n/255 where a pixel's change is a whole number of gray levels.

    Example:
        >>> eps_text(8 / 255), eps_text(0.5, "2"), eps_text(0)
        ('0.03137 = 8/255', '0.5', '0 (clean)')
    """
    if eps == 0:
        return "0 (clean)"
    n = round(255 * eps)
    whole = norm == "inf" and n > 0 and math.isclose(n, 255 * eps, rel_tol=1e-4)
    return f"{eps:.4g} = {n}/255" if whole else f"{eps:.4g}"
