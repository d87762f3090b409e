"""Which functions of torch are linear, which only move entries, and the largest row of a linear layer."""

from typing import Any

from torch import Tensor, nn

from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import is_standard
from opnorm.norms.network.rules import FunctionCall

__all__ = ["LINEAR", "MOVING", "largest_row"]

LINEAR = frozenset((
    "view", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "narrow", "select", "chunk", "split",
    "tensor_split", "unbind", "flip", "fliplr", "flipud", "roll", "rot90", "float", "double", "half", "bfloat16", "to",
    "type", "cpu", "cuda", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal",
    "hsplit", "vsplit", "getattr", "view_as", "reshape_as", "type_as", "expand", "expand_as", "repeat", "tile",
    "broadcast_to", "repeat_interleave", "getitem", "index_select", "gather", "take", "take_along_dim", "pad", "add",
    "iadd", "sub", "isub", "subtract", "mul", "imul", "multiply", "div", "truediv", "itruediv", "divide", "true_divide",
    "neg", "negative", "positive", "pos", "where", "masked_fill", "mean", "sum", "cat", "concat", "concatenate", "stack",
    "hstack", "vstack", "dstack", "matmul", "mm", "imatmul", "addmm", "linear", "conv1d", "conv2d", "conv3d",
    "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "batch_norm", "dropout", "avg_pool1d", "avg_pool2d",
    "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "interpolate", "upsample",
    "upsample_nearest", "upsample_bilinear", "fold", "unfold",
    "slice_scatter", "select_scatter", "diagonal_scatter", "index_put", "index_copy", "index_add", "scatter", "scatter_add",
    "masked_scatter", "copy", "as_strided",
))  # fmt: skip
"""Functions that are linear, up to a constant, in the one argument or in the list of them that depends on the input."""
MOVING = frozenset((
    "view", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "squeeze", "unsqueeze", "contiguous", "clone", "narrow", "select", "chunk", "split", "tensor_split",
    "unbind", "flip", "roll", "float", "double", "half", "bfloat16", "to", "type", "view_as", "reshape_as", "type_as",
    "expand", "expand_as", "getitem", "dropout",
))  # fmt: skip
"""Functions each of whose entries is an entry of their argument."""


def largest_row(layer: Any) -> float | None:
    """The largest ℓ2 norm of a row of the matrix of a linear layer or of a call of ``linear``; None of others."""
    if isinstance(layer, FunctionCall):
        weight = layer.argument(1, "weight") if layer.function == "linear" else None
    elif is_standard(layer, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        pads = getattr(layer, "padding_mode", "zeros") == "zeros"  # other modes read some entries twice
        weight = weight_of(layer) if pads else None
    else:
        weight = None
    return (
        float(weight.detach().double().flatten(1).norm(dim=1).max()) if isinstance(weight, Tensor) else None
    )
