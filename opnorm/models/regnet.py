"""RegNet (Radosavovic et al. 2020)."""

from torch import nn

from opnorm.models.modules import CHW, Normalize, Pixels, check_sizes
from opnorm.models.stages import bottleneck, classifier, named, stages, stem
from opnorm.spec import factory

__all__ = ["regnetx_200mf"]


@factory("model")
def regnetx_200mf(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 8, mean: Pixels = 0.0, std: Pixels = 1.0
) -> nn.Module:
    """RegNetX-200MF for small images: 1, 1, 4 and 7 blocks of 1x1, grouped 3x3 and 1x1 convolutions with batch norm.

    The four stages have 3, 7, 19 and 46 groups of ``width`` channels each; strides 1, 1, 2 and 2 after a 3x3 stem of
    stride 1 and 8 ``width`` channels. Other settings as in :mod:`opnorm.models`.

    Source: Radosavovic et al. 2020, in the form of Liang & Huang 2021: channels 24, 56, 152 and 368; 2,321,946 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)

    def block(in_channels: int, channels: int, stride: int) -> nn.Module:
        return bottleneck(in_channels, channels, channels, stride, channels // width)

    return named(
        normalize=Normalize(in_shape[0], mean, std),
        **stem(in_shape[0], 8 * width),
        **stages(block, 8 * width, [n * width for n in (3, 7, 19, 46)], (1, 1, 4, 7), (1, 1, 2, 2)),
        **classifier(46 * width, classes),
    )
