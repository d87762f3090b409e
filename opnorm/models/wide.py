"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

import torch
from torch import nn

from opnorm.errors import ModelError
from opnorm.models.basic import Numbers, check_sizes
from opnorm.models.initialization import fixup, he, xavier
from opnorm.models.modules import ConvexSum
from opnorm.models.stages import PreActivated, bottleneck, check_choice, conv, named, staged, stem
from opnorm.spec import factory

__all__ = ["wrn", "wrn50_2"]


@factory("model")
def wrn(
    depth: int = 28,
    width: int = 10,
    norm: str = "bn",
    aggregation: str = "sum",
    in_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activated blocks, of 16, 32 and 64 times width channels.

    Where the size changes, a 1x1 convolution of the activated input is the shortcut. No convolution has a bias.

    Args:
        depth: 6 n + 4 layers, n ≥ 1.
        width: how many times as wide as a ResNet.
        norm: ``"bn"``, batch norm and He initialization; or ``"fixup"``, neither, see
            :func:`opnorm.models.initialization.fixup`. (A Fixup net gives zero logits until the first step.)
        aggregation: ``"sum"``, shortcut + branch; or ``"convex"``, α shortcut + (1 - α) branch with a learned α, see
            :class:`opnorm.models.modules.ConvexSum`.
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std.
        classes: number of logits.
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a depth that is not 6 n + 4, a size below 1, or another norm or aggregation.

    Source: Zagoruyko & Komodakis 2016; 36,479,194 parameters with batch norm at (28, 10), 691,674 at (16, 2). Roth et al.
        2020 use (28, 10) with batch norm, Liu et al. 2020 with Fixup, and with convex aggregation for WEISSI-CA.
    """
    check_sizes(in_shape=in_shape, classes=classes, depth=depth, width=width)
    check_choice(("bn", "fixup"), norm=norm)
    check_choice(("sum", "convex"), aggregation=aggregation)
    if depth < 10 or (depth - 4) % 6:
        raise ModelError(f"depth={depth!r}: expected 6 n + 4, such as 10, 16, 22, 28 or 40")
    n = (depth - 4) // 6

    def active(channels: int) -> nn.Sequential:
        return named(bn=nn.BatchNorm2d(channels), relu=nn.ReLU()) if norm == "bn" else named(relu=nn.ReLU())

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        branch = named(
            conv1=conv(in_channels, channels, 3, stride),
            active=active(channels),
            conv2=conv(channels, channels),
        )
        same = stride == 1 and in_channels == channels
        shortcut = None if same else conv(in_channels, channels, 1, stride)
        aggregate = ConvexSum(3 * n) if aggregation == "convex" else torch.add
        return PreActivated(active(in_channels), branch, shortcut, aggregate)

    widths = [16 * width, 32 * width, 64 * width]
    model = staged(
        {"conv": conv(in_shape[0], 16)}, 16, block, widths, (n, n, n), (1, 2, 2),
        in_shape=in_shape, classes=classes, mean=mean, std=std, last={"active": active(widths[-1])},
    )  # fmt: skip
    (he if norm == "bn" else fixup)(model)
    return model


@factory("model")
def wrn50_2(
    in_shape: tuple[int, int, int] = (3, 64, 64),
    classes: int = 200,
    width: int = 64,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """WRN-50-2-bottleneck for small images: a 3x3 stem of stride 1 without pooling, and 3, 4, 6 and 3 bottlenecks.

    A bottleneck is 1x1, 3x3 (with the stride) and 1x1 convolutions with batch norm; its 3x3 convolution has 2, 4, 8 and 16
    width channels in the four stages, and its output twice as many. Convolutions start as Glorot & Bengio 2010 say.

    Args:
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std. Crops of
            another size are taken as well.
        classes: number of logits.
        width: channels of the stem.
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a size below 1.

    Source: Zagoruyko & Komodakis 2016; Wen et al. 2020, Appendix D.2: Tiny-ImageNet in crops of 56 x 56; 67,236,360
        parameters for 200 classes.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        return bottleneck(in_channels, channels // 2, channels, stride)

    model = staged(
        stem(in_shape[0], width), width, block, [4 * width, 8 * width, 16 * width, 32 * width], (3, 4, 6, 3), (1, 2, 2, 2),
        in_shape=in_shape, classes=classes, mean=mean, std=std,
    )  # fmt: skip
    xavier(model)
    return model
