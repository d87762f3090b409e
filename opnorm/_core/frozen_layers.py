"""Layers with frozen weights, which other modules compute in a faster way."""

from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

__all__ = ["FrozenConv2d", "WeightForm", "is_plain"]


class WeightForm:
    """Weights in another form, kept until they change; a copy begins without it.

    Args:
        form: a tensor made of the weights and further arguments.
    """

    def __init__(self, form: Callable[..., Tensor]) -> None:
        self.form = form
        self.known: tuple[Any, Tensor] | None = None

    def __call__(self, weight: Tensor, *how: Any) -> Tensor:
        """The form of the present weights."""
        present = weight.data_ptr(), weight._version, how
        if self.known is None or self.known[0] != present:
            with torch.no_grad():
                self.known = present, self.form(weight, *how)
        return self.known[1]

    def __deepcopy__(self, memo: Any) -> "WeightForm":
        return WeightForm(self.form)


def is_plain(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the layer is a convolution of all channels, with zero padding given as numbers, and no class of the user's."""
    return (
        type(layer) is nn.Conv2d
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


class FrozenConv2d(nn.Conv2d):
    """The same function as a convolution, with which it shares its weights."""

    def __init__(self, layer: nn.Conv2d) -> None:
        names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation")
        how: dict[str, Any] = {name: getattr(layer, name) for name in names}
        super().__init__(**how, bias=False, device="meta")
        self.weight, self.bias = layer.weight, layer.bias
