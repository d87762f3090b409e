"""Analyses: measurements of a trained network, one in a file, each with its chart, its sentence and its table columns.

Every module of this folder is one analysis, named like its function with an underscore before it, and is found here; what
several share is in ``_shared``. An analysis is made by a call such as ``margins(split="train")`` and is itself called with a
model and a data set: ``margins()(model, data)`` gives rows, plain values ready for JSON.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from opnorm.analyses._shared.analysis import Analysis, Registration, Row, all_analyses, register

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({one.name: one.factory for one in all_analyses()})

__all__ = [
    "Analysis",
    "Registration",
    "Row",
    "all_analyses",
    "register",
    *(one.name for one in all_analyses()),
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Analysis]: ...
