"""An upper bound of the ℓ2 norm of convolutions whose padding copies the input: circular, reflect, replicate."""

import math
from collections import Counter

from torch import nn

from opnorm._core.convolution import conv_geometry, pad_index
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import CONV, Shape, is_standard
from opnorm._core.rounding import PRODUCT
from opnorm.norms.spectral.frequency_response import polyphase
from opnorm.norms.spectral.upper_bound import certify, circular_bound

__all__ = ["padding_bound"]


def padding_bound(
    layer: nn.Module, in_shape: Shape, lower: float, relative_width: float
) -> tuple[float, str]:
    """An upper bound for a convolution whose padding copies the input, and its name; infinite for any other layer.

    With circular padding that closes the circle, its frequency response. Else the norm of the convolution of the padded
    input, certified, times the norm of the padding, sqrt(∏_axes the largest number of copies of a position).
    """
    if not is_standard(layer, *CONV) or layer.padding_mode == "zeros":
        return math.inf, ""
    geometry, size = conv_geometry(layer), tuple(in_shape[1:])  # type: ignore[arg-type]
    K, bare = weight_of(layer).detach(), geometry._replace(padding=((0, 0),) * len(size), mode="zeros")
    circle = tuple(n // s for n, s in zip(size, geometry.stride, strict=True))
    closed = all(m * s == n for m, s, n in zip(geometry.out_size(size), geometry.stride, size, strict=True))
    if geometry.mode == "circular" and closed:
        reach = tuple(n + d * k for n, d, k in zip(size, geometry.dilation, geometry.kernel, strict=True))
        return circular_bound(polyphase(K, bare, reach), circle, lower, relative_width), "frequency response"
    padded = [pad_index(n, *p, geometry.mode) for n, p in zip(size, geometry.padding, strict=True)]
    copies = math.prod(max(Counter(axis).values()) for axis in padded)
    upper = certify(polyphase(K, bare, tuple(map(len, padded))), relative_width).upper
    return upper * math.sqrt(copies) * (1 + PRODUCT), "norm of the padding times that of the convolution"
