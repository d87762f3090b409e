"""Residual networks for small images (He et al. 2016)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import Shape
from opnorm._core.settings import check_choice
from opnorm.errors import ModelError
from opnorm.models.initialization import fixup, he
from opnorm.models.modules import CHW, Normalize, Pixels, check_sizes
from opnorm.models.stages import Residual, classifier, conv, named, projection, stages, stem
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.norms.norm import Norm
from opnorm.norms.spectral.interval import spectral_norm
from opnorm.spec import factory

__all__ = ["PaddedShortcut", "resnet", "resnet18"]


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


def _padded_shortcut(in_channels: int, channels: int, stride: int) -> nn.Module:
    same = stride == 1 and in_channels == channels
    return nn.Identity() if same else PaddedShortcut(stride, channels - in_channels)


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv(in_channels, channels, 3, stride), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = conv(channels, channels), nn.BatchNorm2d(channels)
        self.shortcut = _padded_shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


def _plain_block(in_channels: int, channels: int, stride: int) -> nn.Module:
    """The basic block without batch norm."""
    conv1, conv2 = conv(in_channels, channels, 3, stride), conv(channels, channels)
    branch = named(conv1=conv1, relu=nn.ReLU(), conv2=conv2)
    return Residual(branch, _padded_shortcut(in_channels, channels, stride))


def _projected_block(in_channels: int, channels: int, stride: int) -> nn.Module:
    branch = named(
        conv1=conv(in_channels, channels, 3, stride), bn1=nn.BatchNorm2d(channels), relu=nn.ReLU(),
        conv2=conv(channels, channels), bn2=nn.BatchNorm2d(channels),
    )  # fmt: skip
    return Residual(branch, projection(in_channels, channels, stride))


@factory("model")
def resnet(
    depth: int = 20,
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    width: int = 16,
    mean: Pixels = 0.0,
    std: Pixels = 1.0,
    norm: str = "bn",
) -> nn.Module:
    """ResNet-20, -56, -110, ...: three stages of (depth - 2) / 6 basic blocks, of width, 2 width and 4 width channels.

    - ``depth``: 6 n + 2 layers, n ≥ 1, else ModelError.
    - ``norm``: "bn", batch norm; or "fixup", none, with :func:`opnorm.models.initialization.fixup`. (A Fixup net gives zero
      logits until the first step.)
    - Other settings as in :mod:`opnorm.models`.

    Source: He et al. 2016, section 4.2; 0.27, 0.85 and 1.7 million parameters at depth 20, 56 and 110. Wen et al. 2020 use
        depths 56 and 110 with Fixup; no convolution has a bias there either.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth)
    check_choice("norm", norm, ("bn", "fixup"), ModelError)
    if depth < 8 or (depth - 2) % 6:
        raise ModelError(f"depth={depth!r}: expected 6 n + 2, such as 20, 32, 44, 56 or 110")
    n, block = (depth - 2) // 6, BasicBlock if norm == "bn" else _plain_block
    model = nn.Sequential(
        Normalize(in_shape[0], mean, std),
        conv(in_shape[0], width),
        *([nn.BatchNorm2d(width)] if norm == "bn" else []),
        nn.ReLU(),
        *(
            b
            for stage in stages(block, width, (width, 2 * width, 4 * width), (n, n, n), (1, 2, 2)).values()
            for b in stage
        ),
        *classifier(4 * width, classes).values(),
    )
    (he if norm == "bn" else fixup)(model)
    return model


@factory("model")
def resnet18(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = 0.0, std: Pixels = 1.0
) -> nn.Module:
    """ResNet-18 for small images: four stages of two blocks, of ``width``, 2, 4 and 8 times width channels.

    A 3x3 stem of stride 1 without pooling; where the size changes, a 1x1 convolution with batch norm is the shortcut. Other
    settings as in :mod:`opnorm.models`.

    Source: He et al. 2016, in the form of Liang & Huang 2021; 11,173,962 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)
    return named(
        normalize=Normalize(in_shape[0], mean, std),
        **stem(in_shape[0], width),
        **stages(_projected_block, width, [n * width for n in (1, 2, 4, 8)], (2, 2, 2, 2), (1, 2, 2, 2)),
        **classifier(8 * width, classes),
    )
