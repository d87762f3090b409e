"""Which entries of memory tensors share."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["most_copies", "places_of", "same_memory", "storage_of"]


def storage_of(t: Tensor) -> int:
    """The address of the memory of a tensor and its views."""
    return t.untyped_storage().data_ptr()


def places_of(t: Tensor) -> Tensor:
    """The place in memory of each entry, counted in entries, in the tensor's shape."""
    count = t.untyped_storage().nbytes() // max(1, t.element_size())
    return torch.arange(count).as_strided(t.shape, t.stride(), t.storage_offset()).contiguous()


def most_copies(places: Tensor) -> int:
    """How often the place that is there most often is."""
    return int(places.unique(return_counts=True)[1].max()) if places.numel() else 0


def same_memory(a: Any, b: Any) -> bool:
    """Whether two values are tensors of the same entries, all of them in the same order."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
