"""Numbers and intervals as text that is right to its last digit."""

import math

__all__ = ["interval", "magnitude", "nearest", "rounded"]

DIGITS = 4
SLACK = 1e-9  # relative: what float64 rounding is allowed for need not be printed
TIGHT = 0.01  # intervals up to this relative width are written as a number and a percentage


def rounded(x: float, up: bool, digits: int = DIGITS) -> str:
    """So many digits, never below x (``up``) or never above it, but for a relative 1e-9."""
    if not math.isfinite(x) or x == 0:
        return f"{x:g}"
    size = math.floor(math.log10(abs(x))) + 1
    digits = max(digits, size if size <= 7 else 0)  # 15234 and not 1.523e+04
    text = f"{x:.{digits}g}"
    if (float(text) < x - SLACK * abs(x)) if up else (float(text) > x + SLACK * abs(x)):
        step = 10.0 ** (size - digits)
        text = f"{float(text) + (step if up else -step):.{digits}g}"
    return text


def nearest(x: float) -> str:
    """Four digits, or all before the point."""
    size = math.floor(math.log10(abs(x))) + 1 if x and math.isfinite(x) else 0
    return f"{x:.{max(DIGITS, size if size <= 7 else 0)}g}"


def interval(lower: float, upper: float) -> str:
    """What is known: a number, ``4.483 ± 0.12 %``, ``4.4 ... 6.2`` or ``≥ 4.4``, each true as it is printed."""
    if upper - lower <= SLACK * abs(lower):
        return nearest(lower)
    if math.isinf(upper):
        return f"≥ {rounded(lower, up=False)}"
    if lower > 0 and upper <= lower * (1 + TIGHT):
        middle = float(nearest((lower + upper) / 2))
        off = 100 * max(upper / middle - 1, 1 - lower / middle)
        return f"{nearest(middle)} ± {rounded(off, up=True, digits=1 if off < 0.1 else 2)} %"
    return f"{rounded(lower, up=False)} ... {rounded(upper, up=True)}"


def magnitude(log10: float, up: bool) -> str:
    """A number from its logarithm; as a power of ten where it is long."""
    if -4 < log10 < 6:
        return rounded(10.0**log10, up)
    return "0" if log10 == -math.inf else f"10^{rounded(log10, up)}"
