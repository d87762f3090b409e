"""Residual networks for small images: a 3x3 stem of stride 1 without pooling, stages of blocks, one linear layer.

Settings that are not named are those of :mod:`opnorm.models`.
"""

import torch
from torch import nn

from opnorm._core.network_sizes import CHW, Pixels, check_sizes, check_stages
from opnorm._core.settings import check_choice
from opnorm.errors import ModelError
from opnorm.models.initialization import fixup, he
from opnorm.models.modules import ConvexSum, Normalize
from opnorm.models.stages import (
    ChannelAttention,
    PreActivated,
    Residual,
    basic_branch,
    bottleneck,
    classifier,
    conv,
    named,
    padded_shortcut,
    projection,
    staged_network,
    stages,
)
from opnorm.spec import factory

__all__ = ["regnetx_200mf", "resnet", "resnet18", "senet18", "wrn", "wrn50_2"]


@factory("model")
def resnet(
    depth: int = 20,
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    width: int = 16,
    mean: Pixels = None,
    std: Pixels = None,
    norm: str = "bn",
) -> nn.Module:
    """ResNet-20, -56, -110, ...: three stages of (depth - 2) / 6 basic blocks, of width, 2 width and 4 width channels.

    - ``depth``: 6 n + 2 layers, n ≥ 1, else ModelError.
    - ``norm``: "bn", batch norm; or "fixup", none, with :func:`opnorm.models.initialization.fixup`. (A Fixup net gives zero
      logits until the first step.)

    Source: He et al. 2016, section 4.2; 0.27, 0.85 and 1.7 million parameters at depth 20, 56 and 110. Wen et al. 2020 use
        depths 56 and 110 with Fixup; no convolution has a bias there either.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth, mean=mean, std=std)
    check_stages(depth, norm, ends=2, layers=6, examples="20, 32, 44, 56 or 110")
    n, bn = (depth - 2) // 6, norm == "bn"

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        branch = basic_branch(in_channels, channels, stride, bn)
        return Residual(branch, padded_shortcut(in_channels, channels, stride))

    widths = [width, width, 2 * width, 4 * width]
    model = nn.Sequential(
        Normalize(in_shape[0], mean, std),
        conv(in_shape[0], width),
        *([nn.BatchNorm2d(width)] if bn else []),
        nn.ReLU(),
        *(b for stage in stages(block, widths, (n, n, n), (1, 2, 2)).values() for b in stage),
        *classifier(4 * width, classes).values(),
    )
    (he if bn else fixup)(model)
    return model


@factory("model")
def resnet18(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """ResNet-18: four stages of two blocks, of ``width``, 2, 4 and 8 times width channels.

    Where the size changes, a 1x1 convolution with batch norm is the shortcut.

    Source: He et al. 2016, in the form of Liang & Huang 2021; 11,173,962 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        branch = basic_branch(in_channels, channels, stride)
        return Residual(branch, projection(in_channels, channels, stride))

    widths = [n * width for n in (1, 1, 2, 4, 8)]
    return staged_network(in_shape, classes, (mean, std), block, widths, (2, 2, 2, 2), (1, 2, 2, 2))


@factory("model")
def senet18(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """SENet-18: four stages of two pre-activated blocks whose branches end with channel attention.

    The stages have ``width``, 2, 4 and 8 ``width`` channels, the attention's hidden layers a sixteenth of them.

    Source: Hu, Shen & Sun 2018, in the form of Liang & Huang 2021; 11,260,354 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        branch = named(
            conv1=conv(in_channels, channels, 3, stride), bn=nn.BatchNorm2d(channels), relu=nn.ReLU(),
            conv2=conv(channels, channels), gate=ChannelAttention(channels),
        )  # fmt: skip
        same = (in_channels, stride) == (channels, 1)
        shortcut = None if same else conv(in_channels, channels, 1, stride)
        return PreActivated(named(bn=nn.BatchNorm2d(in_channels), relu=nn.ReLU()), branch, shortcut)

    widths = [n * width for n in (1, 1, 2, 4, 8)]
    return staged_network(in_shape, classes, (mean, std), block, widths, (2, 2, 2, 2), (1, 2, 2, 2))


@factory("model")
def regnetx_200mf(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 8, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """RegNetX-200MF: 1, 1, 4 and 7 blocks of 1x1, grouped 3x3 and 1x1 convolutions with batch norm.

    The four stages have 3, 7, 19 and 46 groups of ``width`` channels each; strides 1, 1, 2 and 2 after a stem of
    8 ``width`` channels.

    Source: Radosavovic et al. 2020, in the form of Liang & Huang 2021: channels 24, 56, 152 and 368; 2,321,946 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        return bottleneck(in_channels, channels, channels, stride, channels // width)

    widths = [n * width for n in (8, 3, 7, 19, 46)]
    return staged_network(in_shape, classes, (mean, std), block, widths, (1, 1, 4, 7), (1, 1, 2, 2))


@factory("model")
def wrn(
    depth: int = 28,
    width: int = 10,
    norm: str = "bn",
    aggregation: str = "sum",
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    mean: Pixels = None,
    std: Pixels = None,
) -> nn.Module:
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activated blocks, of 16, 32 and 64 times width channels.

    Where the size changes, a 1x1 convolution of the activated input is the shortcut. No convolution has a bias.

    - ``depth``: 6 n + 4 layers, n ≥ 1, else ModelError.
    - ``width``: the factor by which it is wider than a ResNet.
    - ``norm``: "bn", batch norm and He initialization; or "fixup", neither, see
      :func:`opnorm.models.initialization.fixup`. (A Fixup net gives zero logits until the first step.)
    - ``aggregation``: "sum", shortcut + branch; or "convex", α shortcut + (1 - α) branch with a learned α, see
      :class:`opnorm.models.modules.ConvexSum`.

    Source: Zagoruyko & Komodakis 2016; 36,479,194 parameters with batch norm at (28, 10), 691,674 at (16, 2). Roth et al.
        2020 use (28, 10) with batch norm, Liu et al. 2020 with Fixup, and with convex aggregation for WEISSI-CA.
    """
    check_sizes(in_shape=in_shape, classes=classes, depth=depth, width=width, mean=mean, std=std)
    check_stages(depth, norm, ends=4, layers=6, examples="10, 16, 22, 28 or 40")
    check_choice("aggregation", aggregation, ("sum", "convex"), ModelError)
    n, bn = (depth - 4) // 6, norm == "bn"

    def active(channels: int) -> nn.Sequential:
        return named(bn=nn.BatchNorm2d(channels), relu=nn.ReLU()) if bn else named(relu=nn.ReLU())

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        conv1, conv2 = conv(in_channels, channels, 3, stride), conv(channels, channels)
        same = (in_channels, stride) == (channels, 1)
        shortcut = None if same else conv(in_channels, channels, 1, stride)
        aggregate = ConvexSum(3 * n) if aggregation == "convex" else torch.add
        branch = named(conv1=conv1, active=active(channels), conv2=conv2)
        return PreActivated(active(in_channels), branch, shortcut, aggregate)

    model = named(
        normalize=Normalize(in_shape[0], mean, std),
        conv=conv(in_shape[0], 16),
        **stages(block, [16, 16 * width, 32 * width, 64 * width], (n, n, n), (1, 2, 2)),
        active=active(64 * width),
        **classifier(64 * width, classes),
    )
    (he if bn else fixup)(model)
    return model


@factory("model")
def wrn50_2(
    in_shape: CHW = (3, 64, 64), classes: int = 200, width: int = 64, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """WRN-50-2-bottleneck: a stem of ``width`` channels, and 3, 4, 6 and 3 bottlenecks.

    A bottleneck is 1x1, 3x3 (with the stride) and 1x1 convolutions with batch norm; its 3x3 convolution has 2, 4, 8 and 16
    times ``width`` channels in the four stages, and its output twice as many. Convolutions start with uniform weights of
    variance 2 / (fan-in + fan-out) (Glorot & Bengio 2010, Eq. 16).

    Source: Zagoruyko & Komodakis 2016; Wen et al. 2020, Appendix D.2: Tiny-ImageNet in crops of 56 x 56; 67,236,360
        parameters for 200 classes.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        return bottleneck(in_channels, channels // 2, channels, stride)

    widths = [n * width for n in (1, 4, 8, 16, 32)]
    model = staged_network(in_shape, classes, (mean, std), block, widths, (3, 4, 6, 3), (1, 2, 2, 2))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
    return model
