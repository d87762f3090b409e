"""How long the studies took at the size laptop."""

import functools
import json
from importlib import resources

__all__ = ["laptop_minutes"]


def laptop_minutes(study: str) -> int | None:
    """The computing time of a part at the size laptop, the sum of its kept runs, in minutes; None where none is kept.

    ``docs/write_results.py`` writes the file behind it from ``results/``.

    Args:
        study: such as "liu2020.table1".
    """
    return _all().get(study)


@functools.cache
def _all() -> dict[str, int]:
    found: dict[str, int] = json.loads(
        (resources.files("opnorm.studies._shared") / "minutes.json").read_text(encoding="utf-8")
    )
    return found
