"""Small networks: a perceptron and a convolutional network (Liu et al. 2020, Appendix B.1)."""

import itertools
import math

from torch import nn

from opnorm.models.modules import CHW, Normalize, Pixels, check_sizes
from opnorm.spec import factory

__all__ = ["cnn", "mlp"]


@factory("model")
def mlp(
    in_shape: CHW = (1, 28, 28),
    classes: int = 10,
    width: int = 1024,
    depth: int = 2,
    mean: Pixels = 0.0,
    std: Pixels = 1.0,
) -> nn.Module:
    """A perceptron: ``depth`` hidden layers of ``width`` ReLU units; other settings as in :mod:`opnorm.models`.

    Source: Liu et al. 2020 use two hidden layers of 1,024 on MNIST.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth)
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
    mean: Pixels = 0.0,
    std: Pixels = 1.0,
) -> nn.Module:
    """``depth`` 3x3 convolutions of ``width`` filters, a ``stride`` and padding 1, with ReLU, and one linear layer.

    The linear layer fixes H and W. Other settings as in :mod:`opnorm.models`.

    Source: Liu et al. 2020 use two stride-1 convolutions of 128 filters on MNIST.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth, stride=stride)
    channels, *size = in_shape
    layers: list[nn.Module] = [Normalize(channels, mean, std)]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        channels, size = width, [(n - 1) // stride + 1 for n in size]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(size), classes))
