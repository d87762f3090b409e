"""Norm decay: the gradient of the exact ℓ1 or ℓ∞ norm of every layer, added to the loss's (Liang & Huang 2021)."""

import math
import warnings
import weakref

import torch
from torch import Tensor, nn

from opnorm._core.convolution import conv_geometry
from opnorm._core.layers import BATCH_NORM, CONV, LINEAR
from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_choice, check_number
from opnorm.errors import ModelError, NormError
from opnorm.norms.exact.by_layer import l1, linf
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import TargetLayer, parameters_of, trainable_layers, untreated_weights
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
    form: str = "algorithm",
    normalize: bool = True,
) -> Regularizer:
    """Decay of the exact operator norms ‖θ_l‖_p of the layers, p = 1 or ∞.

    After each backward pass, with p_l = ∂‖θ_l‖_p / ∂θ_l and N layers:

        h_l ← γ h_l + (1 - γ) p_l,        g_l ← g_l + (β / N) h_l.

    A weight that is computed from other parameters (weight_norm, pruning) is trained through them. Binding it raises
    NormError for a layer without a known norm.

    Args:
        p: 1 or inf.
        beta: strength β.
        gamma: momentum γ in [0, 1).
        linear: treat fully connected layers.
        conv: treat convolutions.
        batch_norm: treat batch norms, by their running statistics.
        form: "algorithm", as above; or "code", as the program with which Table 2 was made: h_l ← γ h_l, overwritten by p_l
            where that is not 0, and never divided by N, which makes the same β N to N / (1 - γ) times as strong. It leaves
            out convolutions with groups, dilations or other padding than zeros, and those whose input is too small for the
            paper's Assumption 1.
        normalize: divide by N.

    Source: Liang & Huang 2021, Algorithm 1; "code" is the program of its authors.
    """
    check_choice("p", p, (1, math.inf))
    check_number("beta", beta, "a strength of at least 0", least=0)
    check_number("gamma", gamma, "a momentum in [0, 1)", least=0, below=1)
    check_choice("form", form, ("algorithm", "code"))
    kinds = (*(LINEAR if linear else ()), *(CONV if conv else ()), *(BATCH_NORM if batch_norm else ()))
    left_out = tuple(kind for kind in (*LINEAR, *CONV, *BATCH_NORM) if kind not in kinds)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = trainable_layers(model, example, kinds, "norm_decay", derived=True)
        if form == "code" and not (layers := [target for target in layers if _in_program(target)]):
            raise ModelError('norm_decay(form="code") finds no layer that its authors\' program treats')
        if others := untreated_weights(model, layers, left_out):
            warnings.warn(f"norm_decay leaves these weights as they are: {', '.join(others)}", stacklevel=3)
        divisor = len(layers) if normalize and form == "algorithm" else 1
        decay = _Decay(layers, p, beta / divisor, gamma, form)
        hooks = Hooks(edit_grads=decay.edit_grads, state=decay.momentum)
        return bound(hooks, decay.parameters, "norm_decay")

    return bind


Version = tuple["weakref.ref[Tensor]", int]
"""A tensor, and how often it had been changed in place."""


class _Decay:
    """The decay of some layers; ``momentum`` has the name of the layer, and of the parameter where it is not the weight."""

    def __init__(self, layers: list[TargetLayer], p: float, strength: float, gamma: float, form: str) -> None:
        self.layers, self.norm = layers, l1 if p == 1 else linf
        self.strength, self.gamma, self.form = strength, gamma, form
        self.parameters = parameters_of(layers)
        names = [f"{t.name}.{n}".removesuffix(".weight") for t in layers for n in t.parameters]
        self.momentum = {n: torch.zeros_like(p) for n, p in zip(names, self.parameters, strict=True)}
        self.left: list[Version] = []  # the gradients as the last edit left them
        for target in layers:
            try:
                self.norm(target.layer, target.in_shape)
            except NormError as e:  # before training
                raise NormError(f"norm_decay cannot treat layer {target.name!r}: {e}") from None

    def edit_grads(self) -> None:
        """The algorithm's lines 4 to 6."""
        if self.left and all(map(_unchanged, self.parameters, self.left)):
            raise ModelError(
                "norm_decay: the gradients are as the last edit_grads() left them; expected loss.backward() in between, "
                "of the model that it was bound to and no copy"
            )
        with torch.enable_grad():
            total = torch.stack([self.norm(t.layer, t.in_shape) for t in self.layers]).sum()
        gradients = torch.autograd.grad(total, self.parameters, materialize_grads=True)
        for weight, p, h in zip(self.parameters, gradients, self.momentum.values(), strict=True):
            h.mul_(self.gamma)
            if self.form == "code":
                h.copy_(torch.where(p != 0, p, h))
            else:
                h.add_(p, alpha=1 - self.gamma)
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
            weight.grad.add_(h, alpha=self.strength)
        self.left = [(weakref.ref(w.grad), w.grad._version) for w in self.parameters if w.grad is not None]


def _unchanged(weight: Tensor, left: Version) -> bool:
    return weight.grad is not None and weight.grad is left[0]() and weight.grad._version == left[1]


def _in_program(target: TargetLayer) -> bool:
    """Whether the authors' program treats the layer; Assumption 1 is k + ceil(p / s) s - p ≤ n on each axis."""
    if not isinstance(target.layer, nn.modules.conv._ConvNd):
        return True
    geometry = conv_geometry(target.layer)
    if geometry.groups != 1 or set(geometry.dilation) != {1} or geometry.mode != "zeros":
        return False
    axes = zip(target.in_shape[1:], geometry.kernel, geometry.stride, geometry.padding, strict=True)
    return all(k + math.ceil(p / s) * s - p <= n for n, k, s, (p, _) in axes)
