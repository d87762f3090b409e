"""Weights that a layer computes from other parameters: parametrizations, and the hooks of torch.nn.utils."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

__all__ = ["is_computed", "present_weight", "weight_parameters"]


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


def _hooks(layer: nn.Module) -> list:
    hooks = layer._forward_pre_hooks.values()  # torch has no public list of a module's hooks
    return [hook for hook in hooks if type(hook).__module__.startswith("torch.nn.utils.")]
