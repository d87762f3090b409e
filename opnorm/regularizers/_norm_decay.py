"""Norm decay: the gradient of the exact ℓ1 or ℓ∞ norm of every layer, added to the loss's (Liang & Huang 2021)."""

import math

import torch
from torch import Tensor, nn

from opnorm._core.layers import CONV, LINEAR
from opnorm.errors import NormError, SpecError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import trainable_layers
from opnorm.spec import factory

__all__ = ["norm_decay"]

KINDS = {
    "linear": LINEAR,
    "conv": CONV,
    "batch_norm": (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d),
}


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

    (The authors' own code leaves out 1/N and overwrites h instead of averaging; this is the algorithm as printed.)

    Args:
        p: 1 or inf.
        beta: strength β.
        gamma: momentum γ in [0, 1).
        linear: treat fully connected layers.
        conv: treat convolutions.
        batch_norm: treat batch norms too, by the running statistics.

    Returns:
        A regularizer that edits gradients; frozen weights are left alone. Binding it to a model raises NormError where a
        layer's norm is not known, and ModelError where there is no layer to treat.

    Raises:
        SpecError: p is not 1 or inf, β is negative, γ outside [0, 1).

    Source: Liang & Huang 2021, Algorithm 1.
    """
    if p not in (1, math.inf):
        raise SpecError(
            f"p={p!r}: norm decay knows 1 and inf, whose norms are exact; for 2 see spectral regularizers"
        )
    if not 0 <= beta < math.inf:
        raise SpecError(f"beta={beta!r}: expected a strength of at least 0")
    if not 0 <= gamma < 1:
        raise SpecError(f"gamma={gamma!r}: expected a momentum in [0, 1)")
    norm = l1 if p == 1 else linf
    switches = {"linear": linear, "conv": conv, "batch_norm": batch_norm}
    treated = tuple(kind for name, kinds in KINDS.items() if switches[name] for kind in kinds)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, treated, "norm_decay")
        for name, layer, shape, _ in layers:  # tried out before training
            try:
                norm(layer, shape)
            except NormError as e:
                raise NormError(f"norm_decay cannot treat layer {name!r}: {e}") from None
        weights: dict[str, Tensor] = {found.name: found.weight for found in layers}
        momentum = {name: torch.zeros_like(w) for name, w in weights.items()}

        def edit_grads() -> None:
            with torch.enable_grad():
                total = torch.stack([norm(layer, shape) for _, layer, shape, _ in layers]).sum()
            signs = torch.autograd.grad(total, list(weights.values()))
            for (name, w), sign in zip(weights.items(), signs, strict=True):
                h = momentum[name].mul_(gamma).add_(sign, alpha=1 - gamma)
                if w.grad is None:
                    w.grad = torch.zeros_like(w)
                w.grad.add_(h, alpha=beta / len(layers))

        return Hooks(edit_grads=edit_grads, state=momentum)

    return bind
