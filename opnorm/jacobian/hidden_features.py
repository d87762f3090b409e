"""A network that ends at a hidden layer, such as at the last hidden features, whose Jacobian Roth et al. study."""

from typing import Any

from torch import Tensor, nn

from opnorm._core.layers import unwrap
from opnorm._core.modes import in_default_modes
from opnorm.errors import ModelError, did_you_mean
from opnorm.norms.network.trace import trace

__all__ = ["Features", "features"]


class Features(nn.Module):
    """A network that ends early: at the output of a layer, or with ``before`` at its input."""

    def __init__(self, model: nn.Module, layer: str, before: bool) -> None:
        super().__init__()
        self.model, self.layer, self.before = model, layer, before

    def forward(self, x: Tensor) -> Tensor:
        """Those features, flattened to (B, K), before anything later changes them in place."""
        modules = dict(self.model.named_modules())
        if self.layer not in modules:
            hint = did_you_mean(self.layer, modules)
            raise ModelError(f"{type(self.model).__name__} has no layer {self.layer!r}{hint}")
        calls: list[Any] = []

        def keep(value: Any) -> Any:
            calls.append(value)
            return value.clone() if isinstance(value, Tensor) else value  # what follows may work in place

        module = modules[self.layer]
        if self.before:
            handle = module.register_forward_pre_hook(lambda _, args: (keep(args[0]), *args[1:]))
        else:
            handle = module.register_forward_hook(lambda _, args, output: keep(output))
        try:
            self.model(x)
        finally:
            handle.remove()
        if len(calls) != 1:
            raise ModelError(
                f"layer {self.layer!r} is called {len(calls)} times in a forward pass; expected once"
            )
        if not isinstance(calls[0], Tensor) or calls[0].ndim < 2:
            raise ModelError(f"layer {self.layer!r} has no tensor of features for each point")
        return calls[0].flatten(1)


@in_default_modes
def features(model: nn.Module, x: Tensor, layer: str | None = None) -> Features:
    """φ^{L-1}, the last hidden features: what the last linear layer of the forward pass is given.

    Args:
        model: any network; it stays a part of what is returned.
        x: a batch of its inputs, of which one is used.
        layer: the name of a layer whose output is meant instead.

    Raises:
        ModelError: no such layer, or no linear layer to find by itself.

    Source: Roth, Kilcher & Hofmann 2020, Sec. 5.2.
    """
    model = unwrap(model)
    before = layer is None
    if layer is None:
        linear = [call.name for call in trace(model, x) if isinstance(call.layer, nn.Linear)]
        if not linear or not linear[-1]:
            raise ModelError(
                f"{type(model).__name__} has no linear layer after hidden ones, so it is not known where its features are; "
                "name the layer whose output is meant"
            )
        layer = linear[-1]
    found = Features(model, layer, before)
    found.training = model.training
    return found
