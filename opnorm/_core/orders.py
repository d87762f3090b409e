"""The orders of norms as text: 1, 2, inf, rms, and pairs such as 1:2."""

import math
import re
from typing import Any

from opnorm.errors import NormError

__all__ = ["key", "label", "order", "plain_order"]


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
