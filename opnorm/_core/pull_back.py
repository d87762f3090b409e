"""Products with a transposed Jacobian, from the graph of a forward pass.

``torch.autograd.grad(outputs, inputs, u)`` loads a library for symbolic algebra to compare two shapes, which takes half
a second; without ``u`` it does not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["pull_back"]


def pull_back(outputs: Tensor, inputs: Tensor, u: Tensor, **how: Any) -> Any:
    """J^T u for J = ∂outputs/∂inputs and u of the shape of the outputs; further arguments as of ``torch.autograd.grad``.

    With ``create_graph=True`` it can be differentiated, in u as well. With ``allow_unused=True`` it is None where
    outputs are not computed from inputs.

    Raises:
        ValueError: u has another shape.
    """
    if u.shape != outputs.shape:
        raise ValueError(f"u of shape {tuple(u.shape)}; expected {tuple(outputs.shape)}, that of the outputs")
    with torch.enable_grad():
        seed = _Seed.apply(outputs, lambda: u)
    return torch.autograd.grad(seed, inputs, **how)[0]


class _Seed(Function):
    """A number whose gradient in the outputs is u, of which it is no function: the graph behind u stays untouched."""

    @staticmethod
    def forward(outputs: Tensor, u: Callable[[], Tensor]) -> Tensor:
        return torch.zeros((), device=outputs.device)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Callable[[], Tensor]], output: Tensor) -> None:
        ctx.u = inputs[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, outputs: Tensor, u: Callable[[], Tensor]) -> tuple[Tensor, None]:
        return _Seed.apply(outputs, u), None  # only u may have an axis of vmap

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.u(), None  # times the gradient of the number itself, 1
