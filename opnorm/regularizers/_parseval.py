"""Parseval training: after each step, a small step of the weights towards orthonormal rows (Cisse et al. 2017)."""

import warnings
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.layers import LINEAR_OR_CONV
from opnorm.errors import ModelError, SpecError
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import Found, left_out, output_weight, trainable_layers
from opnorm.spec import factory

__all__ = ["parseval"]


@factory("regularizer")
def parseval(beta: float = 1e-4, output_decay: float = 1e-4) -> Regularizer:
    """The orthogonality of Parseval networks: W ← (1 + β) W - β W Wᵀ W after each step, for all rows of W.

    W is (out, in), for convolutions (out, in · k · k), and group by group where there are groups. Each singular value
    moves by itself, s ← s (1 + β - β s²), and towards 1 unless it is 0: W Wᵀ goes to the identity where W has at most as
    many rows as columns, and Wᵀ W where it has more (W Wᵀ cannot have full rank then; it becomes a projection). It is
    the kernel as a matrix that becomes orthonormal: the convolution itself can then have a norm of up to sqrt(k · k).

    The output layer, which is the last linear layer of the forward pass, is left out; it adds λ ‖W‖_2² to the loss,
    whose gradient is 2 λ W.

    "Parseval OC" of Liu et al. is this on any network. The "Parseval" beside it has residual sums that are convex as well,
    h = α · shortcut + (1 - α) · branch, which is a matter of the network and not done here.

    Args:
        beta: β in [0, 1): the step; the same after every step, whatever the learning rate.
        output_decay: λ of the output layer; 0 leaves it alone.

    Returns:
        A regularizer with a penalty (that of the output layer) and a step after each step; frozen weights are left alone,
        biases too. Binding it raises ModelError where there is no linear layer, or where a singular value is so large,
        s² ≥ 1 + 2 / β, that the iteration diverges; NormError where a weight is computed from other parameters.

    Raises:
        SpecError: β outside [0, 1), where it does not converge, or λ negative or not finite.

    Source: Cisse et al. 2017, Algorithm 1, who take a random part of the rows each time; all rows and the output layer as
    in Liu et al. 2020, section 6.1 and Appendix B.1.
    """
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not 0 <= beta < 1:
        raise SpecError(f"beta={beta!r}: expected a step in [0, 1), such as 1e-4; from 1 on it diverges")
    if (
        isinstance(output_decay, bool)
        or not isinstance(output_decay, int | float)
        or not 0 <= output_decay < float("inf")
    ):
        raise SpecError(f"output_decay={output_decay!r}: expected a strength of at least 0")

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, LINEAR_OR_CONV, "parseval", sized=False)
        output = output_weight(model, example, "parseval")
        if others := left_out(model, layers):
            warnings.warn(f"parseval leaves these weights as they are: {', '.join(others)}", stacklevel=2)
        stacks = _stacks([found for found in layers if found.weight is not output])
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
                small, left = _gram(W)
                factors = (small, W) if left else (W, small)
                stack.put(torch.baddbmm(W, *factors, beta=1 + beta, alpha=-beta))

        return Hooks(penalty=penalty, after_step=orthogonalize)

    return bind


class _Stack(NamedTuple):
    """Weights that are alike as matrices, so that one product serves all: (groups, rows, columns) of each layer."""

    layers: list[Found]
    shape: tuple[int, int, int]

    def matrices(self) -> Tensor:
        """A copy, (layers · groups, rows, columns)."""
        return torch.cat([found.weight.reshape(self.shape) for found in self.layers])

    def put(self, matrices: Tensor) -> None:
        for found, part in zip(self.layers, matrices.split(self.shape[0]), strict=True):
            found.weight.copy_(part.reshape(found.weight.shape))


def _stacks(layers: list[Found]) -> list[_Stack]:
    alike: dict[tuple, list[Found]] = defaultdict(list)
    for found in layers:
        groups = getattr(found.layer, "groups", 1)
        rows, columns = found.weight.shape[0] // groups, found.weight[0].numel()
        alike[(groups, rows, columns), found.weight.dtype, found.weight.device].append(found)
    return [_Stack(members, key[0]) for key, members in alike.items()]


def _gram(W: Tensor) -> tuple[Tensor, bool]:
    """The smaller one of W Wᵀ (True) and Wᵀ W (False): (W Wᵀ) W = W (Wᵀ W)."""
    left = W.shape[1] <= W.shape[2]
    return (W @ W.mT if left else W.mT @ W), left


@torch.no_grad()
def _check_convergence(stacks: list[_Stack], beta: float) -> None:
    """ModelError where |1 + β - β s²| ≥ 1 for a singular value s ≥ 1, from where on s only grows."""
    limit = 1 + 2 / beta
    for stack in stacks:
        W = stack.matrices().double()
        if bool(W.square().sum((1, 2)).amax() < limit):  # spares the eigenvalues
            continue
        if not bool(W.isfinite().all()):
            names = ", ".join(found.name for found in stack.layers)
            raise ModelError(f"parseval: a weight is NaN or infinite in one of the layers {names}")
        squares = torch.linalg.eigvalsh(_gram(W)[0])[:, -1].view(len(stack.layers), -1).amax(1)
        for found, square in zip(stack.layers, squares.tolist(), strict=True):
            if square >= limit:
                raise ModelError(
                    f"parseval: layer {found.name!r} has a singular value of {square**0.5:.4g}, and with beta={beta:g} the "
                    f"iteration diverges from {limit**0.5:.4g} on; expected a smaller beta or smaller initial weights"
                )
