"""The layers of a model that a regularizer treats, with their input shapes."""

import warnings
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.derived_weights import is_computed, weight_of, weight_parameters
from opnorm._core.layers import LINEAR, WEIGHTED, Shape, check_initialized, is_standard
from opnorm.errors import ModelError, NormError, TrainError
from opnorm.norms.network.trace import trace

__all__ = [
    "TargetLayer",
    "check_finite",
    "groups_of",
    "matrix_layers",
    "output_layer",
    "parameters_of",
    "trainable_layers",
    "untreated_weights",
]

Kinds = tuple[type[nn.Module], ...]


class TargetLayer(NamedTuple):
    """A layer whose weight is trained, itself or by the parameters that it is computed from."""

    name: str
    layer: nn.Module
    in_shape: Shape  # of its input in the first call, without the batch axis
    parameters: dict[
        str, nn.Parameter
    ]  # the weight, perhaps tied to other layers', or what it is computed from

    @property
    def weight(self) -> Tensor:
        """The weight itself where it is a parameter, otherwise as its parameters give it now."""
        return weight_of(self.layer)


def trainable_layers(
    model: nn.Module,
    example: Tensor,
    kinds: Kinds,
    method: str,
    *,
    sized: bool = True,
    derived: bool = False,
) -> list[TargetLayer]:
    """Every layer of these kinds whose weight is trained, in the order of the forward pass; tied weights once.

    A layer that is called at several input sizes is treated at the first; one warning names all of them, unless the
    ``method``, the regularizer in messages, does not depend on the size, ``sized``.

    Raises:
        ModelError: there is no such layer, or a weight without values yet.
        NormError: a weight that is computed from other parameters (weight_norm and the like): in a way that is not known,
            or at all unless ``derived``.
    """
    check_initialized(model, method)
    layers: dict[int, TargetLayer] = {}
    sizes: dict[str, list[Shape]] = {}
    for call in trace(model, example):
        layer = call.layer
        parameters = weight_parameters(layer) if isinstance(layer, kinds) else {}
        trained = {name: p for name, p in parameters.items() if p.requires_grad}
        if isinstance(layer, kinds) and is_computed(layer) and not (trained and derived):
            why = "" if trained else " in a way that is not known"
            raise NormError(
                f"{method} cannot treat layer {call.name!r}: its weight is computed from other parameters{why}"
            )
        if not trained:
            continue
        key = id(next(iter(trained.values())))
        first = layers.setdefault(key, TargetLayer(call.name, layer, call.in_shape, trained))
        if first.in_shape != call.in_shape and not isinstance(layer, nn.Linear):
            sizes.setdefault(first.name, [first.in_shape]).append(call.in_shape)
    if not layers:
        raise ModelError(
            f"{method} finds no trainable layer among {', '.join(k.__name__ for k in kinds) or 'no types at all'}; "
            "is the model frozen, quantized, or made of other layers?"
        )
    if sizes and sized:
        named = "; ".join(f"{name}: {', '.join(map(str, shapes))}" for name, shapes in sizes.items())
        warnings.warn(
            f"{method}: layers that are called at several input sizes are treated at the first ({named})",
            stacklevel=4,
        )
    return list(layers.values())


def matrix_layers(
    model: nn.Module,
    example: Tensor,
    method: str,
    *,
    kinds: Kinds = WEIGHTED,
    sized: bool = True,
    derived: bool = False,
) -> list[TargetLayer]:
    """The trained linear, convolutional and transposed layers with the forward of their type; one warning names the rest.

    Arguments and errors as :func:`trainable_layers`.
    """
    trained = trainable_layers(model, example, kinds, method, sized=sized, derived=derived)
    layers = [target for target in trained if is_standard(target.layer, *WEIGHTED)]
    if not layers:
        raise ModelError(f"{method} finds only layers with a forward of their own, which it cannot treat")
    if others := untreated_weights(model, layers, left_out=tuple(k for k in WEIGHTED if k not in kinds)):
        warnings.warn(
            f"{method} leaves these weights as they are: {', '.join(others)}; it treats Linear, Conv and ConvTranspose "
            "layers that the forward pass calls and that have no forward of their own",
            stacklevel=4,
        )
    return layers


def output_layer(model: nn.Module, example: Tensor, method: str) -> nn.Module:
    """The last linear layer of the forward pass, trained or not; ModelError where there is none."""
    linear = [call.layer for call in trace(model, example) if isinstance(call.layer, LINEAR)]
    if not linear:
        raise ModelError(f"{method} finds no linear layer, the last of which is the output layer")
    return linear[-1]


def untreated_weights(model: nn.Module, layers: Sequence[TargetLayer], left_out: Kinds = ()) -> list[str]:
    """Names of the trained parameters of at least two axes that are no weight of these layers.

    Nor of layers of the kinds that the user has chosen to leave out.
    """
    known = {id(p) for p in parameters_of(layers)}
    known |= {
        id(p) for m in model.modules() if isinstance(m, left_out) for p in weight_parameters(m).values()
    }
    parameters = model.named_parameters()
    return [name for name, p in parameters if p.requires_grad and p.ndim > 1 and id(p) not in known]


def parameters_of(layers: Sequence[TargetLayer]) -> list[Tensor]:
    """The parameters that these layers' weights are, or are computed from."""
    return [p for target in layers for p in target.parameters.values()]


def groups_of(
    layers: Sequence[TargetLayer], key: Callable[[TargetLayer], Hashable]
) -> dict[Hashable, list[TargetLayer]]:
    """The layers by a key, the dtype and the device of their weights, so that one product serves a group."""
    groups: dict[Hashable, list[TargetLayer]] = {}
    for target in layers:
        groups.setdefault((key(target), target.weight.dtype, target.weight.device), []).append(target)
    return groups


def check_finite(layers: Sequence[TargetLayer], method: str) -> None:
    """TrainError when a weight is NaN or infinite, so that it has no decomposition."""
    finite = torch.stack([torch.isfinite(target.weight).all() for target in layers]).tolist()
    for target, ok in zip(layers, finite, strict=True):
        if not ok:
            raise TrainError(
                f"{method}: the weight of layer {target.name!r} is no longer finite; a smaller learning rate usually helps"
            )
