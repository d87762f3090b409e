"""Forward passes of images that differ from known ones within a window.

The first convolutions of a network see a change of some pixels at few places. Only there are they evaluated, on patches of
the images; at all other places their values are those of the known images. All values are the same up to rounding.
"""

from collections import Counter
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.folding import Uses
from opnorm._core.outputs import output_of
from opnorm._core.surrogate import Surrogate, replace_module
from opnorm._core.thin_convolution import ThinConv2d
from opnorm.norms.nonlinear import ELEMENTWISE

__all__ = ["LocalForward", "local_forward"]

SHARE = 0.5  # of the places of the last convolution; where more change, all are evaluated


def local_forward(model: nn.Module, x: Tensor) -> "LocalForward | None":
    """For a float32 surrogate on a CPU that begins with two convolutions or more; otherwise None.

    Args:
        model: stays unchanged.
        x: a few inputs, to find which layer follows which.
    """
    if not isinstance(model, Surrogate) or model.bf16 or x.device.type != "cpu" or x.ndim != 4:
        return None
    copy = deepcopy(model)
    names = _first_layers(copy, x)
    layers = [copy.get_submodule(name) for name in names]
    if sum(_is_convolution(layer) for layer in layers) < 2:
        return None
    first = _FirstLayers(layers)
    for name in names:
        replace_module(copy, name, first if name == names[0] else nn.Identity())
    return LocalForward(copy, first)


class LocalForward:
    """The logits of images that are near others, whose values it remembers from call to call."""

    def __init__(self, network: nn.Module, first: "_FirstLayers") -> None:
        self.network, self.first = network, first
        self.base: Tensor | None = None
        self.known: list[Tensor] = []

    def __call__(self, base: Tensor, row: Tensor, z: Tensor) -> Tensor:
        """The logits (N, K) of z (N, C, H, W), where z[i] differs little from base[row[i]]; base is (R, C, H, W)."""
        if self.base is None or self.base.shape != base.shape:
            output_of(self.network, base)
            self.known = list(self.first.last)
        elif (new := (self.base != base).flatten(1).any(1)).any():
            output_of(self.network, base[new])
            for known, value in zip(self.known, self.first.last, strict=True):
                known[new] = value
        self.base = base.clone()
        self.first.near = [known[row] for known in self.known]
        try:
            return output_of(self.network, z)
        finally:
            self.first.near = []


class _FirstLayers(nn.Module):
    """Convolutions and elementwise functions, one after another.

    Attributes:
        near: inputs and outputs like those of the next call, which differ from it within a window; or nothing.
        last: inputs and outputs of the last call without ``near``.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.near: list[Tensor] = []
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, H', W')."""
        if self.near:
            return self._changed(x, *self.near)
        out: Tensor = self.layers(x)
        self.last = [x, out]
        return out

    def _changed(self, x: Tensor, base: Tensor, out: Tensor) -> Tensor:
        """The outputs of x, written into those of the base."""
        changed = (x != base).any(1)
        convolutions = [layer for layer in self.layers if _is_convolution(layer)]
        rows, columns = (
            _places(changed.any(2 - axis), [_geometry(layer, axis) for layer in convolutions])
            for axis in (0, 1)
        )
        if rows[-1].shape[1] * columns[-1].shape[1] > SHARE * out.shape[2] * out.shape[3]:
            full: Tensor = self.layers(x)
            return full
        item = torch.arange(len(x))[:, None, None]
        patch, size, places = x, x.shape[2:], iter(zip(rows, columns, strict=True))
        for layer in self.layers:
            if not _is_convolution(layer):
                patch = layer(patch)
                continue
            assert isinstance(layer, nn.Conv2d)
            h, w = next(places)
            inside = ((h >= 0) & (h < size[0]))[:, :, None] & ((w >= 0) & (w < size[1]))[:, None, :]
            if patch is x:
                h, w = h.clamp(0, size[0] - 1), w.clamp(0, size[1] - 1)
                patch = x.permute(0, 2, 3, 1)[item, h[:, :, None], w[:, None, :]].permute(0, 3, 1, 2)
            patch.masked_fill_(~inside[:, None], 0)
            patch = F.conv2d(patch, layer.weight, layer.bias, layer.stride, 0, layer.dilation, layer.groups)
            size = torch.Size(_size(n, _geometry(layer, axis)) for axis, n in enumerate(size))
        h, w = next(places)
        out.permute(0, 2, 3, 1)[item, h[:, :, None], w[:, None, :]] = patch.permute(0, 2, 3, 1)
        return out


# ---------------------------------------------------------------- places along an axis

Geometry = tuple[int, int, int, int]  # kernel size, stride, padding, dilation


def _geometry(layer: nn.Module, axis: int) -> Geometry:
    names = ("kernel_size", "stride", "padding", "dilation")
    kernel, stride, padding, dilation = (getattr(layer, name)[axis] for name in names)
    return kernel, stride, padding, dilation


def _size(n: int, how: Geometry) -> int:
    """The number of a convolution's outputs for n inputs."""
    kernel, stride, padding, dilation = how
    return (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def _places(changed: Tensor, convolutions: list[Geometry]) -> list[Tensor]:
    """Where each convolution is to be evaluated if its first inputs (N, n) have changed.

    Returns:
        For each convolution the inputs that it needs (N, m), beyond the image where it pads; at the end the outputs of the
        last one, among which are all that change.
    """
    n, none = changed.shape[1], ~changed.any(1)
    first = changed.int().argmax(1)
    last = (n - 1 - changed.flip(1).int().argmax(1)).masked_fill(none, 0)
    for how in convolutions:
        kernel, stride, padding, dilation = how
        n = _size(n, how)
        first = -((dilation * (kernel - 1) - padding - first) // stride)
        first = first.clamp(0, n - 1)
        last = ((last + padding) // stride).clamp(max=n - 1).maximum(first)
    count = int((last - first).max()) + 1
    start = first.clamp(max=n - count)
    places = [start[:, None] + torch.arange(count)]
    for kernel, stride, padding, dilation in reversed(convolutions):
        start, count = start * stride - padding, (count - 1) * stride + dilation * (kernel - 1) + 1
        places.append(start[:, None] + torch.arange(count))
    return places[::-1]


# ---------------------------------------------------------------- the layers


def _is_convolution(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d)


def _is_known(layer: nn.Module) -> bool:
    """Whether patches may go through the layer."""
    if type(layer) in (nn.Conv2d, ThinConv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in ELEMENTWISE and type(layer) is not nn.GLU


def _first_layers(network: nn.Module, x: Tensor) -> list[str]:
    """The names of layers of which each alone takes the outputs of the one before; the first is a convolution."""
    names = {m: name for name, m in network.named_modules() if _is_known(m)}
    calls: Counter[nn.Module] = Counter()
    record: list[tuple[nn.Module, Tensor, Any]] = []
    uses = Uses()

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
        calls[layer] += 1
        record.append((layer, inputs[0], out))  # kept, so that no other tensor gets its id
        if out is not inputs[0]:
            uses.counts[id(out)] = 0

    with ExitStack() as hooks, torch.no_grad(), uses:
        for layer in names:
            hooks.enter_context(layer.register_forward_hook(after))
        output_of(network, x)
    found: list[str] = []
    before: Tensor | None = None
    for layer, value, out in record:
        if before is None and not _is_convolution(layer):
            continue
        alone = before is None or (value is before and uses.counts[id(value)] == 1)
        if not alone or calls[layer] != 1 or out is value or value.ndim != 4 or len(value) != len(x):
            break
        found.append(names[layer])
        before = out
    return found
