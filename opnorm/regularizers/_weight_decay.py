"""Weight decay: the squared length of the weights."""

import torch
from torch import Tensor, nn

from opnorm._core.layers import check_initialized
from opnorm._core.settings import check_number
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.spec import factory

__all__ = ["weight_decay"]


@factory("regularizer")
def weight_decay(lam: float = 5e-4, decoupled: bool = False) -> Regularizer:
    """λ Σ ‖W‖_2² over all weights of at least two axes (no biases, no batch norm).

    ``lam`` is λ. The gradient is 2 λ W, so ``torch.optim.SGD(weight_decay=w)`` is λ = w / 2. ``decoupled`` shrinks the
    weights by W ← (1 - 2 λ lr) W after each step instead, independent of the momentum.

    Source: Krogh & Hertz 1992; decoupled: Loshchilov & Hutter 2019.
    """
    check_number("lam", lam, "a strength of at least 0", least=0)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        check_initialized(model, "weight_decay")
        weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if not weights:
                return x.new_zeros(())
            lengths = torch.stack(torch._foreach_norm(weights))
            return lam * lengths.square().sum()

        @torch.no_grad()
        def shrink(lr: float) -> None:
            if weights:
                torch._foreach_mul_(weights, 1 - 2 * lam * lr)

        return Hooks(after_step=shrink) if decoupled else Hooks(penalty=penalty)

    return bind
