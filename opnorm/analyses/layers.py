"""What the weights of each layer say by themselves: how evenly a layer treats its inputs, and how large it is."""

import math

from torch import Tensor, nn

from opnorm._core.layers import LINEAR_OR_CONV, check_initialized
from opnorm.analyses.basic import Analysis, Row, batches
from opnorm.data import Dataset
from opnorm.errors import ModelError, NormError
from opnorm.norms.spectral.singular_values import singular_values
from opnorm.norms.table import Visit, trace
from opnorm.spec import factory

__all__ = ["singular_spread", "weight_energy"]


@factory("analysis")
def singular_spread() -> Analysis:
    """The standard deviation of the singular values of each linear and convolutional layer.

    It divides by the number of values, min(inputs, outputs). Zero-padded convolutions of more than 2,048 rows and columns
    are taken on a circle instead; ``error`` bounds what that changes of the deviation
    (:mod:`opnorm.norms.spectral.singular_values`).

    Returns:
        One row a layer, in the order of the forward pass: layer, kind, in_shape, count, std, error, mean, largest, method,
        note (why the values are not known, and then there are none).

    Raises:
        ModelError: there is no such layer.

    Source: Wen, Li & Jia 2020, Figs. 1a, 5c and 5d.
    """

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        rows = []
        for visit in _weighted(model, data):
            row: Row = {
                "layer": visit.name,
                "kind": type(visit.layer).__name__,
                "in_shape": list(visit.in_shape),
            }
            try:
                found = singular_values(visit.layer, visit.in_shape)
            except NormError as e:  # one layer does not hide the others
                rows.append(row | {"note": str(e)})
                continue
            numbers = {
                "std": found.std,
                "mean": float(found.values.mean()),
                "largest": float(found.values[0]),
            }
            row |= {"count": len(found.values), **numbers, "error": found.error, "method": found.method}
            rows.append(row | {"note": ""})
        return rows

    return analysis


@factory("analysis")
def weight_energy() -> Analysis:
    """Weight energy ∏_l ‖W_l‖_2² and complexity Σ_l ‖W_l / ‖W_l‖_2‖_1, of Frobenius norms and sums of absolute values.

    Linear and convolutional layers count, tied weights once. The energy is given by its logarithm: it leaves the range of
    numbers in networks of a few tens of layers.

    Returns:
        One row: log10_energy (None where a weight is all 0, so that the energy is 0), complexity (layers of zeros left out),
        and lists by layer: layers, kinds, sizes (‖W_l‖_2), complexities.

    Raises:
        ModelError: there is no such layer.

    Source: Liu et al. 2020, Eq. 13 and Fig. 2.
    """

    def analysis(model: nn.Module, data: Dataset) -> list[Row]:
        weights: dict[int, tuple[str, str, Tensor]] = {}
        for visit in _weighted(model, data):
            weight = visit.layer.weight
            assert isinstance(weight, Tensor), "linear and convolutional layers have one"
            weights.setdefault(id(weight), (visit.name, type(visit.layer).__name__, weight.detach().double()))
        sizes = [float(w.norm()) for _, _, w in weights.values()]
        parts = [
            float(w.abs().sum()) / size if size else 0.0
            for (_, _, w), size in zip(weights.values(), sizes, strict=True)
        ]
        energy = 2 * math.fsum(math.log10(size) for size in sizes) if all(sizes) else None
        return [
            {
                "log10_energy": energy,
                "complexity": math.fsum(parts),
                "layers": [name for name, _, _ in weights.values()],
                "kinds": [kind for _, kind, _ in weights.values()],
                "sizes": sizes,
                "complexities": parts,
            }
        ]

    return analysis


def _weighted(model: nn.Module, data: Dataset) -> list[Visit]:
    """The calls of linear and convolutional layers; ModelError where there are none."""
    check_initialized(model, "this analysis")
    x, _ = next(batches(data.test, model))
    found = [v for v in trace(model, x[:1]) if isinstance(v.layer, LINEAR_OR_CONV)]
    if not found:
        raise ModelError(f"{type(model).__name__} has no linear or convolutional layer to look at")
    return found
