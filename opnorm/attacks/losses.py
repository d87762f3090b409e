"""What attacks climb: one number a point, larger where the model is more wrong, or further from its clean answer.

Logits (B, K) come in float32 at least. A loss is held against the labels (B,), or against the model's own logits at the
clean points (B, K); the latter kind has a zero gradient at the clean point itself, so it needs a random start.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "AGAINST_CLEAN",
    "AGAINST_LABELS",
    "LOSSES",
    "Loss",
    "distance",
    "dlr",
    "kl",
    "log_odds",
    "margin",
    "wide",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds m = log Σ_{i≠y} exp(z_i) - z_y of being wrong, of which cross-entropy is log(1 + exp(m)).

    So both climb in the same direction, and rank points alike, but the gradient of m does not vanish in float
    arithmetic when the model is sure, as that of cross-entropy does from odds of about 1e7 on.
    """
    return _others(logits, y).logsumexp(1) - _right(logits, y)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max_{i≠y} z_i - z_y.

    Source: Carlini & Wagner 2017.
    """
    return _others(logits, y).amax(1) - _right(logits, y)


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """The margin over the gap between the largest and the third largest logit, so that the scale of logits cancels.

    With two classes there is no third logit, and the quotient would be ±1 everywhere: then it is the margin alone.

    Source: Croce & Hein 2020.
    """
    if logits.shape[1] < 3:
        return margin(logits, y)
    top = logits.topk(3, dim=1).values
    return margin(logits, y) / (top[:, 0] - top[:, 2] + 1e-12)


def kl(logits: Tensor, clean: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_i p_i log(p_i / q_i), with p = softmax(clean) and q = softmax(logits).

    Source: Zhang et al. 2019 (TRADES).
    """
    return F.kl_div(logits.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)


def distance(q: float) -> Loss:
    """‖logits - clean‖_q; where several logits are furthest for q = inf, they share its subgradient.

    Source: Roth et al. 2020, Theorem 1.
    """

    def loss(logits: Tensor, clean: Tensor) -> Tensor:
        return torch.linalg.vector_norm(logits - clean, q, dim=1)

    return loss


def wide(logits: Tensor) -> Tensor:
    """In float32 at least, as all of these losses want their logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -math.inf)


def _right(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


AGAINST_LABELS: dict[str, Loss] = {"ce": log_odds, "cw": margin, "dlr": dlr}
AGAINST_CLEAN: dict[str, Loss] = {
    "kl": kl, "l1": distance(1), "l2": distance(2), "linf": distance(math.inf)
}  # fmt: skip
LOSSES = AGAINST_LABELS | AGAINST_CLEAN
