"""Squeeze-and-excitation (Hu, Shen & Sun 2018)."""

from torch import Tensor, nn

from opnorm.models.modules import CHW, Normalize, Pixels, check_sizes
from opnorm.models.stages import PreActivated, classifier, conv, named, stages, stem
from opnorm.spec import factory

__all__ = ["ChannelAttention", "senet18"]


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


def _block(in_channels: int, channels: int, stride: int) -> nn.Module:
    branch = named(
        conv1=conv(in_channels, channels, 3, stride), bn=nn.BatchNorm2d(channels), relu=nn.ReLU(),
        conv2=conv(channels, channels), gate=ChannelAttention(channels),
    )  # fmt: skip
    activate = named(bn=nn.BatchNorm2d(in_channels), relu=nn.ReLU())
    same = stride == 1 and in_channels == channels
    return PreActivated(activate, branch, None if same else conv(in_channels, channels, 1, stride))


@factory("model")
def senet18(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = 0.0, std: Pixels = 1.0
) -> nn.Module:
    """SENet-18 for small images: four stages of two pre-activated blocks whose branches end with channel attention.

    The stages have ``width``, 2, 4 and 8 ``width`` channels, the attention's hidden layers a sixteenth of them. A 3x3 stem
    of stride 1 without pooling. Other settings as in :mod:`opnorm.models`.

    Source: Hu, Shen & Sun 2018, in the form of Liang & Huang 2021; 11,260,354 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)
    return named(
        normalize=Normalize(in_shape[0], mean, std),
        **stem(in_shape[0], width),
        **stages(_block, width, [n * width for n in (1, 2, 4, 8)], (2, 2, 2, 2), (1, 2, 2, 2)),
        **classifier(8 * width, classes),
    )
