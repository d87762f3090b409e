"""Spectral norms kept small: normalized at the end of every epoch, or penalized in every step."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import TRANSPOSED, WEIGHTED, Shape, overrides
from opnorm.errors import ModelError, SpecError, TrainError
from opnorm.norms._operator_norm import operator_norm
from opnorm.regularizers.hooks import Hooks, Regularizer
from opnorm.regularizers.targets import Found, left_out, trainable_layers
from opnorm.spec import factory

__all__ = [
    "check_finite",
    "check_number",
    "global_snr",
    "matrix_layers",
    "spectral_normalization",
]

Operator = Literal["reshaped", "true"]


def check_number(name: str, value: float, zero: bool = False) -> None:
    """SpecError unless a setting is a finite number above 0, or 0 itself where that is allowed."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 < value < math.inf or (zero and value == 0)):
        raise SpecError(f"{name}={value!r}: expected a finite number {'of at least' if zero else 'above'} 0")


def matrix_layers(model: nn.Module, example: Tensor, who: str, sized: bool = True) -> list[Found]:
    """The linear, convolutional and transposed layers that are trained; what else has a matrix to train, one warning names.

    Args:
        model: any network.
        example: a batch that it takes.
        who: the regularizer, for messages.
        sized: whether it depends on the input size.

    Raises:
        ModelError: there is no such layer.
        NormError: a weight that is computed from other parameters.
    """
    found = trainable_layers(model, example, WEIGHTED, who, sized)
    layers = [f for f in found if not overrides(f.layer, *WEIGHTED)]
    if not layers:
        raise ModelError(f"{who} finds only layers with a forward of their own, which it cannot treat")
    if others := left_out(model, layers):
        warnings.warn(
            f"{who} leaves these weights as they are: {', '.join(others)}; it treats Linear, Conv and ConvTranspose "
            "layers that the forward pass calls and that have no forward of their own",
            stacklevel=3,
        )
    return layers


def check_finite(layers: Sequence[Found], who: str) -> None:
    """TrainError when a weight is NaN or infinite, where no decomposition of it exists."""
    finite = torch.stack([torch.isfinite(found.weight).all() for found in layers]).tolist()
    broken = [found.name for found, ok in zip(layers, finite, strict=True) if not ok]
    if broken:
        raise TrainError(
            f"{who}: the weight of layer {broken[0]!r} is no longer finite; a smaller learning rate usually helps"
        )


# ---------------------------------------------------------------- a bound kept to


@factory("regularizer")
def spectral_normalization(sp: float = 1.0) -> Regularizer:
    """Every layer's true ℓ2 operator norm brought to at most SP at the end of an epoch.

        W ← W · SP / upper    as long as  upper > SP,      lower ≤ ‖M(W)‖_2 ≤ upper certified,

    where M(W) is the layer with its own stride, padding, dilation and input size. The last thing done to a layer is a
    certificate, in float64, that its weights as rounded obey ‖M(W)‖_2 ≤ SP. Layers whose upper end is at most SP are left
    as they are to the bit. A layer with lower ≤ SP < upper may have been below SP already: it is scaled all the same,
    so that a layer ends between SP · lower / upper and SP (the two ends are 0.5 % apart on large maps, and about 10 % on
    maps as small as 4 x 4).

    Linear, Conv and ConvTranspose layers are treated; batch norms are not.

    Args:
        sp: the bound SP; 1, 3 or 5 in the paper.

    Returns:
        A regularizer that acts after each epoch. Binding it raises ModelError where there is no layer to treat and
        NormError for weights that are computed from others; it warns of layers left alone. A weight that is not finite
        raises TrainError at the end of the epoch.

    Raises:
        SpecError: sp is not a finite number above 0.

    Source: Wen et al. 2020, section 4.2 (spectral normalization × adversarial robustness strength).
    """
    check_number("sp", sp)

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        layers = matrix_layers(model, example, "spectral_normalization")
        loose = [f.name for f in layers if getattr(f.layer, "padding_mode", "zeros") != "zeros"]
        if loose:
            warnings.warn(
                f"spectral_normalization: layers not padded with zeros ({', '.join(loose)}) are held down by "
                "sqrt(ℓ1 · ℓ∞) where they are large, which can leave them well below sp",
                stacklevel=2,
            )

        @torch.no_grad()
        def after_epoch() -> None:
            check_finite(layers, "spectral_normalization")
            for _, layer, shape, weight in layers:
                margin = max(8 * torch.finfo(weight.dtype).eps, 1e-9)  # for the rounding of the weights
                while (upper := float(operator_norm(layer, 2, shape).upper)) > sp:
                    weight.mul_(sp / upper * (1 - margin))

        return Hooks(after_epoch=after_epoch)

    return bind


# ---------------------------------------------------------------- a penalty


class _Batch(NamedTuple):
    """Layers of one shape as one operator M on (count, *): ``join`` stacks their weights, the others take that stack."""

    weights: list[Tensor]
    join: Callable[[list[Tensor]], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    adjoint: Callable[[Tensor, Tensor], Tensor]
    u: Tensor


@factory("regularizer")
def global_snr(lam: float = 0.01, steps: int = 1, operator: str = "reshaped") -> Regularizer:
    """Global spectral norm regularization: (λ/2) Σ_l σ(W_l)² is added to the loss.

    Each step goes on with the power iteration of the step before, and takes its vectors as constants:

        v ← Wᵀu / ‖Wᵀu‖_2,   u ← W v / ‖W v‖_2    (``steps`` times),       σ = uᵀ W v,   ∂(σ²/2)/∂W = σ u vᵀ.

    Args:
        lam: λ.
        steps: power iterations a step; 1 as published, Roth et al. also try 10.
        operator: of what σ is the largest singular value. "reshaped": the kernel as a matrix of c_out rows and c_in · taps
            columns, as published (the norm of the convolution can be up to sqrt(taps) times as large). "true": the
            convolution itself with its stride, padding and input size, by convolutions of one input.

    Returns:
        A regularizer with a penalty; its state are the vectors u, one a layer. Linear, Conv and ConvTranspose layers are
        treated, batch norms are not. Binding it raises ModelError where there is no layer to treat and NormError for
        weights that are computed from others; it warns of layers left alone.

    Raises:
        SpecError: a strength below 0, fewer steps than 1, another operator.

    Source: Yoshida & Miyato 2017, Algorithm 1; Roth et al. 2020, section 5.
    """
    check_number("lam", lam, zero=True)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise SpecError(f"steps={steps!r}: expected a whole number of power iterations, at least 1")
    if operator not in get_args(Operator):
        raise SpecError(f"operator={operator!r}: expected one of {', '.join(map(repr, get_args(Operator)))}")
    batch_of = _matrices if operator == "reshaped" else _convolutions

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        batches: dict[str, _Batch] = {}
        alike: dict[Any, list[Found]] = {}
        for found in matrix_layers(model, example, "global_snr", sized=operator == "true"):
            alike.setdefault(_signature(found, operator == "true"), []).append(found)
        generator = torch.Generator().manual_seed(0)
        for group in alike.values():
            plain = isinstance(group[0].layer, nn.Linear)
            batches[group[0].name] = (_matrices if plain else batch_of)(group, generator)

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return lam / 2 * torch.cat([_squares(batch, steps) for batch in batches.values()]).sum()

        return Hooks(penalty=penalty, state={name: batch.u for name, batch in batches.items()})

    return bind


def _signature(found: Found, true: bool) -> tuple[Any, ...]:
    """What two layers must share to be treated as one batch."""
    layer, weight = found.layer, found.weight
    same: tuple[Any, ...] = (isinstance(layer, TRANSPOSED), weight.shape, weight.dtype, weight.device)
    if true and not isinstance(layer, nn.Linear):
        names = ("stride", "padding", "output_padding", "dilation", "groups", "padding_mode")
        same += (found.in_shape, *(getattr(layer, name) for name in names))
    return same


def _squares(batch: _Batch, steps: int) -> Tensor:
    """σ² of every layer of a batch, differentiable in the weights; the vectors u move on by ``steps`` iterations."""
    W = batch.join(batch.weights)
    u = batch.u
    with torch.no_grad():
        for step in range(steps):
            v = _unit(batch.adjoint(W, u), torch.zeros(()))
            if step < steps - 1:
                u = _unit(batch.apply(W, v), u)
    image = batch.apply(W, v)  # u is its direction, so ‖W v‖² has the value σ² and the gradient 2 σ u vᵀ
    batch.u.copy_(_unit(image.detach(), u))
    return image.flatten(1).square().sum(1)


def _unit(x: Tensor, otherwise: Tensor) -> Tensor:
    """Each of the batch with length 1; what is zero has no direction and is replaced."""
    length = torch.linalg.vector_norm(x.flatten(1), dim=1).view(-1, *[1] * (x.ndim - 1))
    return torch.where(length > 0, x / length, otherwise.to(x))


def _start(shape: Shape, like: Tensor, generator: torch.Generator) -> Tensor:
    u = torch.randn(shape, generator=generator, dtype=torch.float64).to(like)
    return _unit(u, u)


def _matrices(group: list[Found], generator: torch.Generator) -> _Batch:
    """Kernels as matrices of a row an output channel (those of transposed layers lie the other way round)."""
    transposed = isinstance(group[0].layer, TRANSPOSED)
    weights: list[Tensor] = [found.weight for found in group]
    rows = weights[0].shape[1 if transposed else 0]

    def join(weights: list[Tensor]) -> Tensor:
        W = torch.stack(weights)
        return (W.transpose(1, 2) if transposed else W).flatten(2)

    def apply(W: Tensor, v: Tensor) -> Tensor:
        return (W @ v[:, :, None]).squeeze(2)

    def adjoint(W: Tensor, u: Tensor) -> Tensor:
        return (u[:, None] @ W).squeeze(1)

    return _Batch(weights, join, apply, adjoint, _start((len(group), rows), weights[0], generator))


def _convolutions(group: list[Found], generator: torch.Generator) -> _Batch:
    """Convolutions of one geometry as one with a group for each, on one input."""
    layer, in_shape, n = group[0].layer, group[0].in_shape, len(group)
    assert isinstance(layer, nn.modules.conv._ConvNd), "Linear layers go through _matrices"
    axes = len(layer.kernel_size)
    weights: list[Tensor] = [found.weight for found in group]
    conv: Callable[..., Tensor]
    settings: dict[str, Any] = {
        "stride": layer.stride,
        "dilation": layer.dilation,
        "groups": n * layer.groups,
    }
    if isinstance(layer, TRANSPOSED):
        conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        settings |= {"padding": layer.padding, "output_padding": layer.output_padding}
        pads, mode = [0] * 2 * axes, "constant"
    else:
        conv = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        pads = layer._reversed_padding_repeated_twice
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode

    def apply(W: Tensor, v: Tensor) -> Tensor:
        together = v.reshape(1, -1, *in_shape[1:])
        out = conv(F.pad(together, pads, mode), W, **settings)
        return out.view(n, -1, *out.shape[2:])

    def adjoint(W: Tensor, u: Tensor) -> Tensor:
        with torch.enable_grad():
            v = u.new_zeros(n, *in_shape).requires_grad_()
            return torch.autograd.grad(apply(W.detach(), v), v, u)[0]

    with torch.no_grad():
        shape = apply(torch.cat(weights), weights[0].new_zeros(n, *in_shape)).shape
    return _Batch(weights, torch.cat, apply, adjoint, _start(shape, weights[0], generator))
