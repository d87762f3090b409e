"""Bounds of the ℓ2 norm of convolutions whose padding copies the input: circular, reflect, replicate."""

import math
from collections import Counter
from dataclasses import replace

from torch import nn

from opnorm._core.convolution import conv_geometry, pad_index
from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import CONV, Shape, is_standard
from opnorm._core.rounding import PRODUCT
from opnorm.norms.spectral.frequency_response import polyphase
from opnorm.norms.spectral.group_selection import leading_groups
from opnorm.norms.spectral.upper_bound import Interval, certify, certify_on_circle

__all__ = ["circular_interval", "inner_bound", "padding_bound"]


def inner_bound(layer: nn.Module, in_shape: Shape, relative_width: float) -> float | None:
    """A lower bound for a convolution whose padding copies the input; None for any other layer.

    The outputs that read no padding are a convolution of the input without any: a part of the rows of the layer's matrix.
    """
    if not is_standard(layer, *CONV) or layer.padding_mode == "zeros":
        return None
    geometry = conv_geometry(layer)  # type: ignore[arg-type]
    bare = geometry._replace(padding=((0, 0),) * len(geometry.kernel), mode="zeros")
    first = [-low % s for (low, _), s in zip(geometry.padding, geometry.stride, strict=True)]
    size = tuple(n - skipped for n, skipped in zip(in_shape[1:], first, strict=True))
    if any(n < 1 + d * (k - 1) for n, d, k in zip(size, bare.dilation, bare.kernel, strict=True)):
        return 0.0
    return certify(polyphase(weight_of(layer).detach(), bare, size), relative_width).lower


def circular_interval(layer: nn.Module, in_shape: Shape, relative_width: float) -> Interval | None:
    """The interval of a convolution whose circular padding closes the circle; None for any other layer."""
    if not is_standard(layer, *CONV) or layer.padding_mode != "circular":
        return None
    geometry, size = conv_geometry(layer), tuple(in_shape[1:])  # type: ignore[arg-type]
    circle = geometry.out_size(size)
    if any(m * s != n for m, s, n in zip(circle, geometry.stride, size, strict=True)):
        return None
    bare = geometry._replace(padding=((0, 0),) * len(size), mode="zeros")
    K, taps = weight_of(layer).detach(), list(zip(size, geometry.dilation, geometry.kernel, strict=True))
    if any(n < 1 + d * (k - 1) for n, d, k in taps):
        enough = tuple(n + d * k for n, d, k in taps)
        return certify_on_circle(polyphase(K, bare, enough), circle, relative_width)
    # without padding it is a part of the rows, and its smallest circle is the layer's own
    t, lower, rest = leading_groups(polyphase(K, bare, size), relative_width)
    found = certify_on_circle(t, circle, relative_width)
    lower = max(found.lower, lower)
    return replace(found, lower=lower, upper=max(found.upper, rest, lower))


def padding_bound(layer: nn.Module, in_shape: Shape, relative_width: float) -> float:
    """An upper bound for a convolution whose padding copies the input; infinite for any other layer.

    The norm of the convolution of the padded input, certified, times the norm of the padding, sqrt(∏_axes the largest number
    of copies of a position).
    """
    if not is_standard(layer, *CONV) or layer.padding_mode == "zeros":
        return math.inf
    geometry, size = conv_geometry(layer), tuple(in_shape[1:])  # type: ignore[arg-type]
    K, bare = weight_of(layer).detach(), geometry._replace(padding=((0, 0),) * len(size), mode="zeros")
    padded = [pad_index(n, *p, geometry.mode) for n, p in zip(size, geometry.padding, strict=True)]
    copies = math.prod(max(Counter(axis).values()) for axis in padded)
    upper = certify(polyphase(K, bare, tuple(map(len, padded))), relative_width).upper
    return upper * math.sqrt(copies) * (1 + PRODUCT)
