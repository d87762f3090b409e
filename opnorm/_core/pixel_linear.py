"""Linear layers on flattened feature maps that lie in memory with their channels last.

Such maps would be copied to be flattened, and their gradient once more to have the layout of the maps: for a small network
a tenth of a step of PGD. The weights in the order of the maps' memory give the same sums.
"""

import itertools
from collections import Counter

import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.frozen_layers import WeightForm

__all__ = ["PixelLinear", "pixel_linears"]


def pixel_linears(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """New modules for each Flatten of all axes but the first, and for the linear layer that alone takes its output.

    Both follow each other in a Sequential and stand nowhere else; a parent that calls them by itself is not seen.
    """
    places = Counter(m for _, m in network.named_modules(remove_duplicate=False))
    new: dict[nn.Module, nn.Module] = {}
    for parent in [m for m in network.modules() if type(m) is nn.Sequential]:
        for flatten, layer in itertools.pairwise(parent):
            if not (type(flatten) is nn.Flatten and type(layer) is nn.Linear):
                continue
            if (flatten.start_dim, flatten.end_dim) == (1, -1) and places[flatten] == places[layer] == 1:
                new |= {flatten: nn.Identity(), layer: PixelLinear(layer)}
    return new


class PixelLinear(nn.Linear):
    """A Flatten and the linear layer after it, with which it shares its weights."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
        self.reordered = WeightForm(_channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), or any other shape (B, ...) -> (B, K)."""
        if x.ndim != 4:
            return super().forward(x.flatten(1))
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), self.reordered(self.weight, x.shape[1:]), self.bias)


def _channels_last(weight: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Columns (K, CHW) in the order of a map (H, W, C)."""
    return weight.unflatten(1, sizes).permute(0, 2, 3, 1).flatten(1)
