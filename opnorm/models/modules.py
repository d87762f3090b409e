"""Layers that the models share."""

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from opnorm._core.layers import Shape
from opnorm._core.network_sizes import Pixels, check_pixels
from opnorm._core.settings import check_count
from opnorm.certificates.affine import Affine, diagonal
from opnorm.certificates.layer_bounds import layer_bounds
from opnorm.errors import ModelError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.interval import spectral_norm

__all__ = ["ConvexSum", "Normalize"]


class Normalize(nn.Module):
    """(x - mean) / std, channel by channel: part of the model, so that every attack gets pixels in [0, 1].

    Args:
        channels: C of the input (B, C, H, W).
        mean: one number, or one for each channel; 0 when None.
        std: the same, above 0; 1 when None.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int, mean: Pixels = None, std: Pixels = None) -> None:
        super().__init__()
        check_count("channels", channels, error=ModelError)
        check_pixels(channels, mean, std)
        for name, given, neutral in (("mean", mean, 0.0), ("std", std, 1.0)):
            numbers = torch.tensor(neutral if given is None else given, dtype=torch.float32).reshape(-1)
            self.register_buffer(name, numbers.expand(channels).clone().view(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W); ModelError for another number of channels."""
        _check_channels(x, len(self.mean))
        return (x - self.mean) / self.std


@fx.wrap
def _check_channels(x: Tensor, channels: int) -> None:
    """Without this, a gray image would be broadcast over the channels. Wrapped: torch.fx cannot trace the comparison."""
    given = x.shape[-3] if x.ndim >= 3 else 0
    if given != channels:
        raise ModelError(
            f"the network takes images of {channels} channels, and these have {given}: expected (B, {channels}, H, W), "
            f"got shape {tuple(x.shape)}"
        )


@l1.register
@linf.register
def _(layer: Normalize, in_shape: Shape) -> Tensor:
    return (1 / layer.std).max()


@spectral_norm.register
def _(layer: Normalize, in_shape: Shape, *args: Any, **kwargs: Any) -> Norm:
    gain = (1 / layer.std.double()).max()
    return Norm.of(gain, gain, "exact: a diagonal map")


@layer_bounds.register
def _(layer: Normalize, in_shape: Shape) -> Affine:
    gain = 1 / layer.std.double()
    return diagonal(in_shape, gain, -layer.mean.double() * gain)


class ConvexSum(nn.Module):
    """α shortcut + (1 - α) branch with (α, 1 - α) = softmax(l_a, l_b), learned: no longer than the longer of the two.

    α starts at L / (L + 1), so that L blocks in a row whose branches are still 0 transmit (L / (L + 1))^L > 1/e of the
    signal. (Liu et al. give no start; from 1/2 the 12 blocks of a WRN-28 transmit 1/4096, and with Fixup it hardly trains.)

    Args:
        blocks: L, the number of such sums in a row.

    Source: Cisse et al. 2017; Liu et al. 2020, Eq. 19 and section 6 (the softmax).
    """

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([math.log(blocks), 0.0]))

    def forward(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Two tensors of one shape -> one of that shape."""
        weights = self.logits.softmax(0)
        return weights[0] * shortcut + weights[1] * branch
