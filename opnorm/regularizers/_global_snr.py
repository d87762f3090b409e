"""Global spectral norm regularization: the squared spectral norm of every layer as a penalty (Yoshida & Miyato 2017)."""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import TRANSPOSED
from opnorm._core.linear_map import LinearMap
from opnorm._core.lp import dual
from opnorm._core.modes import in_default_modes
from opnorm._core.pull_back import pull_back
from opnorm._core.settings import check_choice, check_count, check_number
from opnorm.jacobian import Matrices
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.regularizers.targets import TargetLayer, groups_of, matrix_layers, parameters_of
from opnorm.spec import factory

__all__ = ["global_snr"]

GEOMETRY = attrgetter("stride", "padding", "output_padding", "dilation", "groups", "padding_mode")

Operator = Callable[[], LinearMap]
"""The map of the present weights of a group of layers, (count, *in) -> (count, *out), differentiable in them."""


@factory("regularizer")
def global_snr(lam: float = 0.01, steps: int = 1, operator: str = "reshaped") -> Regularizer:
    """Global spectral norm regularization: (λ/2) Σ_l σ(W_l)² is added to the loss.

    Each step continues the power iteration of the step before, and treats its vectors as constants:

        v ← Wᵀu / ‖Wᵀu‖_2,   u ← W v / ‖W v‖_2    (``steps`` times),       σ = uᵀ W v,   ∂(σ²/2)/∂W = σ u vᵀ.

    The vectors u, one a layer, are the regularizer's state. Linear, Conv and ConvTranspose layers are treated, batch norms
    are not.

    Args:
        lam: λ.
        steps: power iterations a step; 1 as published, Roth et al. also try 10.
        operator: of which σ is the largest singular value. "reshaped": the kernel as a matrix of c_out rows and c_in · taps
            columns, as published (the norm of the convolution can be up to sqrt(taps) times as large). "true": the
            convolution itself with its stride, padding and input size.

    Source: Yoshida & Miyato 2017, Algorithm 1; Roth et al. 2020, section 5.
    """
    check_number("lam", lam, "a finite number of at least 0", least=0)
    check_count("steps", steps)
    check_choice("operator", operator, ("reshaped", "true"))

    def reshaped(target: TargetLayer) -> bool:
        return operator == "reshaped" or isinstance(target.layer, nn.Linear)

    def key(target: TargetLayer) -> tuple[Any, ...]:
        """Layers with the same key are one group."""
        same = isinstance(target.layer, TRANSPOSED), target.weight.shape
        return same if reshaped(target) else (*same, target.in_shape, GEOMETRY(target.layer))

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = matrix_layers(model, example, "global_snr", sized=operator == "true", derived=True)
        operators: dict[str, Operator] = {}
        vectors: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(0)
        for group in groups_of(layers, key).values():
            name, weight = group[0].name, group[0].weight
            operators[name] = _matrices(group) if reshaped(group[0]) else _convolutions(group)
            shape = (len(group), *operators[name]().out_shape)
            u = torch.randn(shape, generator=generator, dtype=torch.float64).to(weight.detach())
            vectors[name] = dual(u, 2)

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            squares = [_squares(operators[name](), u, steps) for name, u in vectors.items()]
            return lam / 2 * torch.cat(squares).sum()

        return bound(Hooks(penalty=penalty, state=vectors), parameters_of(layers), "global_snr")

    return bind


def _squares(A: LinearMap, u: Tensor, steps: int) -> Tensor:
    """σ² of each layer of a group, differentiable in the weights; u is replaced by the result of the iterations."""
    start, u = u, u.to(A.dtype)
    with torch.no_grad():
        for step in range(steps):
            v = dual(A.T @ u, 2)
            if step < steps - 1:
                u = dual(A @ v, 2, u)
    image = A @ v  # u is its direction, so ‖W v‖² has the value σ² and the gradient 2 σ u vᵀ
    start.copy_(dual(image.detach(), 2, u))
    return image.flatten(1).square().sum(1)


def _matrices(group: list[TargetLayer]) -> Operator:
    """Kernels as matrices with a row for each output channel, which is the second axis of transposed layers' kernels."""
    transposed = isinstance(group[0].layer, TRANSPOSED)

    def operator() -> LinearMap:
        W = torch.stack([target.weight for target in group])
        return Matrices((W.transpose(1, 2) if transposed else W).flatten(2))

    return operator


def _convolutions(group: list[TargetLayer]) -> Operator:
    """Convolutions of one geometry as one with a group for each, on one input."""
    layer, in_shape, n = group[0].layer, group[0].in_shape, len(group)
    assert isinstance(layer, nn.modules.conv._ConvNd), "Linear layers are matrices"
    axes = len(layer.kernel_size)
    settings: dict[str, Any] = {
        "stride": layer.stride,
        "dilation": layer.dilation,
        "groups": n * layer.groups,
    }
    pads, mode = layer._reversed_padding_repeated_twice, layer.padding_mode.replace("zeros", "constant")
    conv: Callable[..., Tensor] = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    if isinstance(layer, TRANSPOSED):
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        settings |= {"padding": layer.padding, "output_padding": layer.output_padding}
        pads = [0] * 2 * axes

    def image(W: Tensor, v: Tensor) -> Tensor:
        out = conv(F.pad(v.reshape(1, -1, *in_shape[1:]), pads, mode), W, **settings)
        return out.view(n, -1, *out.shape[2:])

    def adjoint(W: Tensor, u: Tensor) -> Tensor:
        with torch.enable_grad():
            v = u.new_zeros(n, *in_shape).requires_grad_()
            return pull_back(image(W.detach(), v), v, u)

    def weights() -> Tensor:
        return torch.cat([target.weight for target in group])

    with torch.no_grad():
        out_shape = image(weights(), weights().new_zeros(n, *in_shape)).shape[1:]

    def operator() -> LinearMap:
        W = weights()
        maps = partial(image, W), partial(adjoint, W)
        return LinearMap(*maps, in_shape, out_shape, W.device, dtype=W.dtype, batch=n)

    return operator
