"""Plain networks: a perceptron and stacks of 3x3 convolutions. Other settings are those of :mod:`opnorm.models`."""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.network_sizes import CHW, Pixels, check_kernels, check_sizes
from opnorm._core.settings import check_choice, check_number
from opnorm.errors import ModelError
from opnorm.models.initialization import he
from opnorm.models.modules import Normalize
from opnorm.models.stages import classifier, named
from opnorm.spec import factory

__all__ = ["cnn", "cnn7", "mlp", "parallel_convs", "vgg11", "vgg16"]


@factory("model")
def mlp(
    in_shape: CHW = (1, 28, 28),
    classes: int = 10,
    width: int = 1024,
    depth: int = 2,
    mean: Pixels = None,
    std: Pixels = None,
) -> nn.Module:
    """A perceptron: ``depth`` hidden layers of ``width`` ReLU units.

    Source: Liu et al. 2020 use two hidden layers of 1,024 on MNIST.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth, mean=mean, std=std)
    sizes = [math.prod(in_shape), *[width] * depth]
    layers: list[nn.Module] = [Normalize(in_shape[0], mean, std), nn.Flatten()]
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


@factory("model")
def cnn(
    in_shape: CHW = (1, 28, 28),
    classes: int = 10,
    width: int = 128,
    depth: int = 2,
    stride: int = 1,
    mean: Pixels = None,
    std: Pixels = None,
) -> nn.Module:
    """``depth`` 3x3 convolutions of ``width`` filters, a ``stride`` and padding 1, with ReLU, and one linear layer.

    The linear layer fixes H and W.

    Source: Liu et al. 2020 use two stride-1 convolutions of 128 filters on MNIST.
    """
    check_sizes(
        in_shape=in_shape, classes=classes, width=width, depth=depth, stride=stride, mean=mean, std=std
    )
    channels, *size = in_shape
    layers: list[nn.Module] = [Normalize(channels, mean, std)]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        channels, size = width, [(n - 1) // stride + 1 for n in size]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(size), classes))


@factory("model")
def vgg11(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """VGG-11 for small images: 8 convolutions with batch norm and ReLU, 5 max-poolings, and one linear layer.

    Channels: ``width``, 2 width, 2 x 4 width, 4 x 8 width. The poolings round up, so that 28 x 28 images fit as well.

    Source: Simonyan & Zisserman 2015, configuration A, in the form of Liang & Huang 2021: 9,231,114 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)
    groups = [[width * n for n in group] for group in ((1,), (2,), (4, 4), (8, 8), (8, 8))]
    return named(
        normalize=Normalize(in_shape[0], mean, std),
        **_convolutions(in_shape[0], groups, bn=True),
        **classifier(8 * width, classes),
    )


@factory("model")
def vgg16(
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    width: int = 64,
    dropout: float = 0.5,
    pools: int = 5,
    mean: Pixels = None,
    std: Pixels = None,
) -> nn.Module:
    """VGG-16 without batch norm and with one hidden linear layer of 8 width units, which alone has dropout.

    Channels: 2 x ``width``, 2 x 2 width, 3 x 4 width, 3 x 8 width, 3 x 8 width. A max-pooling, rounding up, ends each of the
    first ``pools`` groups. Weights start as in He et al. 2015, and biases at 0. ``dropout`` is the share of hidden units set
    to 0 in each training step, in [0, 1).

    Small images need fewer poolings: on a 1 x 1 map only the middle of a 3 x 3 kernel meets the image, a ninth of the fan-in
    for which the weights are scaled, so that every layer divides the signal by 3 and the network does not train.

    Source: Liu et al. 2020, Appendix B.1: the convolutions of VGG-16, one layer of 512 units; 14,982,474 parameters.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)
    check_number("dropout", dropout, "a share in [0, 1)", least=0, below=1, error=ModelError)
    check_choice("pools", pools, (0, 1, 2, 3, 4, 5), ModelError)
    groups = [[width * n for n in group] for group in ((1, 1), (2, 2), (4, 4, 4), (8, 8, 8), (8, 8, 8))]
    model = named(
        normalize=Normalize(in_shape[0], mean, std),
        **_convolutions(in_shape[0], groups, bn=False, pools=pools),
        pool=nn.AdaptiveAvgPool2d(1),
        flatten=nn.Flatten(),
        hidden=nn.Linear(8 * width, 8 * width),
        relu=nn.ReLU(),
        dropout=nn.Dropout(dropout),
        classifier=nn.Linear(8 * width, classes),
    )
    he(model)
    for name, weights in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weights)
    return model


@factory("model")
def cnn7(
    in_shape: CHW = (3, 32, 32), classes: int = 10, width: int = 64, mean: Pixels = None, std: Pixels = None
) -> nn.Module:
    """Seven layers: 6 convolutions with batch norm and ReLU in pairs, a max-pooling after each pair, one linear layer.

    Channels: 2 x ``width``, 2 x 2 width, 2 x 4 width. Roth et al. name a 7-layer CNN with batch norm; these widths, the
    places of the poolings (which round up) and the linear layer on the whole last map, which fixes H and W, are this
    project's reading.

    Source: Roth et al. 2020, section 5.1; 1,188,170 parameters as built here.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, mean=mean, std=std)
    channels, height, breadth = in_shape
    return named(
        normalize=Normalize(channels, mean, std),
        **_convolutions(channels, [[width * n, width * n] for n in (1, 2, 4)], bn=True),
        flatten=nn.Flatten(),
        classifier=nn.Linear(4 * width * -(-height // 8) * -(-breadth // 8), classes),
    )


def _convolutions(
    channels: int, groups: Sequence[Sequence[int]], *, bn: bool, pools: int = 5
) -> dict[str, nn.Module]:
    """Groups of 3x3 convolutions, each with ReLU; a max-pooling of 2x2 ends each of the first ``pools`` groups."""
    layers: dict[str, nn.Module] = {}
    number = 0
    for i, group in enumerate(groups, start=1):
        for width in group:
            number += 1
            layers[f"conv{number}"] = nn.Conv2d(channels, width, 3, 1, 1)
            if bn:
                layers[f"bn{number}"] = nn.BatchNorm2d(width)
            layers[f"relu{number}"] = nn.ReLU()
            channels = width
        if i <= pools:
            layers[f"pool{i}"] = nn.MaxPool2d(2, ceil_mode=True)
    return layers


@factory("model")
def parallel_convs(
    kernels: Sequence[tuple[int, int, int, int]] = ((3, 3, 32, 32), (5, 5, 32, 32)),
    size: int = 32,
    in_shape: CHW = (3, 32, 32),
    classes: int = 10,
    mean: Pixels = None,
    std: Pixels = None,
) -> nn.Module:
    """Convolutions side by side on maps of ``size`` pixels a side, to time and compare their norms; not made to be trained.

    Each of ``kernels`` is (height, width, input channels, output channels), with stride 1 and a padding that keeps the size
    of odd kernels. Logits are sums of the maps' means.

    Source: Liang & Huang 2021, Table 1, times six kernels on 32x32.
    """
    check_sizes(in_shape=in_shape, classes=classes, size=size, mean=mean, std=std)
    check_kernels(kernels)
    return nn.Sequential(Normalize(in_shape[0], mean, std), _ParallelConvs(kernels, size, classes))


class _ParallelConvs(nn.Module):
    def __init__(self, kernels: Sequence[tuple[int, int, int, int]], size: int, classes: int) -> None:
        super().__init__()
        self.size = size
        self.channels = [inputs for _, _, inputs, _ in kernels]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, (h, w), padding=(h // 2, w // 2)) for h, w, i, o in kernels
        )
        self.heads = nn.ModuleList(nn.Linear(kernel[3], classes) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        gray = F.interpolate(x.mean(1, keepdim=True), self.size)
        logits = []
        for conv, head, channels in zip(self.convs, self.heads, self.channels, strict=True):
            logits.append(head(conv(gray.expand(-1, channels, -1, -1)).mean((2, 3))))
        return torch.stack(logits).sum(0)
