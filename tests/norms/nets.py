"""Networks that tables and bounds are looked at on: plain copies of well-known ones, nothing downloaded."""

import torch
import torch.nn.functional as F
from torch import nn


class Bottleneck(nn.Module):
    def __init__(self, c_in, width, stride):
        super().__init__()
        c_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c_in != c_out:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out)
            )

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Basic(nn.Module):
    def __init__(self, c_in, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or c_in != width:
            self.downsample = nn.Sequential(
                nn.Conv2d(c_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


def imagenet_resnet(block, counts, width=64, classes=1000):
    """ResNet-18 is (Basic, (2, 2, 2, 2)), ResNet-50 is (Bottleneck, (3, 4, 6, 3)) (He et al. 2016)."""
    layers = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage, count in enumerate(counts):
        for i in range(count):
            layers.append(block(channels, width * 2**stage, 2 if stage and not i else 1))
            channels = width * 2**stage * (4 if block is Bottleneck else 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


def resnet18(width=64, classes=1000):
    return imagenet_resnet(Basic, (2, 2, 2, 2), width, classes)


def resnet50(width=64, classes=1000):
    return imagenet_resnet(Bottleneck, (3, 4, 6, 3), width, classes)


def depthwise_separable(width=16):
    """In the manner of MobileNet: a depthwise 3x3, then a pointwise 1x1."""

    def pair(c_in, c_out, stride):
        return nn.Sequential(
            nn.Conv2d(c_in, c_in, 3, stride, 1, groups=c_in, bias=False), nn.BatchNorm2d(c_in), nn.ReLU6(),
            nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.Hardswish(),
        )  # fmt: skip

    return nn.Sequential(
        nn.Conv2d(3, width, 3, 2, 1), nn.SiLU(), pair(width, 2 * width, 1), pair(2 * width, 4 * width, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * width, 10),
    )  # fmt: skip


def decoder(width=16):
    """Transposed convolutions from a code to an image, as in DCGAN."""
    return nn.Sequential(
        nn.Linear(32, width * 4 * 4 * 4), nn.Unflatten(1, (width * 4, 4, 4)), nn.ReLU(),
        nn.ConvTranspose2d(width * 4, width * 2, 4, 2, 1), nn.BatchNorm2d(width * 2), nn.LeakyReLU(0.2),
        nn.ConvTranspose2d(width * 2, width, 3, 2, 1, output_padding=1), nn.ELU(),
        nn.Upsample(scale_factor=2), nn.Conv2d(width, 3, 5, padding=2, padding_mode="reflect"), nn.Tanh(),
    )  # fmt: skip


class Audio(nn.Module):
    """Dilated causal convolutions over time, as in WaveNet, with skips."""

    def __init__(self, width=16):
        super().__init__()
        self.first = nn.Conv1d(1, width, 64, 16, 24)
        self.blocks = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(3))
        self.last = nn.Linear(width, 12)

    def forward(self, x):
        x = F.gelu(self.first(x))
        for i, block in enumerate(self.blocks):
            x = x + F.gelu(block(F.pad(x, (2 * 2**i, 0))))
        return self.last(F.avg_pool1d(x, 4).mean(2))


def small():
    """Of a convolution, a batch norm and a linear layer."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x, scale=None, *, twice=False):
        x = x + self.a(x)
        if scale is not None:
            x = x * scale
        return (self.b(self.b(x)) if twice else self.b(x)), x
