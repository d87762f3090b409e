"""Attention and gates of torch, written out in operations that have bounds of their own."""

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from opnorm.errors import BoundError

__all__ = ["EXPANSIONS"]


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(s Q Kᵀ + M) V, as :func:`torch.nn.functional.scaled_dot_product_attention`."""
    if dropout_p:
        raise BoundError("drops at random even in eval mode")
    if enable_gqa:
        copies = query.shape[-3] // key.shape[-3]
        key, value = (t.repeat_interleave(copies, -3) for t in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * (query @ key.transpose(-2, -1))
    if is_causal:
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(future, -math.inf)
    if attn_mask is not None:
        masks = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if masks else scores + attn_mask
    return scores.softmax(-1) @ value


def multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, None]:
    """As :func:`torch.nn.functional.multi_head_attention_forward`, without its weights as a result."""
    given = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    given.apply_defaults()
    a = given.arguments
    query, heads_count = a["query"], a["num_heads"]
    if a["training"] and a["dropout_p"]:
        raise BoundError("drops at random even in eval mode")
    if a["need_weights"]:
        raise BoundError("returns the attention map, too; expected need_weights=False")
    added = [a[name] for name in ("bias_k", "bias_v", "static_k", "static_v")]
    if query.ndim != 3 or any(v is not None for v in added) or a["add_zero_attn"]:
        raise BoundError("keys or values that are added, or no batch axis, are not known")
    separate = [a[f"{name}_proj_weight"] for name in "qkv"]
    weights = separate if a["use_separate_proj_weight"] else a["in_proj_weight"].chunk(3)
    biases = (None,) * 3 if a["in_proj_bias"] is None else a["in_proj_bias"].chunk(3)

    def heads(t: Tensor, W: Tensor, bias: Tensor | None) -> Tensor:
        """(N, B, E) -> (B, heads, N, E / heads)."""
        t = F.linear(t, W, bias)
        return t.reshape(t.shape[0], t.shape[1], heads_count, -1).permute(1, 2, 0, 3)

    q, k, v = map(heads, (query, a["key"], a["value"]), weights, biases)
    mask, padded = a["attn_mask"], a["key_padding_mask"]
    if mask is not None and mask.ndim == 3:
        mask = mask.reshape(q.shape[0], heads_count, *mask.shape[1:])
    allowed = None if mask is None else _additive(mask, q)
    if padded is not None:
        padding = _additive(padded, q)[:, None, None, :]
        allowed = padding if allowed is None else allowed + padding
    y = attention(q, k, v, allowed).permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], -1)
    return F.linear(y, a["out_proj_weight"], a["out_proj_bias"]), None


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Of a mask that is true where nothing is seen: 0 and -∞."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -math.inf)


def gated(input: Tensor, dim: int = -1) -> Tensor:
    """As :func:`torch.nn.functional.glu`."""
    a, b = input.chunk(2, dim)
    return a * b.sigmoid()


EXPANSIONS: dict[str, Callable[..., Any]] = {
    "glu": gated,
    "scaled_dot_product_attention": attention,
    "multi_head_attention_forward": multi_head,
}
"""By the name of a function of torch."""
