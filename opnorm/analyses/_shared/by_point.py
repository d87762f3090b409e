"""The points that count in a share, as text in a row, so that two networks can be compared point by point."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opnorm.errors import OpnormError

__all__ = ["pack", "unpack"]


def pack(counts: Tensor) -> str:
    """Booleans (N,) as hexadecimal text, 8 points in 2 digits.

    Example:
        >>> import torch
        >>> pack(torch.tensor([True, False, True]))
        'a0'
    """
    return np.packbits(counts.cpu().numpy()).tobytes().hex()


def unpack(text: str, points: int) -> NDArray[np.bool_]:
    """The booleans (N,) of :func:`pack`; OpnormError where the text does not hold so many.

    Example:
        >>> unpack("a0", 3).tolist()
        [True, False, True]
    """
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8))
    if not points <= len(bits) < points + 8:
        raise OpnormError(f"{text!s:.20} holds {len(bits)} points; expected {points}")
    return bits[:points].astype(bool)
