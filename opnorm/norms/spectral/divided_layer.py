"""Layers over a power of two, whose squares neither overflow nor underflow."""

from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.layers import WEIGHTED, in_float64, is_standard

__all__ = ["divided_by"]


def divided_by(layer: nn.Module, unit: float) -> nn.Module:
    """A layer in float64 whose map is that of the layer over a power of two."""
    copy = in_float64(layer)
    if is_standard(layer, *WEIGHTED):
        weight: Any = copy.weight
        weight.data.div_(unit)
        return copy
    return _Divided(copy, unit)


class _Divided(nn.Module):
    def __init__(self, layer: nn.Module, unit: float) -> None:
        super().__init__()
        self.layer, self.unit = layer, unit

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) - self.layer(torch.zeros_like(x))) / self.unit
