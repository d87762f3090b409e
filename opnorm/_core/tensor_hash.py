"""Tensors in a hash."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_tensor"]


def add_tensor(digest: Any, tensor: "Tensor") -> None:
    """Feed type, shape and values to a digest of hashlib."""
    import torch

    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
