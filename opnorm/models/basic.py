"""The small networks: a perceptron and a two-layer convolutional net (Liu et al. 2020, Appendix B.1)."""

import math
from collections.abc import Sequence

from torch import nn

from opnorm.errors import ModelError
from opnorm.models.modules import Normalize
from opnorm.spec import factory

__all__ = ["cnn", "mlp"]

Numbers = float | Sequence[float]


@factory("model")
def mlp(
    in_shape: tuple[int, ...] = (1, 28, 28),
    classes: int = 10,
    width: int = 1024,
    depth: int = 2,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """A perceptron: ``depth`` hidden layers of ``width`` ReLU units.

    Args:
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std.
        classes: number of logits.
        width: of the hidden layers.
        depth: how many hidden layers.
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a size below 1.

    Source: Liu et al. 2020 use two hidden layers of 1,024 on MNIST.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth)
    layers: list[nn.Module] = [Normalize(in_shape[0], mean, std), nn.Flatten()]
    features = math.prod(in_shape)
    for _ in range(depth):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


@factory("model")
def cnn(
    in_shape: tuple[int, int, int] = (1, 28, 28),
    classes: int = 10,
    width: int = 128,
    depth: int = 2,
    stride: int = 1,
    mean: Numbers = 0.0,
    std: Numbers = 1.0,
) -> nn.Module:
    """``depth`` 3x3 convolutions of ``width`` filters with ReLU, and one linear layer.

    Args:
        in_shape: of one image, (C, H, W); taken from the data when trained by opnorm, like classes, mean and std.
        classes: number of logits.
        width: filters of each convolution.
        depth: how many convolutions.
        stride: of each convolution (the padding is 1).
        mean: subtracted from the pixels; one number or one a channel.
        std: the pixels are divided by it.

    Raises:
        ModelError: a size below 1.

    Source: Liu et al. 2020 use two stride-1 convolutions of 128 filters on MNIST.
    """
    check_sizes(in_shape=in_shape, classes=classes, width=width, depth=depth, stride=stride)
    channels, *size = in_shape
    layers: list[nn.Module] = [Normalize(channels, mean, std)]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, stride, 1), nn.ReLU()]
        channels, size = width, [(n - 1) // stride + 1 for n in size]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * math.prod(size), classes))


def check_sizes(**sizes: int | Sequence[int]) -> None:
    """Whole numbers of at least 1, or sequences of them; ``in_shape`` has three.

    Raises:
        ModelError: naming the value.
    """
    for name, value in sizes.items():
        numbers = value if isinstance(value, Sequence) else (value,)
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in numbers):
            raise ModelError(f"{name}={value!r}: expected whole numbers of at least 1")
        if name == "in_shape" and len(numbers) != 3:
            raise ModelError(f"in_shape={value!r}: expected (channels, height, width)")
