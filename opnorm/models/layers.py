"""Layers that the models share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm.errors import ModelError
from opnorm.linear import Shape
from opnorm.norms.exact import l1, linf
from opnorm.norms.spectral import Norm, spectral

__all__ = ["Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel: part of the model, so that every attack sees pixels in [0, 1].

    Args:
        channels: C of the input (B, C, H, W).
        mean: one number, or one for each channel.
        std: likewise; above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, channels: int, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0
    ) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("std", std)):
            numbers = torch.tensor(value, dtype=torch.float32).reshape(-1)
            fits = len(numbers) in (1, channels) and bool(numbers.isfinite().all())
            if not fits or (name == "std" and not bool((numbers > 0).all())):
                raise ModelError(
                    f"{name}={value!r}: expected one number, or one for each of {channels} channels; std > 0"
                )
            self.register_buffer(name, numbers.expand(channels).clone().view(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return (x - self.mean) / self.std


@l1.register
@linf.register
def _(layer: Normalize, in_shape: Shape) -> Tensor:
    return (1 / layer.std).max()


@spectral.register
def _(layer: Normalize, in_shape: Shape, *args: float, **kwargs: float) -> Norm:
    gain = (1 / layer.std.double()).max()
    return Norm.of(gain, gain, "exact: a diagonal map")
