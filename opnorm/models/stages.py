"""The parts of residual networks: two kinds of blocks, stages of blocks, stem and classifier."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

__all__ = [
    "Block",
    "PreActivated",
    "Residual",
    "bottleneck",
    "classifier",
    "conv",
    "named",
    "projection",
    "stages",
    "stem",
]

Block = Callable[[int, int, int], nn.Module]
"""(channels in, channels out, stride) -> a block."""


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


def conv(in_channels: int, channels: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without a bias that keeps the size of the map, or divides it by the stride (rounded up)."""
    return nn.Conv2d(in_channels, channels, size, stride, size // 2, groups=groups, bias=False)


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
    if stride == 1 and in_channels == channels:
        return nn.Identity()
    return named(conv=conv(in_channels, channels, 1, stride), bn=nn.BatchNorm2d(channels))


def named(**layers: nn.Module) -> nn.Sequential:
    """Named layers, one after the other."""
    return nn.Sequential(OrderedDict(layers))


def stem(in_channels: int, channels: int) -> dict[str, nn.Module]:
    """A 3x3 convolution of stride 1, batch norm and ReLU; no pooling."""
    return {"conv": conv(in_channels, channels), "bn": nn.BatchNorm2d(channels), "relu": nn.ReLU()}


def stages(
    block: Block, channels: int, widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]
) -> dict[str, nn.Sequential]:
    """``stage1``, ``stage2``, ...: each of ``depth`` blocks, of ``width`` channels out, the first with the stride.

    Args:
        block: makes one block.
        channels: of the input of the first stage.
        widths: of the stages.
        depths: of the stages.
        strides: of the stages.
    """
    layers: dict[str, nn.Sequential] = {}
    for i, (width, depth, stride) in enumerate(zip(widths, depths, strides, strict=True), start=1):
        first = block(channels, width, stride)
        layers[f"stage{i}"] = nn.Sequential(first, *(block(width, width, 1) for _ in range(depth - 1)))
        channels = width
    return layers


def classifier(channels: int, classes: int) -> dict[str, nn.Module]:
    """The mean over the map, and one linear layer."""
    return {
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "classifier": nn.Linear(channels, classes),
    }
