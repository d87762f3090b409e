"""Random numbers by a hash instead of a generator: the same on every device and under every version of torch and numpy.

Numbers for a point depend on (seed, stream, the point's own pixels) alone, not on its batch, and the global generators
are never used. The hash is the SplitMix64 finalizer over a counter (Steele, Lea & Flood 2014), in int64 tensors that
wrap around.
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["normal", "permutation", "point_keys", "uniform"]

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


def permutation(n: int, seed: int) -> np.ndarray:
    """A permutation of ``range(n)``, for a seed of any size and sign."""
    mask = 2**64 - 1  # the seed is hashed first, so that two seeds do not give shifts of each other
    key = (seed * 0xD1342543DE82EF95 + 0x2545F4914F6CDD1D) & mask
    for _ in range(2):
        key = ((key ^ (key >> 32)) * 0xD6E8FEB86659FD93) & mask
    key ^= key >> 32
    hashes = _mix(torch.arange(1, n + 1) * GOLDEN + (key if key < 2**63 else key - 2**64))
    return np.argsort(hashes.numpy().view(np.uint64), kind="stable")
