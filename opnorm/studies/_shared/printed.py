"""The numbers that the papers print, for a comparison beside the measured ones."""

import functools
import json
from importlib import resources
from typing import Any

__all__ = ["printed_numbers"]


def printed_numbers(paper: str, table: str, network: str) -> dict[str, dict[str, float]]:
    """The printed cells of a network's table, by method and by column, shares as fractions; empty where there are none."""
    found: dict[str, dict[str, float]] = _all().get(paper, {}).get(table, {}).get(network, {})
    return found


@functools.cache
def _all() -> Any:
    return json.loads(
        (resources.files("opnorm.studies._shared") / "printed.json").read_text(encoding="utf-8")
    )
