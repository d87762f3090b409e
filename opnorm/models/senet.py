"""Squeeze-and-excitation (Hu, Shen & Sun 2018)."""

from torch import Tensor, nn

from opnorm.models.basic import Numbers, check_sizes
from opnorm.models.stages import PreActivated, conv, named, staged, stem
from opnorm.spec import factory

__all__ = ["senet18"]


class Gate(nn.Module):
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
        conv2=conv(channels, channels), gate=Gate(channels),
    )  # fmt: skip
    activate = named(bn=nn.BatchNorm2d(in_channels), relu=nn.ReLU())
    same = stride == 1 and in_channels == channels
    return PreActivated(activate, branch, None if same else conv(in_channels, channels, 1, stride))


@factory("model")
def senet18(
    in_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    width: int = 64,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """SENet-18 for small images: four stages of two pre-activated blocks whose branches end in a gate of the channels.

    Channels: width, 2, 4 and 8 times width; the gates' hidden layers have a sixteenth of them. A 3x3 stem of stride 1
    without pooling.

    Args:
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std.
        classes: number of logits.
        width: channels of the first stage.
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a size below 1.

    Source: Hu, Shen & Sun 2018, in the form of Liang & Huang 2021; 11,260,354 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width)
    return staged(
        stem(in_shape[0], width), width, _block, [width, 2 * width, 4 * width, 8 * width], (2, 2, 2, 2), (1, 2, 2, 2),
        in_shape=in_shape, classes=classes, mean=mean, std=std,
    )  # fmt: skip
