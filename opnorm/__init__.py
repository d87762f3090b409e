"""opnorm: how strongly a neural network can amplify a change of its input, and what to do about it.

    opnorm.measure(model, example)             the norms of every layer
    opnorm.operator_norm(layer, ord, shape)    of one layer
    opnorm.measure_checkpoint("model.safetensors")  of every weight of a file, without its model
    opnorm.attacks.pgd(eps=8/255)(model, x, y) an attack
    opnorm.regularizers.norm_decay(p=1)        a regularizer for any training loop
    opnorm.training.train(model, data)         the project's own loop
    opnorm.analyze(model, data).write("page")  every analysis of the papers, on one page
    opnorm.Run, opnorm.run_training            runs that are found again and resumed

Names are imported when they are first used, so ``import opnorm`` is quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "AutoAttack": "opnorm.attacks",
    "Dataset": "opnorm.data",
    "Norm": "opnorm.norms",
    "OpnormError": "opnorm.errors",
    "Run": "opnorm.runs.run",
    "Store": "opnorm.runs.store",
    "analyze": "opnorm.runs.network_report",
    "build": "opnorm.spec",
    "jacobian_norm": "opnorm.jacobian",
    "lipschitz_bound": "opnorm.norms",
    "local_lipschitz": "opnorm.jacobian",
    "run_training": "opnorm.runs.training_run",
    "measure": "opnorm.norms",
    "measure_checkpoint": "opnorm.models",
    "operator_norm": "opnorm.norms",
    "parse": "opnorm.spec",
}
_MODULES = (
    "analyses", "attacks", "certificates", "data", "errors", "jacobian", "models", "norms", "objectives", "regularizers",
    "report", "runs", "spec", "studies", "theory", "training",
)  # fmt: skip

__all__ = [*sorted(_WHERE), *_MODULES]

if TYPE_CHECKING:
    from opnorm.attacks import AutoAttack as AutoAttack
    from opnorm.data import Dataset as Dataset
    from opnorm.errors import OpnormError as OpnormError
    from opnorm.jacobian import jacobian_norm as jacobian_norm
    from opnorm.jacobian import local_lipschitz as local_lipschitz
    from opnorm.models import measure_checkpoint as measure_checkpoint
    from opnorm.norms import Norm as Norm
    from opnorm.norms import lipschitz_bound as lipschitz_bound
    from opnorm.norms import measure as measure
    from opnorm.norms import operator_norm as operator_norm
    from opnorm.runs.network_report import analyze as analyze
    from opnorm.runs.run import Run as Run
    from opnorm.runs.store import Store as Store
    from opnorm.runs.training_run import run_training as run_training
    from opnorm.spec import build as build
    from opnorm.spec import parse as parse


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"opnorm.{name}")
    raise AttributeError(f"module 'opnorm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
