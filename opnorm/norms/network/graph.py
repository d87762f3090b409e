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
from opnorm.norms.network.trace import Example, arguments, eagerly, first_line, map_tensors, tensors_in, trace
from opnorm.norms.nonlinear import is_copying, is_nonlinear

__all__ = [
    "attributes_restored",
    "forward_graph",
    "mixes_points",
    "no_random_numbers",
    "same_output",
    "shifted",
]


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
            with attributes_restored(model):  # a forward may assign a value, which is fx's proxy, to a module
                graph = tracer.trace(model, None if isinstance(model, fx.GraphModule) else fixed or None)
            for (
                tensor,
                name,
            ) in tracer.tensor_attrs.items():  # constants of the forward, which fx adds to the model
                if not name.rpartition(".")[0] and not hasattr(model, name):
                    setattr(model, name, tensor)
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
    checking = jaxtyping_config.jaxtyping_disable
    with attributes_restored(model), eagerly():
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                parent._modules[name] = child if child is None else unwrap(child)
        jaxtyping_config.update("jaxtyping_disable", True)
        try:
            yield
        finally:
            jaxtyping_config.update("jaxtyping_disable", checking)


@contextmanager
def attributes_restored(model: nn.Module) -> Iterator[None]:
    """Whatever the block assigns to a module, or writes into its buffers, is as before afterwards."""
    kept = []
    for module in model.modules():
        attributes = dict(vars(module))
        kept.append(
            (module, attributes, {k: dict(attributes[k]) for k in ("_parameters", "_buffers", "_modules")})
        )
    buffers = [(b, b._version, b.clone()) for b in model.buffers()]
    try:
        yield
    finally:
        for module, attributes, registered in kept:
            for name, entries in registered.items():
                attributes[name].clear()
                attributes[name].update(entries)
            vars(module).clear()
            vars(module).update(attributes)
        for buffer, version, value in buffers:
            if buffer._version != version:
                with torch.no_grad():
                    buffer.copy_(value)


def shifted(t: Tensor, seed: int = 0) -> Tensor:
    """The tensor plus fixed random numbers in [0, 1): examples are often zeros, which hide differences."""
    if not t.is_floating_point():
        return t.clone()
    generator = torch.Generator().manual_seed(seed)
    return t + torch.rand(t.shape, generator=generator).to(t)


def mixes_points(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an output depends on two points of a batch, as it does after a softmax along the batch axis.

    A batch is run with another one behind it; then the first of the two is changed, and the second one. No number of the
    outputs may change both times, and each change must be as large as that of a batch alone. A model that takes no second
    batch has none to mix.
    """
    sizes = [len(t) for t in tensors_in((args, kwargs)) if t.is_floating_point() and t.ndim]

    def outputs(*seeds: int) -> list[Tensor]:
        def joined(t: Tensor) -> Tensor:
            is_batch = t.ndim > 0 and len(t) == sizes[0]
            return torch.cat([shifted(t, seed) for seed in seeds]) if is_batch else shifted(t)

        return tensors_in(model(*map_tensors(args, joined), **map_tensors(kwargs, joined)))

    if not sizes:
        return False
    try:
        both, other_first, other_second = outputs(1, 2), outputs(3, 2), outputs(1, 3)
        alone, other = outputs(1), outputs(3)
    except Exception:  # noqa: BLE001 - of the user's own network, which need not take such a batch
        return False
    for i, out in enumerate(both):
        if bool((_changed(out, other_first[i]) & _changed(out, other_second[i])).any()):
            return True
        change, change_alone = _distance(out, other_first[i]), _distance(alone[i], other[i])
        rounding = (
            1e-5 * math.sqrt(out.numel()) * float(out.double().nan_to_num().abs().max())
            if out.numel()
            else 0.0
        )
        if abs(change - change_alone) > 1e-4 * change_alone + rounding:
            return True
    return False


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).nan_to_num().norm())


def _changed(a: Tensor, b: Tensor) -> Tensor:
    return (a != b) & ~(a.isnan() & b.isnan())


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
