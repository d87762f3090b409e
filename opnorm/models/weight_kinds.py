"""What the tensors of a checkpoint are, by name and shape: matrices, kernels, embeddings, gains, or none of these."""

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm.errors import ModelError
from opnorm.models.low_rank import Change, is_adapter, open_adapter
from opnorm.models.weight_files import StoredTensor, open_weights
from opnorm.norms.matrix_norms import WeightNorms
from opnorm.norms.spectral.large_matrix import PanelMatrix

__all__ = ["Opened", "Weight", "open_all"]

GAINS = {"weight", "gamma", "scale", "gain", "g"}
"""The last parts of the names of vectors that multiply, one factor for each coordinate."""

SCALES = ("_scale_inv", "_scale")
"""What is added to the name of a weight in float8 for that of its scale."""

BLOCK = 128  # side of the squares of a weight that share a scale, where the shapes leave it open
STATISTICS = {"mean", "std", "running_mean", "running_var"}
OFFSET = re.compile(r"pos|token|query|cls", re.IGNORECASE)
DERIVED = re.compile(r"parametrizations\.|weight_(orig|g|v)$")


class Weight(NamedTuple):
    """A weight before it is read: what is known of it, how much there is to do, and its matrix, or its vector."""

    row: WeightNorms
    size: int
    open: Callable[[], PanelMatrix | Tensor]


class Opened(NamedTuple):
    """A checkpoint or adapter before its weights are read."""

    weights: dict[str, Weight]
    left_out: dict[str, str]
    remarks: tuple[str, ...]
    low_rank: bool


def open_all(path: str | Path) -> Opened:
    """The weights of a checkpoint or adapter; ModelError as :func:`opnorm.models.weight_files.open_weights`."""
    if is_adapter(path):
        adapter = open_adapter(path)
        weights = {name: _of_change(name, change) for name, change in adapter.changes.items()}
        replaced, left_out = _of_tensors(adapter.replaced)
        return Opened(weights | replaced, adapter.left_out | left_out, (), True)
    files = open_weights(path)
    return Opened(*_of_tensors(files.tensors), files.remarks, False)


def _of_change(name: str, change: Change) -> Weight:
    row = WeightNorms(name, "change", change.shape, change.A.dtype)
    return Weight(row, math.prod(change.shape), change.matrix)


def _of_tensors(tensors: Mapping[str, StoredTensor]) -> tuple[dict[str, Weight], dict[str, str]]:
    weights: dict[str, Weight] = {}
    left_out: dict[str, str] = {}
    for name, tensor in tensors.items():
        kind, reason = _kind(name, tensor)
        if reason:
            left_out[name] = reason
            continue
        scale = next((tensors[name + end] for end in SCALES if name + end in tensors), None)
        row = WeightNorms(name, kind, tensor.shape, tensor.dtype, note=_note(name, tensor, scale, tensors))
        weights[name] = Weight(row, math.prod(tensor.shape), _reader(tensor, kind, scale))
    return weights, left_out


def _kind(name: str, tensor: StoredTensor) -> tuple[str, str]:
    """What a tensor is, by its name and shape, or why it has no norm."""
    parts = name.split(".")
    last, parent = parts[-1].lower(), (parts[-2] if len(parts) > 1 else parts[-1]).lower()
    shape, axes = tensor.shape, len(tensor.shape)
    if name.endswith(SCALES):
        return "", "scales of weights in float8"
    if not hasattr(torch, tensor.dtype):
        return "", f"of type {tensor.dtype}, which torch does not know"
    if not tensor.dtype.startswith(("float", "bfloat", "qint", "quint")):
        return "", f"of type {tensor.dtype}: buffers, or quantized weights whose values need their program"
    if "bias" in last:
        return "", "biases"
    if last == "weight_mask":
        return "", "masks of pruned weights"
    if last in STATISTICS:
        return "", "statistics of data"
    if axes < 2:
        gain = axes == 1 and last in GAINS
        return ("diagonal", "") if gain else ("", "vectors and numbers that are no gain by their name")
    if shape[0] == 1 and axes > 2 and OFFSET.search(last):
        return "", "added to the input, so no map"
    if axes > 2:
        return "kernel", ""
    embedding = "embed" in parent or parent in ("wte", "wpe", "shared")
    return ("embedding" if embedding else "matrix"), ""


def _note(
    name: str, tensor: StoredTensor, scale: StoredTensor | None, tensors: Mapping[str, StoredTensor]
) -> str:
    if DERIVED.search(name):
        return "a part of a parametrization: the layer's own weight is computed from it"
    if f"{name.rpartition('.')[0]}.running_var" in tensors:
        return "of a batch normalization: its norm is that of weight / sqrt(running_var + eps), and eps is not in the file"
    if tensor.dtype.startswith("float8"):
        return (
            "float8, times its scale"
            if scale
            else "float8 without a scale in the file: the values as they are"
        )
    return ""


def _reader(
    tensor: StoredTensor, kind: str, scale: StoredTensor | None
) -> Callable[[], PanelMatrix | Tensor]:
    def opened() -> PanelMatrix | Tensor:
        W = tensor.read()
        if kind == "diagonal":
            return W
        M = PanelMatrix.of(W.reshape(len(W), -1) if W.numel() else W.new_zeros(len(W), 0))
        if scale is None or not tensor.dtype.startswith("float8"):
            return M
        factors, plain = _factors(scale.read().float(), M.shape), M.rows
        return PanelMatrix(M.shape, lambda a, b: plain(a, b).float() * factors(a, b))

    return opened


def _factors(scale: Tensor, shape: tuple[int, int]) -> Callable[[int, int], Tensor]:
    """The factor of each entry of some rows: one for all, or one for each row, or for each block."""
    grid = scale.reshape(1, 1) if scale.numel() == 1 else scale.reshape(len(scale), -1)
    blocks = []
    for n, count in zip(shape, grid.shape, strict=True):
        size = BLOCK if -(-n // BLOCK) == count else n // count
        if not size or -(-n // size) != count:
            raise ModelError(f"its scale has the shape {tuple(scale.shape)}, which does not fit {shape}")
        blocks.append(size)
    across = torch.arange(shape[1]) // blocks[1]
    return lambda a, b: grid[(torch.arange(a, b) // blocks[0])[:, None], across]
