"""Weights that a layer computes from other parameters: parametrizations, and the hooks of torch.nn.utils."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from opnorm.errors import NormError

__all__ = [
    "computed_tensors",
    "is_computed",
    "present_weight",
    "use_computed",
    "weight_of",
    "weight_parameters",
]


def weight_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of the layer that its weight is or is computed from, by name; none if that way is not known."""
    own = layer._parameters.get("weight")
    if own is not None:
        return {"weight": own}
    if is_parametrized(layer, "weight"):
        return {n: p for n, p in layer.named_parameters() if n.startswith("parametrizations.weight.")}
    parameters = layer._parameters.items() if _hooks(layer) else ()
    return {n: p for n, p in parameters if p is not None and n.startswith("weight_")}


def is_computed(layer: nn.Module) -> bool:
    """Whether the layer's weight is computed from parameters that are trained."""
    others = [p for name, p in layer.named_parameters() if name != "bias" and p.requires_grad]
    # not read: in train mode that would take a step of some power iterations
    computed = is_parametrized(layer, "weight") or isinstance(vars(layer).get("weight"), Tensor)
    return computed and bool(others)


@contextmanager
def present_weight(layer: nn.Module) -> Iterator[nn.Module]:
    """The layer with the weight that its parameters give now, differentiable in them; no power iteration moves.

    A hook computes the weight before a forward pass only, so that in between it may be that of older parameters.
    """
    modes = [(module, module.training) for module in layer.modules()]
    weights = {name: value for name, value in vars(layer).items() if isinstance(value, Tensor)}
    try:
        layer.eval()
        for hook in _hooks(layer):
            hook(layer, None)
        yield layer
    finally:
        vars(layer).update(weights)
        for module, training in modes:
            module.training = training


def weight_of(layer: nn.Module) -> Tensor:
    """The weight that a forward in eval mode would use now, differentiable in what it is computed from.

    Raises:
        NormError: a hook that is not torch's own computes it.
    """
    if "weight" in layer._parameters or (not is_parametrized(layer) and not layer._forward_pre_hooks):
        return layer.weight  # type: ignore[return-value]
    if not is_parametrized(layer, "weight") and len(layer._forward_pre_hooks) > len(_hooks(layer)):
        raise NormError(
            f"the weight of {type(layer).__name__} is computed by a hook before each forward pass; pass a module whose "
            "forward computes it, or make it a parameter"
        )
    with present_weight(layer):
        return layer.weight  # type: ignore[return-value]


@torch.no_grad()
def computed_tensors(layer: nn.Module) -> dict[str, Tensor]:
    """What the layer itself, without its children, computes from its parameters: in eval mode, by name."""
    if is_parametrized(layer):
        names = list(layer.parametrizations)  # type: ignore[arg-type]
    else:
        names = [n for n, value in vars(layer).items() if isinstance(value, Tensor) and _hooks(layer)]
    if not names:
        return {}
    with present_weight(layer):
        return {name: getattr(layer, name).detach() for name in names}


def use_computed(layer: nn.Module, values: dict[str, Tensor]) -> None:
    """Put values in the place of what :func:`computed_tensors` names; the layer computes nothing from then on."""
    if is_parametrized(layer):
        layer.__class__ = type(layer).__bases__[0]
        del layer._modules["parametrizations"]
    layer._forward_pre_hooks = type(layer._forward_pre_hooks)(
        (key, hook) for key, hook in layer._forward_pre_hooks.items() if hook not in _hooks(layer)
    )
    for name, value in values.items():
        vars(layer).pop(name, None)
        for source in (f"{name}_{suffix}" for suffix in ("g", "v", "u", "orig", "mask")):
            layer._parameters.pop(source, None)
            layer._buffers.pop(source, None)
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))


def _hooks(layer: nn.Module) -> list:
    hooks = layer._forward_pre_hooks.values()  # torch has no public list of a module's hooks
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]
