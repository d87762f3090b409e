"""Residual networks for small images (He et al. 2016, section 4.2)."""

import torch.nn.functional as F
from torch import Tensor, nn

from opnorm.errors import ModelError
from opnorm.models.basic import Numbers, check_sizes
from opnorm.models.layers import Normalize
from opnorm.spec import factory

__all__ = ["resnet"]


class Shrink(nn.Module):
    """The parameter-free shortcut: every second pixel, and zeros for the channels that are new (option A)."""

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C + new_channels, ceil(H / stride), ceil(W / stride))."""
        half = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv(relu(bn(conv(x))))))."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        same = stride == 1 and in_channels == channels
        self.shortcut = nn.Identity() if same else Shrink(stride, channels - in_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


@factory
def resnet(
    depth: int = 20,
    in_shape: tuple[int, int, int] = (3, 32, 32),
    classes: int = 10,
    width: int = 16,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """ResNet-20, -56, -110, ...: three stages of (depth - 2) / 6 basic blocks, of width, 2 width and 4 width channels.

    Args:
        depth: 6 n + 2 layers, n ≥ 1.
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std.
        classes: number of logits.
        width: channels of the first stage.
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a depth that is not 6 n + 2, or a size below 1.

    Source: He et al. 2016; 0.27, 0.85 and 1.7 million parameters at depth 20, 56 and 110.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth)
    if depth < 8 or (depth - 2) % 6:
        raise ModelError(f"depth={depth!r}: expected 6 n + 2, such as 20, 32, 44, 56 or 110")
    blocks: list[nn.Module] = []
    channels = width
    for stage in range(3):
        for block in range((depth - 2) // 6):
            stride = 2 if stage and not block else 1
            blocks.append(BasicBlock(channels, width * 2**stage, stride))
            channels = width * 2**stage
    model = nn.Sequential(
        Normalize(in_shape[0], mean, std),
        nn.Conv2d(in_shape[0], width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(channels, classes),
    )
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return model
