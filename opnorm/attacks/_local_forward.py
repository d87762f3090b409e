"""Forward passes of images that differ from known ones within a window.

The first convolutions of a network see a change of some pixels at few places. Only there are they evaluated, on patches of
the images; at all other places their values are those of the known images. All values are the same up to rounding.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.folding import Uses
from opnorm._core.frozen_layers import FrozenConv2d
from opnorm._core.outputs import output_of
from opnorm._core.surrogate import Surrogate, replace_modules
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
    layers = _first_layers(copy, x)
    if sum(_is_convolution(layer) for layer in layers) < 2:
        return None
    first = _FirstLayers(layers)
    replace_modules(
        copy, {layer: _Evaluated(first, number) if number else first for number, layer in enumerate(layers)}
    )
    return LocalForward(model, copy, first)


class LocalForward:
    """The logits of images that are near others, whose values it remembers from call to call.

    Attributes:
        model: makes full passes.
        network: a copy with its first layers in one module; None after a pass that failed or did not call them one after
            another, as networks may for another size of the batch. From then on the model makes all passes.
    """

    def __init__(self, model: nn.Module, network: nn.Module, first: "_FirstLayers") -> None:
        self.model, self.first = model, first
        self.network: nn.Module | None = network
        self.base: Tensor | None = None
        self.known: list[Tensor] = []

    def __call__(self, base: Tensor, row: Tensor, z: Tensor) -> Tensor:
        """The logits (N, K) of z (N, C, H, W), where z[i] differs little from base[row[i]]; base is (R, C, H, W)."""
        if self.network is not None:
            try:
                self._remember(self.network, base)
                return self._pass(self.network, z, [known[row] for known in self.known])
            except Exception as e:  # whatever a user's network raises when its layers are replaced
                if e is self.first.fault:
                    raise
                self.network = None
        return output_of(self.model, z)

    def _remember(self, network: nn.Module, base: Tensor) -> None:
        """Inputs and outputs of the first layers for the base, where it is not as before."""
        if self.base is None or self.base.shape != base.shape:
            self._pass(network, base)
            self.known = self.first.last
        elif (new := (self.base != base).flatten(1).any(1)).any():
            self._pass(network, base[new])
            for known, value in zip(self.known, self.first.last, strict=True):
                known[new] = value
        self.base = base.clone()

    def _pass(self, network: nn.Module, x: Tensor, near: Sequence[Tensor] = ()) -> Tensor:
        first = self.first
        first.near, first.rows, first.calls = near, len(x), 0
        logits = output_of(network, x)
        if first.calls != len(first.layers):
            raise RuntimeError(f"{first.calls} calls of {len(first.layers)} layers; expected one of each")
        return logits


class _FirstLayers(nn.Module):
    """Convolutions and elementwise functions, one after another.

    Attributes:
        near: inputs and outputs like those of the next call, which differ from it within a window; or nothing.
        rows: of the next call.
        calls: of the layers in this pass of the network.
        out: of the last call.
        last: inputs and outputs of the last call without ``near``; copies, as the network may write to its own.
        fault: an error of this module's own.
    """

    near: Sequence[Tensor]
    rows: int
    calls: int
    out: Tensor
    last: list[Tensor]
    fault: Exception | None = None

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, F, H', W')."""
        if len(x) != self.rows:
            raise RuntimeError(f"{len(x)} inputs of the first layers; expected those of {self.rows} images")
        self.calls += 1
        if self.near:
            if x.shape != self.near[0].shape:
                raise RuntimeError(
                    f"inputs of the first layers of shape {tuple(x.shape)}; expected {tuple(self.near[0].shape)}"
                )
            try:
                self.out = self._changed(x, *self.near)
            except Exception as e:
                self.fault = e
                raise
        else:
            self.out = self.layers(x)
            self.last = [x.clone(), self.out.clone()]
        return self.out

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


class _Evaluated(nn.Module):
    """In the place of one of the first layers, for all of which the first one computes."""

    def __init__(self, first: _FirstLayers, number: int) -> None:
        super().__init__()
        self.first, self.number = first, number

    def forward(self, x: Tensor) -> Tensor:
        """The same."""
        if x is not self.first.out or self.first.calls != self.number:
            raise RuntimeError(f"layer {self.number} of the first ones is not called after the one before it")
        self.first.calls += 1
        return x


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
    if type(layer) is nn.Conv2d or isinstance(layer, FrozenConv2d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) in ELEMENTWISE and type(layer) is not nn.GLU


def _first_layers(network: nn.Module, x: Tensor) -> list[nn.Module]:
    """Layers of which each alone takes the outputs of the one before; the first is a convolution.

    None of them where the network reads values, on which it may depend which layers it calls.
    """
    calls: Counter[nn.Module] = Counter()
    record: list[tuple[nn.Module, Tensor, Any]] = []
    uses = Uses()

    def after(layer: nn.Module, inputs: tuple[Tensor, ...], out: Any) -> None:
        calls[layer] += 1
        if inputs:  # not by keyword
            record.append((layer, inputs[0], out))  # kept, so that no other tensor gets its id
            if out is not inputs[0]:
                uses.counts[id(out)] = 0

    with ExitStack() as hooks, torch.no_grad(), uses:
        for layer in filter(_is_known, network.modules()):
            hooks.enter_context(layer.register_forward_hook(after))
        output_of(network, x)
    found: list[nn.Module] = []
    before: Tensor | None = None
    for layer, value, out in [] if uses.values_read else record:
        if before is None and not _is_convolution(layer):
            continue
        alone = before is None or (value is before and uses.counts[id(value)] == 1)
        if not alone or calls[layer] != 1 or out is value or value.ndim != 4 or len(value) != len(x):
            break
        found.append(layer)
        before = out
    return found
