"""Which layers of a model a regularizer treats, and at which input shape."""

import warnings
from typing import NamedTuple

from torch import Tensor, nn

from opnorm._core.layers import LINEAR, Shape, check_initialized
from opnorm.errors import ModelError, NormError
from opnorm.norms.table import trace

__all__ = ["Found", "left_out", "output_weight", "trainable_layers"]


class Found(NamedTuple):
    """A layer with a weight of its own to train.

    Attributes:
        name: in the model.
        layer: the module; ``weight`` may be tied to other layers'.
        in_shape: of its input in the first call, without the batch axis.
        weight: the parameter.
    """

    name: str
    layer: nn.Module
    in_shape: Shape
    weight: nn.Parameter


def trainable_layers(
    model: nn.Module, example: Tensor, kinds: tuple[type[nn.Module], ...], who: str, sized: bool = True
) -> list[Found]:
    """Every layer of these kinds whose weight is trained, in the order of the forward pass; tied weights once.

    A layer that is called at several input sizes is treated at the first, which one warning says.

    Args:
        model: any network.
        example: a batch that it takes, (B, C, H, W) in [0, 1].
        kinds: of layers.
        who: the regularizer, for messages.
        sized: whether it depends on the input size, so that several of them are worth a warning.

    Raises:
        ModelError: there is no such layer, or a weight that is not there yet.
        NormError: a weight that is computed from other parameters (weight_norm and the like).
    """
    check_initialized(model, who)
    found: dict[int, Found] = {}
    changing: dict[str, list[Shape]] = {}
    for visit in trace(model, example):
        weight = getattr(visit.layer, "weight", None)
        if not isinstance(visit.layer, kinds) or not isinstance(weight, Tensor) or not weight.requires_grad:
            continue
        own = visit.layer._parameters.get("weight")
        if own is None:
            raise NormError(
                f"{who} cannot treat layer {visit.name!r}: its weight is computed from other parameters"
            )
        first = found.setdefault(id(own), Found(visit.name, visit.layer, visit.in_shape, own))
        if first.in_shape != visit.in_shape and not isinstance(visit.layer, nn.Linear):
            changing.setdefault(first.name, [first.in_shape]).append(visit.in_shape)
    if not found:
        raise ModelError(
            f"{who} finds no trainable layer among {', '.join(k.__name__ for k in kinds) or 'no types at all'}; "
            "is the model frozen, quantized, or made of other layers?"
        )
    if changing and sized:
        sizes = "; ".join(f"{name}: {', '.join(map(str, shapes))}" for name, shapes in changing.items())
        warnings.warn(
            f"{who}: layers that are called at several input sizes are treated at the first ({sizes})",
            stacklevel=3,
        )
    return list(found.values())


def output_weight(model: nn.Module, example: Tensor, who: str) -> Tensor:
    """The weight of the last linear layer of the forward pass, trained or not.

    Raises:
        ModelError: there is none.
    """
    linear = [visit.layer for visit in trace(model, example) if isinstance(visit.layer, LINEAR)]
    if not linear:
        raise ModelError(f"{who} finds no linear layer, the last of which it takes for the output layer")
    weight = linear[-1].weight
    assert isinstance(weight, Tensor), "every linear layer has one"
    return weight


def left_out(model: nn.Module, layers: list[Found]) -> list[str]:
    """Names of the trained parameters of at least two axes that are no weight of these layers."""
    treated = {id(found.weight) for found in layers}
    return [
        name
        for name, p in model.named_parameters()
        if p.requires_grad and p.ndim > 1 and id(p) not in treated
    ]
