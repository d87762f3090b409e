"""Which convolutions of a network with frozen weights are computed in a faster way on this CPU."""

import torch
from torch import nn

from opnorm._core.thin_convolution import ThinConv2d, is_thin
from opnorm._core.winograd import WinogradConv2d, is_wide

__all__ = ["fast_convolutions"]


def fast_convolutions(network: nn.Module) -> dict[nn.Module, nn.Module]:
    """New modules for convolutions of few channels and, with AVX2, of many in float32."""
    layers = [m for name, m in network.named_modules() if name and isinstance(m, nn.Conv2d)]
    fast: dict[nn.Module, nn.Module] = {m: ThinConv2d(m) for m in layers if is_thin(m)}
    # with AVX-512 a usual convolution is up to twice as fast, and what surrounds the products is not
    if torch.backends.cpu.get_cpu_capability() == "AVX2":
        fast |= {m: WinogradConv2d(m) for m in layers if is_wide(m)}
    return fast
