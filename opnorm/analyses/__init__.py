"""Analyses: measurements of a trained network, one in a file, each with its chart, its sentence and its table columns.

Every module of this folder is one analysis, named like its function with an underscore before it, and is found here; what
several share is in ``_shared``. An analysis is made by a call such as ``margins(split="train")`` and is itself called with a
model and a data set: ``margins()(model, data)`` gives rows, plain values ready for JSON. Settings that several have:

- ``points``: how many test points; the first ones or a random choice, as the analysis says. None is all.
- ``split``: "train" or "test".
- ``seed``: of the choice of points and of every other random number.
- ``eps``, ``distances``: radii or lengths in pixel values of [0, 1], in ``norm``, which is 1, 2 or inf.
- ``steps``, ``restarts``: of PGD, from a random start.
- ``attack``: makes attacked points.
- ``layer``: the name of the layer whose output is the features; the input of the last linear layer when None.

A setting that makes no sense is a SpecError, or an AttackError where an attack refuses it; so are more points than the data
set has. A network that has not got what is measured is a ModelError.
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import TYPE_CHECKING

from opnorm.analyses._shared.analysis import Analysis, Registration, Row, all_analyses, register
from opnorm.analyses._shared.points import logits_of

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({one.name: one.factory for one in all_analyses()})

__all__ = [
    "Analysis",
    "Registration",
    "Row",
    "all_analyses",
    "logits_of",
    "register",
    *(one.name for one in all_analyses()),
]

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Analysis]: ...
