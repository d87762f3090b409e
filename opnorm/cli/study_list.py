"""``opnorm study --list``: what studies there are, what each asks, how many runs it has and how long it takes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from opnorm import spec
from opnorm.cli.options import print_json
from opnorm.cli.torch_loading import load_torch
from opnorm.errors import OpnormError, did_you_mean

__all__ = ["print_list"]


class _Chosen(NamedTuple):
    """A study, all when empty, and a part of it, all when None."""

    study: str = ""
    part: str | None = None


def print_list(name: str, json: bool) -> None:
    """Every study and every part, those of one paper, or one part.

    Args:
        name: a study, or a part of one; all when empty.
        json: print rows of JSON.

    Raises:
        OpnormError: there is no such study or part, before torch is loaded.
    """
    chosen = _chosen(name) if name else _Chosen()
    load_torch()
    rows = list(_rows(chosen))
    if json:
        return print_json(rows)
    for row in rows:
        minutes = "" if row["minutes"] is None else f", about {row['minutes']} min"
        count = len(row["claims"])
        print(f"{row['study']:24}  {row['runs']} runs{minutes}, {count} claim{'s' * (count != 1)}")
        print(f"{'':24}  {row['asks']}")
    return print("runs and minutes of computing time are of the size laptop, on a CPU with AVX2")


def _chosen(name: str) -> _Chosen:
    known = spec.known_names("study")
    call = spec.part_call(spec.parse(name), known)
    study, dot, part = call.name.partition(".")
    if study not in known:
        hint = did_you_mean(study, known, show=lambda close: repr(close + dot + part))
        raise OpnormError(f"--list {name}: no such study{hint}; --list alone shows all")
    spec.check(call, "study")
    given = spec.arguments(call, "study")
    part = given.pop("part", None)
    if given:
        raise OpnormError(f"--list {name}: expected a study or a part of one, without {', '.join(given)}")
    return _Chosen(study, part)


def _rows(chosen: _Chosen) -> Iterator[dict[str, Any]]:
    from opnorm.studies import Setting, papers
    from opnorm.studies._shared.minutes import laptop_minutes
    from opnorm.studies.tour_claims import CLAIMS

    if chosen.study in ("", "tour"):
        yield {
            "study": "tour",
            "asks": "Every way of training, on one small network, side by side: what does each do to norms and robustness?",
            "runs": len(spec.build("tour()", "study").runs),
            "minutes": 6,
            "claims": [claim.name for claim in CLAIMS],
        }
    for paper in papers():
        if chosen.study not in ("", paper.name):
            continue
        for name, part in paper.chosen(chosen.part).items():
            yield {
                "study": f"{paper.name}.{name}",
                "asks": part.asks,
                "runs": len(paper.study(name, Setting()).runs),
                "minutes": laptop_minutes(f"{paper.name}.{name}"),
                "claims": [claim.name for claim in part.claims],
            }
