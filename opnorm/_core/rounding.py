"""Rounding errors of float arithmetic."""

import torch

__all__ = ["PRODUCT", "unit_roundoff"]

PRODUCT = 1e-12
"""Relative: far above the float64 rounding of a few products with a layer, far below any digit shown."""


def unit_roundoff(dtype: torch.dtype) -> float:
    """The largest relative error of one rounding to nearest: 2^-53 for float64 and 2^-24 for float32."""
    return torch.finfo(dtype).eps / 2
