"""The losses that attacks maximize: (logits (B, K), reference) -> (B,).

Logits are in float32 at least. The reference is the labels (B,), or the model's own logits at the clean points (B, K), for
which the gradient at the clean point itself is zero, so that a random start is needed.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from opnorm._core.attack_settings import CLEAN_LOSSES, LABEL_LOSSES
from opnorm._core.lp import lp_norm, scaled_norm

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
    "rank_targets",
    "towards",
    "wide",
]

Loss = Callable[[Tensor, Tensor], Tensor]


def log_odds(logits: Tensor, y: Tensor) -> Tensor:
    """The log-odds m = log Σ_{i≠y} exp(z_i) - z_y of being wrong, of which cross-entropy is log(1 + exp(m)).

    Both have the same direction and order of points, but the gradient of m does not vanish in float arithmetic where the
    model is confident, as that of cross-entropy does from odds of about 1e7 on.
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
    if q == 2:
        return lambda logits, clean: scaled_norm(logits - clean, 2, 1)
    return lambda logits, clean: lp_norm(logits - clean, q)


def towards(loss: str) -> Loss:
    """A loss with pairs (B, 2) of label y and target t as reference, larger the closer the prediction is to t.

    "cw" is z_t - z_y, "ce" the log-odds of t, and "dlr" (z_t - z_y) / (z_1 - (z_3 + z_4) / 2) with z_1 ≥ z_2 ≥ ... sorted;
    with fewer than 4 classes that is z_t - z_y alone.

    Source: Croce & Hein 2020, Eq. 7.
    """

    def value(logits: Tensor, pair: Tensor) -> Tensor:
        y, target = pair.unbind(1)
        if loss == "ce":
            return -log_odds(logits, target)
        gap = _right(logits, target) - _right(logits, y)
        if loss == "cw" or logits.shape[1] < 4:
            return gap
        top = logits.topk(4, dim=1).values
        return gap / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)

    return value


def rank_targets(logits: Tensor, y: Tensor, count: int) -> Tensor:
    """The wrong classes with the largest clean logits (B, min(count, K - 1)), largest first."""
    ranked = _others(logits, y).argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(count, logits.shape[1] - 1)]


def wide(logits: Tensor) -> Tensor:
    """In float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _others(logits: Tensor, y: Tensor) -> Tensor:
    return logits.scatter(1, y[:, None], -math.inf)


def _right(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]).squeeze(1)


AGAINST_LABELS: dict[str, Loss] = dict(zip(LABEL_LOSSES, (log_odds, margin, dlr), strict=True))
AGAINST_CLEAN: dict[str, Loss] = dict(
    zip(CLEAN_LOSSES, (kl, distance(1), distance(2), distance(math.inf)), strict=True)
)
LOSSES = AGAINST_LABELS | AGAINST_CLEAN
