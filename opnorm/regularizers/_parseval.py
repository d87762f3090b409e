"""Parseval training: after each step, a small step of the weights towards orthonormal rows (Cisse et al. 2017).

Each singular value moves by itself, s ← s (1 + β - β s²), and towards 1 unless it is 0: W Wᵀ converges to the identity
where W has at most as many rows as columns, and Wᵀ W where it has more (W Wᵀ cannot have full rank then; it becomes a
projection). The kernel becomes orthonormal as a matrix: the convolution itself can then have a norm of up to sqrt(k · k).

"Parseval OC" of Liu et al. is this on any network. Their "Parseval" has convex residual sums as well, h = α · shortcut +
(1 - α) · branch, which belong to the network: ``wrn(aggregation="convex")``.
"""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from opnorm._core.derived_weights import weight_parameters
from opnorm._core.layers import LINEAR_OR_CONV
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_number
from opnorm.errors import ModelError
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import (
    TargetLayer,
    groups_of,
    output_layer,
    parameters_of,
    trainable_layers,
    untreated_weights,
)
from opnorm.spec import factory

__all__ = ["parseval"]


@factory("regularizer")
def parseval(beta: float = 1e-4, output_decay: float = 1e-4) -> Regularizer:
    """The orthogonality of Parseval networks: W ← (1 + β) W - β W Wᵀ W after each step, for all rows of W.

    W is (out, in), for convolutions (out, in · k · k), and group by group where there are groups. The output layer, the last
    linear layer of the forward pass, is left out; it adds λ ‖W‖_2² to the loss, with the gradient 2 λ W.

    The step ``beta``, β in [0, 1), is the same after every step, whatever the learning rate; ``output_decay`` is λ.
    Binding it raises ModelError where a singular value is so large, s² ≥ 1 + 2 / β, that the iteration diverges.

    Source: Cisse et al. 2017, Algorithm 1, who take a random part of the rows each time; all rows and the output layer as
        in Liu et al. 2020, section 6.1 and Appendix B.1.
    """
    check_number("beta", beta, "a step in [0, 1), such as 1e-4; from 1 on it diverges", least=0, below=1)
    check_number("output_decay", output_decay, "a strength of at least 0", least=0)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, LINEAR_OR_CONV, "parseval", sized=False)
        output = weight_parameters(output_layer(model, example, "parseval")).get("weight")
        if others := untreated_weights(model, layers):
            warnings.warn(f"parseval leaves these weights as they are: {', '.join(others)}", stacklevel=3)
        hidden = [target for target in layers if target.weight is not output]
        groups = list(groups_of(hidden, _shape).values())
        if beta:
            _check_convergence(groups, beta)

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if not output_decay or output is None or not output.requires_grad:
                return x.new_zeros(())
            return output_decay * output.square().sum()

        @torch.no_grad()
        def orthogonalize(lr: float) -> None:
            for group in groups:
                W = _matrices(group)
                factors = (W @ W.mT, W) if W.shape[1] <= W.shape[2] else (W, W.mT @ W)
                new = torch.baddbmm(W, *factors, beta=1 + beta, alpha=-beta)
                for target, part in zip(group, new.chunk(len(group)), strict=True):
                    target.weight.copy_(part.reshape(target.weight.shape))

        hooks = Hooks(penalty=penalty, after_step=orthogonalize, constrain=lambda: orthogonalize(0.0))
        return bound(hooks, parameters_of(layers), "parseval")

    return bind


def _shape(target: TargetLayer) -> tuple[int, int, int]:
    """Groups, rows and columns of a weight as matrices."""
    groups: Any = getattr(target.layer, "groups", 1)
    return groups, target.weight.shape[0] // groups, target.weight[0].numel()


def _matrices(layers: list[TargetLayer]) -> Tensor:
    """A copy of weights of one shape, (layers · groups, rows, columns), so that one product serves all."""
    return torch.cat([target.weight.reshape(_shape(target)) for target in layers])


@torch.no_grad()
def _check_convergence(groups: list[list[TargetLayer]], beta: float) -> None:
    """ModelError where |1 + β - β s²| ≥ 1 for a singular value s ≥ 1, which then only grows."""
    limit = 1 + 2 / beta
    for group in groups:
        W = _matrices(group).double()
        if bool(W.square().sum((1, 2)).amax() < limit):  # no need for singular values
            continue
        if not bool(W.isfinite().all()):
            names = ", ".join(target.name for target in group)
            raise ModelError(f"parseval: a weight is NaN or infinite in one of the layers {names}")
        largest = torch.linalg.matrix_norm(W, 2).view(len(group), -1).amax(1)
        for target, s in zip(group, largest.tolist(), strict=True):
            if s**2 >= limit:
                raise ModelError(
                    f"parseval: layer {target.name!r} has a singular value of {s:.4g}, and with beta={beta:g} the iteration "
                    f"diverges from {limit**0.5:.4g} on; expected a smaller beta or smaller initial weights"
                )
