"""Studies: many runs with a report that checks claims, one in a file, found here.

A study is made by a call such as ``tour(seeds=3)``; its module, or its folder with one file for each table or figure of a
paper, has the call's name with an underscore before it, and holds its runs, its report and its claims.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from opnorm.runs.runner import Study
from opnorm.spec import Call, parse, part_call
from opnorm.studies._shared.paper import Paper, Setting

_modules = [module.name for module in pkgutil.iter_modules(__path__)]
_names = [name[1:] for name in _modules if name.startswith("_") and name != "_shared"]
_found = {name: importlib.import_module(f"{__name__}._{name}") for name in sorted(_names)}
globals().update({name: getattr(module, name) for name, module in _found.items()})

__all__ = ["Setting", *sorted(_names), "papers", "study_call"]


def papers() -> list[Paper]:
    """The studies that rerun a paper, with their parts."""
    return [module.PAPER for module in _found.values() if hasattr(module, "PAPER")]


def study_call(text: str) -> Call:
    """A study as a call; ``liang2021.table2(seeds=2)`` is ``liang2021(part="table2", seeds=2)``.

    Raises:
        SpecError: it is no call.

    Example:
        >>> str(study_call("liang2021.table2"))
        'liang2021(part="table2")'
    """
    return part_call(parse(text), _found)


if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Study]: ...
