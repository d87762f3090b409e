"""Linear and convolutional layers, whose norms and sizes the papers count."""

import math
from collections.abc import Iterable, Sequence

from torch import nn

from opnorm._core.layers import BATCH_NORM, LINEAR_OR_CONV, check_initialized
from opnorm.analyses._shared.analysis import Row
from opnorm.analyses._shared.points import batches
from opnorm.data import Dataset
from opnorm.errors import ModelError
from opnorm.norms.network.trace import LayerCall, trace
from opnorm.report import method_of

__all__ = ["BATCH_NORM_KINDS", "KINDS", "names_in_order", "numbered", "weight_layers"]

KINDS = tuple(kind.__name__ for kind in LINEAR_OR_CONV)
BATCH_NORM_KINDS = tuple(kind.__name__ for kind in BATCH_NORM)


def weight_layers(model: nn.Module, data: Dataset) -> list[LayerCall]:
    """The calls of linear and convolutional layers in a forward pass; ModelError where there are none."""
    check_initialized(model, "this analysis")
    x, _ = next(batches(data.test, model))
    found = [call for call in trace(model, x[:1]) if isinstance(call.layer, LINEAR_OR_CONV)]
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer")
    return found


def numbered(rows: Sequence[Row]) -> list[tuple[str, int, Row]]:
    """(name, place, row) of rows that are layers: the place is that within the rows of one method and seed."""
    places: dict[tuple[str, int], int] = {}
    found = []
    for row in rows:
        network = (method_of(row), row.get("seed", 0))
        place = places[network] = places.get(network, -1) + 1
        found.append((f"{row['layer']} {row['kind']}", place, row))
    return found


def names_in_order(named: Iterable[tuple[str, int]]) -> tuple[str, ...]:
    """Names by their mean place, so that networks of other layers fit between."""
    places: dict[str, list[int]] = {}
    for name, place in named:
        places.setdefault(name, []).append(place)
    return tuple(sorted(places, key=lambda name: (math.fsum(places[name]) / len(places[name]), name)))
