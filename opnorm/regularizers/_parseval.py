"""Parseval training: after each step, a small step of the weights towards orthonormal rows (Cisse et al. 2017).

Each singular value moves by itself, s ← s (1 + β - β s²), and towards 1 unless it is 0: W Wᵀ converges to the identity
where W has at most as many rows as columns, and Wᵀ W where it has more (W Wᵀ cannot have full rank then; it becomes a
projection). The kernel becomes orthonormal as a matrix: the convolution itself can then have a norm of up to sqrt(k · k).

"Parseval OC" of Liu et al. is this on any network. Their "Parseval" has convex residual sums as well, h = α · shortcut +
(1 - α) · branch, which belong to the network: ``wrn(aggregation="convex")``.
"""

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.layers import LINEAR_OR_CONV
from opnorm._core.settings import check_number
from opnorm.errors import ModelError
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import (
    TargetLayer,
    groups_of,
    output_weight,
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

    Args:
        beta: β in [0, 1): the step; the same after every step, whatever the learning rate.
        output_decay: λ of the output layer; 0 leaves it alone.

    Returns:
        A regularizer with a penalty (of the output layer) and a change after each step; frozen weights and biases are left
        alone. Binding it raises ModelError where there is no linear layer, or where a singular value is so large,
        s² ≥ 1 + 2 / β, that the iteration diverges; NormError where a weight is computed from other parameters.

    Raises:
        SpecError: β outside [0, 1), where it does not converge, or λ negative or not finite.

    Source: Cisse et al. 2017, Algorithm 1, who take a random part of the rows each time; all rows and the output layer as
        in Liu et al. 2020, section 6.1 and Appendix B.1.
    """
    check_number("beta", beta, "a step in [0, 1), such as 1e-4; from 1 on it diverges", least=0, below=1)
    check_number("output_decay", output_decay, "a strength of at least 0", least=0)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, LINEAR_OR_CONV, "parseval", sized=False)
        output = output_weight(model, example, "parseval")
        if others := untreated_weights(model, layers):
            warnings.warn(f"parseval leaves these weights as they are: {', '.join(others)}", stacklevel=2)
        hidden = [target for target in layers if target.weight is not output]
        stacks = [_Stack(group, _shape(group[0])) for group in groups_of(hidden, _shape).values()]
        if beta:
            _check_convergence(stacks, beta)

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            if not output_decay or not output.requires_grad:
                return x.new_zeros(())
            return output_decay * output.square().sum()

        @torch.no_grad()
        def orthogonalize(lr: float) -> None:
            for stack in stacks:
                W = stack.matrices()
                factors = (W @ W.mT, W) if W.shape[1] <= W.shape[2] else (W, W.mT @ W)
                stack.set(torch.baddbmm(W, *factors, beta=1 + beta, alpha=-beta))

        return Hooks(penalty=penalty, after_step=orthogonalize)

    return bind


class _Stack(NamedTuple):
    """Weights of one shape as matrices, (groups, rows, columns) of each layer, so that one product serves all."""

    layers: list[TargetLayer]
    shape: tuple[int, int, int]

    def matrices(self) -> Tensor:
        """A copy, (layers · groups, rows, columns)."""
        return torch.cat([target.weight.reshape(self.shape) for target in self.layers])

    def set(self, matrices: Tensor) -> None:
        for target, part in zip(self.layers, matrices.split(self.shape[0]), strict=True):
            target.weight.copy_(part.reshape(target.weight.shape))


def _shape(target: TargetLayer) -> tuple[int, int, int]:
    groups: Any = getattr(target.layer, "groups", 1)
    return groups, target.weight.shape[0] // groups, target.weight[0].numel()


@torch.no_grad()
def _check_convergence(stacks: list[_Stack], beta: float) -> None:
    """ModelError where |1 + β - β s²| ≥ 1 for a singular value s ≥ 1, which then only grows."""
    limit = 1 + 2 / beta
    for stack in stacks:
        W = stack.matrices().double()
        if bool(W.square().sum((1, 2)).amax() < limit):  # no need for singular values
            continue
        if not bool(W.isfinite().all()):
            names = ", ".join(target.name for target in stack.layers)
            raise ModelError(f"parseval: a weight is NaN or infinite in one of the layers {names}")
        largest = torch.linalg.matrix_norm(W, 2).view(len(stack.layers), -1).amax(1)
        for target, s in zip(stack.layers, largest.tolist(), strict=True):
            if s**2 >= limit:
                raise ModelError(
                    f"parseval: layer {target.name!r} has a singular value of {s:.4g}, and with beta={beta:g} the iteration "
                    f"diverges from {limit**0.5:.4g} on; expected a smaller beta or smaller initial weights"
                )
