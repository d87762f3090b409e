"""Random numbers that belong to a point, not to a batch.

A draw depends on (seed, stream, the point's own pixels) and on nothing else, so the verdict on a point is the same in
any batch, in any order and on any device, and the global generators are never touched. The numbers come from the
SplitMix64 finalizer over a counter (Steele, Lea & Flood 2014), in int64 tensors that wrap around.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["normal", "point_keys", "uniform"]

GOLDEN = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIERS = (0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64)


def _mix(z: Tensor) -> Tensor:
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        z = (z ^ _right(z, shift)) * multiplier
    return z ^ _right(z, 31)


def _right(z: Tensor, bits: int) -> Tensor:
    """Logical shift: torch's own one copies the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def point_keys(
    x: Float[Tensor, "batch *shape"], seed: int, stream: int | Int[Tensor, " batch"] = 0
) -> Int[Tensor, " batch"]:
    """One 64-bit key a point, from its pixels (as float32), the seed and the stream (which restart, which target)."""
    bits = x.detach().float().contiguous().flatten(1).view(torch.int32).long()
    place = torch.arange(1, bits.shape[1] + 1, device=x.device) * GOLDEN
    content = _mix(bits + place).sum(1)
    salt, stream = (torch.as_tensor(s, dtype=torch.int64, device=x.device) for s in (seed, stream))
    return _mix(_mix(content + _mix(salt + GOLDEN)) + (stream + 1) * GOLDEN)


def uniform(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "batch count"]:
    """``count`` float64 numbers in (0, 1) for each key."""
    counter = torch.arange(1, count + 1, device=keys.device) * GOLDEN
    return (_right(_mix(keys[:, None] + counter), 12).double() + 0.5) * 2.0**-52


def normal(keys: Int[Tensor, " batch"], count: int) -> Float[Tensor, "batch count"]:
    """``count`` standard normal float64 numbers for each key (Box and Muller)."""
    u = uniform(keys, 2 * count)
    return (-2 * u[:, :count].log()).sqrt() * (2 * math.pi * u[:, count:]).cos()
