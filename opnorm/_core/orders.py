"""The orders of norms: checks of them and of what belongs to them; as text 1, 2, inf, rms, and pairs such as 1:2."""

import math
import re
from collections.abc import Sequence
from typing import Any

from opnorm._core.settings import check_number
from opnorm.errors import NormError, OpnormError

__all__ = [
    "check_alpha",
    "check_interval",
    "check_orders",
    "check_ords",
    "check_sphere",
    "key",
    "label",
    "order",
    "plain_order",
]


def key(ord: Any) -> str:
    """1 -> "1", inf -> "inf", "rms" -> "rms", (1, inf) -> "1:inf": in JSON, in CSV and on the command line."""
    if isinstance(ord, str):
        return ord
    return f"{ord[0]:g}:{ord[1]:g}" if isinstance(ord, tuple) else f"{ord:g}"


def plain_order(text: str) -> str:
    """An order without the letter that is often before it: l2, Linf and ℓ∞ are 2, inf and inf.

    Example:
        >>> [plain_order(text) for text in ("L2", "l_inf", "ℓ∞", "rms")]
        ['2', 'inf', 'inf', 'rms']
    """
    return re.sub(r"^[lLℓ]_?(?=(1|2|inf)$)", "", text.strip().replace("∞", "inf"))


def order(text: str) -> Any:
    """What :func:`key` was given; l2 and Linf are understood, too.

    Raises:
        NormError: it is none of 1, 2, inf, rms, or two of the first three with a colon between them.
    """
    if text.strip() == "rms":
        return "rms"
    known = {"1": 1, "2": 2, "inf": math.inf}
    parts = [known.get(plain_order(part).removesuffix(".0")) for part in text.split(":")]
    if None in parts or len(parts) > 2:
        raise NormError(f"norm {text!r}: expected 1, 2, inf, rms, or a pair such as 1:2 (from ℓ1 to ℓ2)")
    return parts[0] if len(parts) == 1 else tuple(parts)


def label(ord: Any) -> str:
    """ℓ1, ℓ∞, RMS, ℓ1→ℓ2."""
    if isinstance(ord, str):
        return ord.upper()
    if isinstance(ord, tuple):
        return f"{label(ord[0])}→{label(ord[1])}"
    return "ℓ∞" if math.isinf(ord) else f"ℓ{ord:g}"


# ---------------------------------------------------------------- checks


def check_ords(ords: object) -> None:
    """NormError unless there are several, each 1, 2, inf, a pair of them or "rms"."""
    if isinstance(ords, str | bytes) or not isinstance(ords, Sequence) or not ords:
        raise NormError(
            f"ords={ords!r:.60}: expected several orders, such as (1, 2, math.inf), or (2,) for one"
        )
    for ord in ords:
        ends = ord if isinstance(ord, tuple) and len(ord) == 2 else (ord,)
        if ord != "rms" and any(p not in (1, 2, math.inf) for p in ends):
            raise NormError(
                f'ord={ord!r} is not known; expected 1, 2, math.inf, "rms" or a pair of numbers, such as (1, 2)'
            )


def check_orders(p: object, q: object, error: type[OpnormError] = NormError) -> None:
    """Raise unless both are numbers in [1, inf]."""
    for name, r in (("p", p), ("q", q)):
        if isinstance(r, bool) or not isinstance(r, int | float) or not r >= 1:
            raise error(f"{name}={r!r}: expected a number of at least 1, or math.inf")


def check_alpha(
    alpha: object, p: float, error: type[OpnormError] = NormError, *, optional: bool = False
) -> None:
    """Raise unless α is above 0, and inf where the sphere of p has no simple projection; None where ``optional``."""
    if optional and alpha is None:
        return
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not alpha > 0:
        raise error(f"alpha={alpha!r}: expected a step length above 0, or inf for the power method")
    if alpha < math.inf:
        check_sphere(p, error)


def check_sphere(p: float, error: type[OpnormError] = NormError) -> None:
    """Raise unless the projection on the sphere of p is simple."""
    if p not in (1, 2, math.inf):
        raise error(f"p={p!r}: the closest point of the sphere is known for 1, 2 and inf alone")


def check_interval(relative_width: object = 5e-3, failure_probability: object = 0.0) -> None:
    """NormError unless such an ℓ2 interval can be asked for."""
    check_number("relative_width", relative_width, "a number above 0", above=0, error=NormError)
    expected = "a probability in [0, 1)"
    check_number("failure_probability", failure_probability, expected, least=0, below=1, error=NormError)
