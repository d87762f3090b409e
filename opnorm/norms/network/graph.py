"""The forward of a network as a graph, by ``torch.fx``, down to the layers whose norms are known."""

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import config as jaxtyping_config
from torch import Tensor, fx, nn

from opnorm._core.layers import overrides
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.network.trace import Example, arguments, eagerly, unwrapped
from opnorm.norms.nonlinear import is_copying, is_nonlinear
from opnorm.norms.table import visited

__all__ = ["elsewhere", "first_line", "forward_graph", "same_output"]


class _Tracer(fx.Tracer):
    """Stops at the layers that opnorm knows, and follows everything else."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        base = next((c for c in type(m).__mro__ if c in l1.registry and c is not object), None)
        if base is not None:
            return not overrides(m, base)
        return is_copying(m) or is_nonlinear(m) or super().is_leaf_module(m, module_qualified_name)


def forward_graph(model: nn.Module, example: Example) -> tuple[fx.GraphModule | None, list[Any], str]:
    """The graph of the forward, the values of its placeholders, and why there is none."""
    args, kwargs = arguments(model, example)
    try:
        bound = inspect.signature(model.forward).bind(*args, **kwargs)
    except (TypeError, ValueError) as e:
        visited(model, example)  # raises
        return None, [], f"its arguments cannot be told: {e}"
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) and value:
            return None, [], f"its forward takes any number of arguments (*{name})"
    fixed = {k: v for k, v in bound.arguments.items() if not isinstance(v, Tensor)}
    if isinstance(model, fx.GraphModule):
        fixed = {}
    tracer = _Tracer()
    try:
        before = torch.get_rng_state()
        with _plain(model):
            graph = tracer.trace(model, {k: v for k, v in fixed.items() if not _variadic(bound, k)} or None)
            module = fx.GraphModule(tracer.root, graph)
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            return None, [], "its forward draws random numbers"
    except Exception as e:  # noqa: BLE001 - fx raises of many kinds, and user code more
        visited(model, example)
        return None, [], f"its forward cannot be written as a graph: {first_line(e)}"
    return module, [v for k, v in bound.arguments.items() if not _variadic(bound, k)], ""


@contextmanager
def _plain(model: nn.Module) -> Iterator[None]:
    """Compiled modules inside the model stand aside for the modules that they were made from."""
    swapped = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and unwrapped(child) is not child
    ]
    checking = jaxtyping_config.jaxtyping_disable
    for parent, name, child in swapped:
        parent._modules[name] = unwrapped(child)
    jaxtyping_config.update("jaxtyping_disable", True)  # it would take fx's stand-ins for wrong types
    try:
        with eagerly():
            yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", checking)
        for parent, name, child in swapped:
            parent._modules[name] = child


def elsewhere(t: Tensor) -> Tensor:
    """A copy somewhere near, by the same numbers in every call: examples are often zeros, which hide what is wrong."""
    if not t.is_floating_point():
        return t.clone()
    generator = torch.Generator().manual_seed(0)
    return t + torch.rand(t.shape, generator=generator).to(t)


def _variadic(bound: inspect.BoundArguments, name: str) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return bound.signature.parameters[name].kind in kinds


def first_line(e: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(e).__name__}: {e}".splitlines()[0][:200]


def same_output(a: Any, b: Any) -> bool:
    """Whether two outputs agree up to rounding."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        largest = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_output(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same_output(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
