"""Weight decay: the squared length of the weights."""

import torch
from torch import Tensor, nn

from opnorm._core.layers import check_initialized
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_choice, check_number
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.spec import factory

__all__ = ["weight_decay"]


@factory("regularizer")
def weight_decay(
    lam: float = 5e-4, decoupled: bool = False, form: str = "torch", biases: bool = False
) -> Regularizer:
    """Weight decay: (λ/2) Σ ‖W‖_2² with the gradient λ W, or λ Σ ‖W‖_2² with the gradient 2 λ W.

    The sum is over the weights of at least two axes. The default is ``torch.optim.SGD(weight_decay=lam)`` for these alone,
    and with ``biases`` for everything that is trained.

    Args:
        lam: λ.
        decoupled: shrink the weights by W ← (1 - λ lr) W, or 1 - 2 λ lr, after each step instead, whatever the momentum.
        form: "torch" for the gradient λ W, as in torch.optim and in the program of Liang & Huang; "squares" for λ Σ ‖W‖_2²,
            as Liu et al. write it.
        biases: decay biases, batch norms and other vectors, too.

    Source: Krogh & Hertz 1992; Liu et al. 2020, Eq. 6; λ = 5e-4: Zagoruyko & Komodakis 2016; decoupled: Loshchilov & Hutter
        2019.
    """
    check_number("lam", lam, "a strength of at least 0", least=0)
    check_choice("form", form, ("torch", "squares"))
    rate = lam if form == "torch" else 2 * lam

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        check_initialized(model, "weight_decay")
        weights: list[Tensor] = [p for p in model.parameters() if p.requires_grad and (biases or p.ndim > 1)]

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if not weights:
                return x.new_zeros(())
            lengths = torch.stack(torch._foreach_norm(weights))
            return rate / 2 * lengths.square().sum()

        @torch.no_grad()
        def shrink(lr: float) -> None:
            if weights:
                torch._foreach_mul_(weights, 1 - rate * lr)

        hooks = Hooks(after_step=shrink) if decoupled else Hooks(penalty=penalty)
        return bound(hooks, weights, "weight_decay")

    return bind
