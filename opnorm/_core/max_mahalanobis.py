"""Max-Mahalanobis centers: the corners of a simplex, as far from each other as vectors of their length can be."""

import math

import torch
from torch import Tensor, nn

from opnorm.errors import ModelError

__all__ = ["center_layer", "centers", "last_linear"]


def centers(classes: int, radius: float, size: int | None = None) -> Tensor:
    """Vectors μ_c of norm C with equal inner products -C² / (K - 1), the smallest there can be, as rows (K, size).

    In R^K, size=None, they are C sqrt(K / (K - 1)) (e_c - 1 / K); in other spaces the first K - 1 coordinates are those of a
    basis of their span, and the others 0.

    Raises:
        ModelError: fewer than two classes have no simplex, and K classes none in fewer than K - 1 dimensions.

    Source: Pang et al. 2020, section 3.1.
    """
    if classes < 2:
        raise ModelError(f"the model has {classes} output; expected a logit for each of at least 2 classes")
    scale = radius * math.sqrt(classes / (classes - 1))
    if size is None:
        return scale * (torch.eye(classes, dtype=torch.float32, device="cpu") - 1 / classes)
    if size < classes - 1:
        raise ModelError(
            f"{size} features have no simplex of {classes} centers; expected at least {classes - 1}"
        )
    order = torch.arange(1, classes, dtype=torch.float64)
    basis = torch.ones(classes, classes - 1, dtype=torch.float64).triu()
    basis[1:] -= order.diag()
    basis /= (order * (order + 1)).sqrt()  # Helmert's: orthonormal columns that sum to 0
    return scale * nn.functional.pad(basis, (0, size - classes + 1)).float()


def center_layer(size: int, classes: int, radius: float) -> nn.Linear:
    """A last layer with the centers as its fixed weight: the logit <z, μ_c> is largest for the nearest center of z."""
    layer = nn.Linear(size, classes, bias=False)
    layer.weight = nn.Parameter(centers(classes, radius, size), requires_grad=False)
    return layer


def last_linear(model: nn.Module) -> tuple[str, nn.Linear] | None:
    """The name and the layer of the linear layer that a network has registered last."""
    linear = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    return linear[-1] if linear else None
