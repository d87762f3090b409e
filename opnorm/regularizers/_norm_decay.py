"""Norm decay: the gradient of the exact ℓ1 or ℓ∞ norm of every layer, added to the loss's (Liang & Huang 2021)."""

import math

import torch
from torch import Tensor, nn

from opnorm._core.layers import BATCH_NORM, CONV, LINEAR
from opnorm._core.settings import check_choice, check_number
from opnorm.errors import NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import trainable_layers
from opnorm.spec import factory

__all__ = ["norm_decay"]


@factory("regularizer")
def norm_decay(
    p: float,
    beta: float = 1e-3,
    gamma: float = 0.5,
    linear: bool = True,
    conv: bool = True,
    batch_norm: bool = False,
) -> Regularizer:
    """Decay of the exact operator norms ‖θ_l‖_p of the layers, p = 1 or ∞.

    After each backward pass, with p_l = ∂‖θ_l‖_p / ∂θ_l and N layers:

        h_l ← γ h_l + (1 - γ) p_l,        g_l ← g_l + (β / N) h_l

    as printed; the authors' own code leaves out 1/N and overwrites h instead of averaging.

    ``beta`` is β, ``gamma`` is γ in [0, 1). The layers are fully connected ones, convolutions and, by their running
    statistics, batch norms, where ``linear``, ``conv`` and ``batch_norm`` say so. Binding it raises NormError for a layer
    without a known norm.

    Source: Liang & Huang 2021, Algorithm 1.
    """
    check_choice("p", p, (1, math.inf))
    check_number("beta", beta, "a strength of at least 0", least=0)
    check_number("gamma", gamma, "a momentum in [0, 1)", least=0, below=1)
    norm = l1 if p == 1 else linf
    kinds = (*(LINEAR if linear else ()), *(CONV if conv else ()), *(BATCH_NORM if batch_norm else ()))

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, kinds, "norm_decay")
        for name, layer, shape, _ in layers:
            try:
                norm(layer, shape)
            except NormError as e:  # before training
                raise NormError(f"norm_decay cannot treat layer {name!r}: {e}") from None
        momentum = {target.name: torch.zeros_like(target.weight) for target in layers}

        def edit_grads() -> None:
            with torch.enable_grad():
                total = torch.stack([norm(layer, shape) for _, layer, shape, _ in layers]).sum()
            gradients = torch.autograd.grad(total, [target.weight for target in layers])
            for (name, _, _, weight), gradient in zip(layers, gradients, strict=True):
                h = momentum[name].mul_(gamma).add_(gradient, alpha=1 - gamma)
                weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad.add_(h, alpha=beta / len(layers))

        return Hooks(edit_grads=edit_grads, state=momentum)

    return bind
