"""Norms of a layer of your own: an affine layer needs nothing, a registration makes it exact and fast."""

import torch
from torch import Tensor, nn

import opnorm
from opnorm.norms import l1, linf


class Differences(nn.Module):
    """y_i = scale * (x_{i+1} - x_i) along the last axis."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        """(B, ..., N) -> (B, ..., N - 1)."""
        return self.scale * x.diff(dim=-1)


layer = Differences(3.0)
for order in (1, 2, float("inf")):  # through autograd, on a matrix of at most some thousand columns
    print("without a registration:", opnorm.operator_norm(layer, order, in_shape=(1, 8)))


@l1.register(Differences)
@linf.register(Differences)
def _(layer: Differences, in_shape: tuple[int, ...]) -> Tensor:
    """Every row of the matrix has two entries of the size of the scale; so has every column but the outer two."""
    return 2 * layer.scale.abs()


norm = opnorm.operator_norm(layer, float("inf"), in_shape=(1, 1_000_000))
print("with it, differentiable and for any size:", norm, linf(layer, (1, 8)).requires_grad)
