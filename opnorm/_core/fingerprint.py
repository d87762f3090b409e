"""Hashes of networks and tensors, by which stored results are found."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_tensor", "of_network"]


def of_network(model: nn.Module) -> Any:
    """A SHA-256 object fed with a network's text, weights and buffers; the code of its modules is not included."""
    digest = hashlib.sha256(repr(model).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        add_tensor(digest, tensor)
    return digest


def add_tensor(digest: Any, tensor: Tensor) -> None:
    """Feed type, shape and values to a digest."""
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
