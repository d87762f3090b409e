"""Studies: many runs with a report that checks claims, one in a file, found here.

A study is made by a call such as ``tour(seeds=3)``; its module has the call's name with an underscore before it, and holds
its runs, its report and its claims.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from opnorm.runs.runner import Study

_names = [module.name[1:] for module in pkgutil.iter_modules(__path__) if module.name.startswith("_")]
globals().update({name: getattr(importlib.import_module(f"{__name__}._{name}"), name) for name in _names})

__all__ = [*sorted(_names)]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Study]: ...
