"""Spectral normalization: every layer's ℓ2 norm at most a bound at the end of an epoch (Wen et al. 2020)."""

import warnings

import torch
from torch import Tensor, nn

from opnorm._core.modes import in_default_modes
from opnorm._core.settings import check_number
from opnorm.norms._operator_norm import operator_norm
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import check_finite, matrix_layers, parameters_of
from opnorm.spec import factory

__all__ = ["spectral_normalization"]


@factory("regularizer")
def spectral_normalization(sp: float = 1.0) -> Regularizer:
    """Every layer's true ℓ2 operator norm scaled to at most SP at the end of an epoch.

        W ← W · SP / upper    as long as  upper > SP,      lower ≤ ‖M(W)‖_2 ≤ upper certified,

    where M(W) is the layer with its own stride, padding, dilation and input size. At the end a certificate in float64
    confirms ‖M(W)‖_2 ≤ SP for the rounded weights. Weights with an upper end of at most SP do not change. A layer with
    lower ≤ SP < upper is scaled although its norm may be below SP, so that a layer ends between SP · lower / upper and SP
    (the two ends are 0.5 % apart on large maps, and about 10 % on maps as small as 4 x 4).

    Linear, Conv and ConvTranspose layers are treated; batch norms are not. The bound SP is ``sp``, 1, 3 or 5 in the paper.

    Source: Wen et al. 2020, section 4.2 (spectral normalization × adversarial robustness strength).
    """
    check_number("sp", sp, "a finite number above 0", above=0)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = matrix_layers(model, example, "spectral_normalization")
        loose = [
            target.name for target in layers if getattr(target.layer, "padding_mode", "zeros") != "zeros"
        ]
        if loose:
            warnings.warn(
                f"spectral_normalization: the bound of large layers not padded with zeros ({', '.join(loose)}) is "
                "sqrt(ℓ1 · ℓ∞), which can leave them well below sp",
                stacklevel=3,
            )

        @torch.no_grad()
        def normalize() -> None:
            check_finite(layers, "spectral_normalization")
            for target in layers:
                margin = max(
                    8 * torch.finfo(target.weight.dtype).eps, 1e-9
                )  # for the rounding of the weights
                while (upper := float(operator_norm(target.layer, 2, target.in_shape).upper)) > sp:
                    target.weight.mul_(sp / upper * (1 - margin))

        hooks = Hooks(after_epoch=normalize, constrain=normalize)
        return bound(hooks, parameters_of(layers), "spectral_normalization")

    return bind
