"""The names of a paper's parts, its tables and figures."""

from collections.abc import Iterable

from opnorm.errors import SpecError, did_you_mean

__all__ = ["check_part"]


def check_part(part: str | None, paper: str, parts: Iterable[str], also: Iterable[str]) -> None:
    """Raise unless a part, if one is given, is one of a paper's; ``also`` are further names of them."""
    known = [*parts, *also]
    if part is not None and part not in known:
        hint = did_you_mean(part, known, f"there are {', '.join(known)}", lambda name: f"{paper}.{name}")
        raise SpecError(f"{paper} has no part {part!r}{hint}")
