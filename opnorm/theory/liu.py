"""Bounds on the input gradient by the norms of the weights, and the gradient itself (Liu et al. 2020)."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import LINEAR_OR_CONV, in_float64, is_standard
from opnorm._core.linear_map import linear_map
from opnorm._core.lp import lp_norm, power_of_two
from opnorm._core.modes import evaluating, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.attacks._checks import check_logits
from opnorm.errors import ModelError
from opnorm.models.modules import ConvexSum
from opnorm.models.stages import PreActivated
from opnorm.norms.network.lipschitz import lipschitz_bound
from opnorm.theory.chain import BLOCKS, ChainLayer, chain_layers

__all__ = ["BoundFactor", "GradientBound", "input_gradient_bound"]


class BoundFactor(NamedTuple):
    """The factor of one layer or block in the bound.

    Attributes:
        name: in the model.
        factor: ‖W_l‖_2 (Frobenius) of a linear or convolutional layer; max(shortcut, branch) of a block; the Lipschitz
            constant of anything else, which makes up C.
        sum: α_l + β_l of a block: 1 with convex aggregation, 2 with a plain sum; 1 elsewhere.
        kind: "weight", "block" or "other".
    """

    name: str
    factor: float
    sum: float
    kind: str


class GradientBound(NamedTuple):
    """Bounds and measured values, for K logits and B points.

    Attributes:
        factors: of all but the last layer, in order.
        rows: (K,) float64: ‖w_{L+1,j}‖_2.
        logits: (K,) float64: the bound on ‖∂ŷ_j/∂x‖_2, the same for every x.
        measured_logits: (B, K): ‖∂ŷ_j/∂x‖_2.
        loss: (B,) float64: Σ_j |p_j - 1[j = y]| · logits_j, the bound on ‖∇_x ℓ_ce‖_2 by Eq. 14.
        measured_loss: (B,): ‖∇_x ℓ_ce‖_2.
    """

    factors: tuple[BoundFactor, ...]
    rows: Tensor
    logits: Tensor
    measured_logits: Tensor
    loss: Tensor
    measured_loss: Tensor

    @property
    def constant(self) -> float:
        """C: the product over layers that are neither a weight nor a block; 1 for a plain ReLU network."""
        return math.prod(f.factor for f in self.factors if f.kind == "other")


def input_gradient_bound(model: nn.Module, x: Tensor, y: Tensor) -> GradientBound:
    """‖∂ŷ_j/∂x‖_2 and ‖∇_x ℓ_ce‖_2 at every point, and bounds on them by the weights.

    Chain (Eq. 15):           ‖∂ŷ_j/∂x‖_2 ≤ C ∏_{l≤L} ‖W_l‖_2 · ‖w_{L+1,j}‖_2
    Residual blocks (Eq. 24): ‖∂ŷ_j/∂x‖_2 ≤ C ‖W_1‖_2 · ∏_l (α_l + β_l) · σ(Θ) · ‖w_{L+1,j}‖_2

    The norms are Frobenius norms, those of convolutions of the whole matrix, not of the kernel, with which the inequality
    would be false. C is the product of the Lipschitz constants of activations, pooling and normalization: 1 for a ReLU
    network. (The paper bounds ‖J_l‖_2 of a ReLU by the layer's width, which is needlessly large.) σ bounds each of the 2^L
    products in the expansion of the blocks: ∏_l max(‖shortcut_l‖, ‖branch_l‖), at least 1 with identity shortcuts;
    ∏ (α_l + β_l) is 1 with convex aggregation and 2^L without. Eq. 24 omits the first block's branch; here it counts.

    Args:
        model: nested ``nn.Sequential`` of layers and of opnorm's residual blocks (a perceptron, VGG, ResNet, WRN), that ends
            with a linear layer; taken in eval mode.
        x: (B, *in).
        y: (B,) int64.

    Raises:
        ModelError: another kind of network, or a layer without a finite Lipschitz constant (which).
        AttackError: labels that are no classes of the model.

    Source: Liu et al. 2020, Eqs. 14, 15 and 21 to 24.
    """
    *body, head = chain_layers(model, x[:1]) or [ChainLayer("", model, x)]
    if not isinstance(head.module, nn.Linear):
        raise ModelError(f"the network ends with a {type(head.module).__name__}; expected a linear layer")
    factors = tuple(_block(p) if isinstance(p.module, BLOCKS) else _layer(p) for p in body)
    rows = lp_norm(weight_of(head.module).detach().double(), 2)
    bound = rows * math.prod(f.factor * f.sum for f in factors)
    with model_state_preserved(model), torch.enable_grad():
        z = x.detach().requires_grad_()
        logits = output_of(model, z)
        check_logits(logits, y)
        sums = [*logits.sum(0), nn.functional.cross_entropy(logits, y, reduction="sum")]
        gradients = [torch.autograd.grad(value, z, retain_graph=True)[0] for value in sums]
    *measured, measured_loss = (lp_norm(gradient, 2) for gradient in gradients)
    weights = (logits.detach().double().softmax(1) - nn.functional.one_hot(y, len(rows))).abs()
    return GradientBound(factors, rows, bound, torch.stack(measured, 1), weights @ bound, measured_loss)


def _layer(place: ChainLayer) -> BoundFactor:
    if is_standard(place.module, *LINEAR_OR_CONV):
        return BoundFactor(place.name, _frobenius(place), 1.0, "weight")
    bound = lipschitz_bound(nn.Sequential(place.module), place.example)
    if bound.value is None:
        raise ModelError(
            f"{place.name}: no Lipschitz constant, and so no bound on the gradient: {bound.reason}"
        )
    return BoundFactor(place.name, bound.value, 1.0, "other")


def _frobenius(place: ChainLayer) -> float:
    """‖W‖_F of the whole matrix; with zero padding the squared kernel, applied to ones, sums its squared entries."""
    layer = place.module
    if getattr(layer, "padding_mode", "zeros") != "zeros":  # two taps may fall on one pixel
        return float(lp_norm(linear_map(layer, place.in_shape).to_dense()[None], 2))
    squared = in_float64(layer)
    weight: Any = squared.weight
    largest = power_of_two(weight.detach().abs().amax())
    weight.data.div_(largest).square_()
    taps = linear_map(squared, place.in_shape)
    ones = torch.ones(1, *place.in_shape, dtype=torch.float64, device=taps.device)
    return float(largest * (taps @ ones).sum().sqrt())


def _block(place: ChainLayer) -> BoundFactor:
    """(α + β) and max(‖shortcut‖, ‖branch‖); the layers before a pre-activated block's branches belong to either."""
    block, x = place.module, place.example
    assert isinstance(block, BLOCKS), "checked by the caller"
    before, convex = 1.0, False
    if isinstance(block, PreActivated):
        before, convex = _path(place.name, block.activate, x), isinstance(block.aggregate, ConvexSum)
        with evaluating(block.activate):
            x = block.activate(x)
    branch = before * _path(place.name, block.branch, x)
    shortcut = 1.0 if block.shortcut is None else before * _path(place.name, block.shortcut, x)
    return BoundFactor(place.name, max(shortcut, branch), 1.0 if convex else 2.0, "block")


def _path(name: str, module: nn.Module, x: Tensor) -> float:
    return math.prod(_layer(p).factor for p in chain_layers(module, x, name))
