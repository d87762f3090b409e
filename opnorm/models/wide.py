"""Wide residual networks (Zagoruyko & Komodakis 2016)."""

import torch
from torch import nn

from opnorm._core.settings import check_choice
from opnorm.errors import ModelError
from opnorm.models.initialization import fixup, he, xavier
from opnorm.models.modules import CHW, ConvexSum, Normalize, Pixels, check_sizes
from opnorm.models.stages import PreActivated, bottleneck, classifier, conv, named, stages, stem
from opnorm.spec import factory

__all__ = ["wrn", "wrn50_2"]


@factory("model")
def wrn(
    depth: int = 28,
    width: int = 10,
    norm: str = "bn",
    aggregation: str = "sum",
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    mean: Pixels = 0.0,
    std: Pixels = 1.0,
) -> nn.Module:
    """WRN-depth-width: three stages of (depth - 4) / 6 pre-activated blocks, of 16, 32 and 64 times width channels.

    Where the size changes, a 1x1 convolution of the activated input is the shortcut. No convolution has a bias.

    - ``depth``: 6 n + 4 layers, n ≥ 1, else ModelError.
    - ``width``: the factor by which it is wider than a ResNet.
    - ``norm``: "bn", batch norm and He initialization; or "fixup", neither, see
      :func:`opnorm.models.initialization.fixup`. (A Fixup net gives zero logits until the first step.)
    - ``aggregation``: "sum", shortcut + branch; or "convex", α shortcut + (1 - α) branch with a learned α, see
      :class:`opnorm.models.modules.ConvexSum`.
    - Other settings as in :mod:`opnorm.models`.

    Source: Zagoruyko & Komodakis 2016; 36,479,194 parameters with batch norm at (28, 10), 691,674 at (16, 2). Roth et al.
        2020 use (28, 10) with batch norm, Liu et al. 2020 with Fixup, and with convex aggregation for WEISSI-CA.
    """
    check_sizes(in_shape=in_shape, classes=classes, depth=depth, width=width)
    check_choice("norm", norm, ("bn", "fixup"), ModelError)
    check_choice("aggregation", aggregation, ("sum", "convex"), ModelError)
    if depth < 10 or (depth - 4) % 6:
        raise ModelError(f"depth={depth!r}: expected 6 n + 4, such as 10, 16, 22, 28 or 40")
    n = (depth - 4) // 6

    def active(channels: int) -> nn.Sequential:
        return named(bn=nn.BatchNorm2d(channels), relu=nn.ReLU()) if norm == "bn" else named(relu=nn.ReLU())

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        conv1, conv2 = conv(in_channels, channels, 3, stride), conv(channels, channels)
        same = stride == 1 and in_channels == channels
        shortcut = None if same else conv(in_channels, channels, 1, stride)
        aggregate = ConvexSum(3 * n) if aggregation == "convex" else torch.add
        branch = named(conv1=conv1, active=active(channels), conv2=conv2)
        return PreActivated(active(in_channels), branch, shortcut, aggregate)

    model = named(
        normalize=Normalize(in_shape[0], mean, std),
        conv=conv(in_shape[0], 16),
        **stages(block, 16, [16 * width, 32 * width, 64 * width], (n, n, n), (1, 2, 2)),
        active=active(64 * width),
        **classifier(64 * width, classes),
    )
    (he if norm == "bn" else fixup)(model)
    return model


@factory("model")
def wrn50_2(
    in_shape: CHW = (3, 64, 64), classes: int = 200, width: int = 64, mean: Pixels = 0.0, std: Pixels = 1.0
) -> nn.Module:
    """WRN-50-2-bottleneck for small images: a 3x3 stem of stride 1 without pooling, and 3, 4, 6 and 3 bottlenecks.

    A bottleneck is 1x1, 3x3 (with the stride) and 1x1 convolutions with batch norm; its 3x3 convolution has 2, 4, 8 and 16
    times ``width`` channels in the four stages, and its output twice as many. The stem has ``width`` channels. Convolutions
    start as in Glorot & Bengio 2010. Other settings as in :mod:`opnorm.models`.

    Source: Zagoruyko & Komodakis 2016; Wen et al. 2020, Appendix D.2: Tiny-ImageNet in crops of 56 x 56; 67,236,360
        parameters for 200 classes.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        return bottleneck(in_channels, channels // 2, channels, stride)

    model = named(
        normalize=Normalize(in_shape[0], mean, std),
        **stem(in_shape[0], width),
        **stages(block, width, [n * width for n in (4, 8, 16, 32)], (3, 4, 6, 3), (1, 2, 2, 2)),
        **classifier(32 * width, classes),
    )
    xavier(model)
    return model
