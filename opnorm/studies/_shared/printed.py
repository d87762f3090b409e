"""The numbers that the papers print, for a comparison beside the measured ones."""

import functools
import json
from importlib import resources
from typing import Any

__all__ = ["printed_numbers"]


def printed_numbers(*where: str) -> dict[str, Any]:
    """The printed numbers by paper, table, network, method and column, of the first of these that are named.

    Shares are fractions. Empty where there are none.

    Example:
        >>> printed_numbers("liu2020", "table1", "MLP, standard")["WEISSI"]["clean"]
        0.9766
    """
    found = _all()
    for name in where:
        found = found.get(name, {})
    return found


@functools.cache
def _all() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (resources.files("opnorm.studies._shared") / "printed.json").read_text(encoding="utf-8")
    )
    return found
