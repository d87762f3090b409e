"""The parts of residual networks: blocks, shortcuts, and the network of a stem, stages of blocks and a classifier."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape
from opnorm._core.network_sizes import CHW, Pixels
from opnorm.models.modules import Normalize
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.interval import spectral_norm

__all__ = [
    "Block", "ChannelAttention", "PaddedShortcut", "PreActivated", "Residual", "basic_branch", "bottleneck", "classifier",
    "conv", "named", "padded_shortcut", "projection", "staged_network", "stages",
]  # fmt: skip

Block = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> a block."""


def named(**layers: nn.Module) -> nn.Sequential:
    """Named layers, one after the other."""
    return nn.Sequential(OrderedDict(layers))


def conv(in_channels: int, channels: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without a bias that keeps the size of the map, or divides it by the stride (rounded up)."""
    return nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)


# ---------------------------------------------------------------- blocks


class Residual(nn.Module):
    """relu(branch(x) + shortcut(x)).

    Source: He et al. 2016a.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch, self.shortcut, self.relu = branch, shortcut, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, H, W) -> (B, channels out, H / stride, W / stride)."""
        return self.relu(self.branch(x) + self.shortcut(x))


class PreActivated(nn.Module):
    """x + branch(activate(x)), or shortcut(activate(x)) + branch(activate(x)) where the size changes.

    Args:
        activate: batch norm and ReLU, or ReLU alone.
        branch: begins with a convolution.
        shortcut: None where the size stays.
        aggregate: (shortcut, branch) -> the block's output.

    Source: He et al. 2016b; Zagoruyko & Komodakis 2016.
    """

    def __init__(
        self,
        activate: nn.Module,
        branch: nn.Module,
        shortcut: nn.Module | None,
        aggregate: Callable[[Tensor, Tensor], Tensor] = torch.add,
    ) -> None:
        super().__init__()
        self.activate, self.branch, self.shortcut, self.aggregate = activate, branch, shortcut, aggregate

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels in, H, W) -> (B, channels out, H / stride, W / stride)."""
        active = self.activate(x)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.aggregate(shortcut, self.branch(active))


def basic_branch(in_channels: int, channels: int, stride: int, bn: bool = True) -> nn.Sequential:
    """Two 3x3 convolutions with a ReLU between them, each with batch norm if ``bn``."""
    conv1, conv2 = conv(in_channels, channels, 3, stride), conv(channels, channels)
    if not bn:
        return named(conv1=conv1, relu=nn.ReLU(), conv2=conv2)
    bn1, bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
    return named(conv1=conv1, bn1=bn1, relu=nn.ReLU(), conv2=conv2, bn2=bn2)


def bottleneck(in_channels: int, inner: int, channels: int, stride: int, groups: int = 1) -> Residual:
    """1x1, 3x3 (with the stride, in groups) and 1x1 convolutions with batch norm, ``inner`` channels between them."""
    branch = named(
        conv1=conv(in_channels, inner, 1), bn1=nn.BatchNorm2d(inner), relu1=nn.ReLU(),
        conv2=conv(inner, inner, 3, stride, groups), bn2=nn.BatchNorm2d(inner), relu2=nn.ReLU(),
        conv3=conv(inner, channels, 1), bn3=nn.BatchNorm2d(channels),
    )  # fmt: skip
    return Residual(branch, projection(in_channels, channels, stride))


def projection(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The identity, or a 1x1 convolution and batch norm where the size changes (option B of He et al. 2016a)."""
    if (in_channels, stride) == (channels, 1):
        return nn.Identity()
    return named(conv=conv(in_channels, channels, 1, stride), bn=nn.BatchNorm2d(channels))


def padded_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The identity, or a :class:`PaddedShortcut` where the size changes."""
    same = (in_channels, stride) == (channels, 1)
    return nn.Identity() if same else PaddedShortcut(stride, channels - in_channels)


class PaddedShortcut(nn.Module):
    """The parameter-free shortcut: every second pixel, and zeros for the new channels (option A of He et al. 2016a)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))


@l1.register
@linf.register
def _(layer: PaddedShortcut, in_shape: Shape) -> Tensor:
    return torch.ones((), dtype=torch.float64)


@spectral_norm.register
def _(layer: PaddedShortcut, in_shape: Shape, *args: Any, **kwargs: Any) -> Norm:
    return Norm.of(1.0, 1.0, "exact: every output is one of the inputs")


class ChannelAttention(nn.Module):
    """x times a number in (0, 1) for each channel, computed from the channels' means: no Lipschitz constant on all inputs.

    Source: Hu, Shen & Sun 2018, section 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 16)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = named(
            conv1=nn.Conv2d(channels, inner, 1), relu=nn.ReLU(), conv2=nn.Conv2d(inner, channels, 1), sigmoid=nn.Sigmoid()
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> the same."""
        return x * self.excite(self.squeeze(x))


# ---------------------------------------------------------------- networks


def stages(
    block: Block, widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]
) -> dict[str, nn.Sequential]:
    """``stage1``, ``stage2``, ...: blocks, the first of a stage with its stride; ``widths[0]`` is that of the input."""
    layers: dict[str, nn.Sequential] = {}
    for i, (depth, stride) in enumerate(zip(depths, strides, strict=True), start=1):
        first = block(widths[i - 1], widths[i], stride)
        layers[f"stage{i}"] = nn.Sequential(
            first, *(block(widths[i], widths[i], 1) for _ in range(depth - 1))
        )
    return layers


def classifier(channels: int, classes: int) -> dict[str, nn.Module]:
    """The mean over the map, and one linear layer."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(channels, classes),
    }


def staged_network(
    in_shape: CHW,
    classes: int,
    pixels: tuple[Pixels, Pixels],
    block: Block,
    widths: Sequence[int],
    depths: Sequence[int],
    strides: Sequence[int],
) -> nn.Sequential:
    """Normalization by ``pixels``, mean and std; a 3x3 convolution, batch norm and ReLU; the stages; the classifier."""
    return named(
        normalize=Normalize(in_shape[0], *pixels),
        conv=conv(in_shape[0], widths[0]),
        bn=nn.BatchNorm2d(widths[0]),
        relu=nn.ReLU(),
        **stages(block, widths, depths, strides),
        **classifier(widths[-1], classes),
    )
