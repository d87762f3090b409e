"""The norm of the derivative of one value of a forward pass by another one, from the graph that autograd recorded."""

import math

import torch
from torch import Tensor

from opnorm._core.linear_map import LinearMap
from opnorm._core.pull_back import pull_back
from opnorm._core.rounding import PRODUCT
from opnorm.jacobian.point_norms import spectral_by_products
from opnorm.jacobian.products import Jacobian
from opnorm.jacobian.range_watch import RangeWatch

__all__ = ["norm_between"]

DENSE = 64  # so many columns or rows make a matrix


class _Between(Jacobian):
    """∂output/∂input diag(weights) of two tensors of any shapes, as the map of one point."""

    def __init__(self, inputs: Tensor, outputs: Tensor, weights: Tensor | None) -> None:
        LinearMap.__init__(
            self, None, None, inputs.shape, outputs.shape, inputs.device, dtype=inputs.dtype, batch=1
        )
        self.inputs, self.outputs, self.weights = inputs, outputs, weights
        self._graph = None

    def vjp(self, u: Tensor, *, create_graph: bool = False) -> Tensor:
        """One backward pass from the one to the other."""
        u = u.reshape(self.outputs.shape)
        found = pull_back(self.outputs, self.inputs, u, retain_graph=True, create_graph=create_graph)
        return (found if self.weights is None else found * self.weights)[None]

    def _apply(self, v: Tensor) -> Tensor:
        return super()._apply(v).reshape(1, *self.out_shape)


def norm_between(inputs: Tensor, outputs: Tensor, steps: int, weights: Tensor | None = None) -> float:
    """An upper bound on the ℓ2 norm of ∂output/∂input diag(weights); infinite where products leave the range of the type."""
    if not outputs.requires_grad:
        return 0.0
    with RangeWatch(1) as watch:
        reached = pull_back(outputs, inputs, torch.ones_like(outputs), retain_graph=True, allow_unused=True)
    if reached is None:  # the one is not computed from the other
        return 0.0
    if bool(watch.lost.any()):
        return math.inf
    J = _Between(inputs, outputs, weights)
    with torch.no_grad():
        if min(J.shape) <= DENSE:
            matrix = (J if J.shape[1] <= J.shape[0] else J.T).to_dense()[0]
            return float(torch.linalg.matrix_norm(matrix, 2)) * (1 + PRODUCT)
        return float(spectral_by_products(J, torch.zeros_like(inputs)[None], steps).upper)
