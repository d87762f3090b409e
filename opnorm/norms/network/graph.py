"""The forward of a network as a graph, by ``torch.fx``, down to the layers that opnorm has formulas for."""

import inspect
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import config as jaxtyping_config
from torch import Tensor, fx, nn

from opnorm._core.layers import overrides, unwrap
from opnorm.errors import BoundError
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.network.trace import Example, arguments, eagerly, first_line, tensors_in, trace
from opnorm.norms.nonlinear import is_copying, is_nonlinear

__all__ = ["forward_graph", "no_random_numbers", "same_output", "shifted"]


class _Tracer(fx.Tracer):
    """Layers with a formula are leaves of the graph."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        base = next((c for c in type(m).__mro__ if c in l1.registry and c is not object), None)
        if base is not None:
            return not overrides(m, base)
        return is_copying(m) or is_nonlinear(m) or super().is_leaf_module(m, module_qualified_name)


def forward_graph(model: nn.Module, example: Example) -> tuple[fx.GraphModule, list[Any]]:
    """The graph of the forward and the values of its placeholders.

    Raises:
        BoundError: the forward cannot be written as a graph.
        OpnormError: the model does not take the example.
    """
    args, kwargs = arguments(model, example)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as e:
        trace(model, example)  # raises
        raise BoundError(f"its arguments are not known: {e}") from e
    bound.apply_defaults()
    kinds = {k: bound.signature.parameters[k].kind for k in bound.arguments}
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, value in bound.arguments.items():
        if kinds[name] in variadic and value:
            raise BoundError(f"its forward takes any number of arguments (*{name})")
    values = {k: v for k, v in bound.arguments.items() if kinds[k] not in variadic}
    fixed = {k: v for k, v in values.items() if not isinstance(v, Tensor)}
    tracer = _Tracer()
    try:
        with no_random_numbers(), _traceable(model):
            graph = tracer.trace(model, None if isinstance(model, fx.GraphModule) else fixed or None)
            return fx.GraphModule(tracer.root, graph), list(values.values())
    except BoundError:
        raise
    except Exception as e:  # fx raises of many kinds, and user code more
        trace(model, example)
        raise BoundError(f"its forward cannot be written as a graph: {first_line(e)}") from e


@contextmanager
def no_random_numbers() -> Iterator[None]:
    """BoundError when the block draws from the global generator, whose state is restored then."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise BoundError("its forward draws random numbers")


@contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Compiled modules inside the model are replaced by the original ones; jaxtyping would refuse fx's proxies."""
    compiled = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and unwrap(child) is not child
    ]
    checking = jaxtyping_config.jaxtyping_disable
    for parent, name, child in compiled:
        parent._modules[name] = unwrap(child)
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with eagerly():
            yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", checking)
        for parent, name, child in compiled:
            parent._modules[name] = child


def shifted(t: Tensor) -> Tensor:
    """The tensor plus fixed random numbers in [0, 1): examples are often zeros, which hide differences."""
    if not t.is_floating_point():
        return t.clone()
    generator = torch.Generator().manual_seed(0)
    return t + torch.rand(t.shape, generator=generator).to(t)


def same_output(a: Any, b: Any) -> bool:
    """Whether the tensors of two outputs agree up to rounding."""
    first, second = tensors_in(a), tensors_in(b)
    return len(first) == len(second) and all(map(_close, first, second))


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.double(), b.double()
    largest = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
