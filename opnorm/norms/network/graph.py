"""The forward of a network as a graph, down to the layers that opnorm has formulas for."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from opnorm._core.layers import unwrap
from opnorm.errors import BoundError
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.network.recorder import Recorder
from opnorm.norms.network.trace import Example, arguments, eagerly, first_line, map_tensors, tensors_in, trace
from opnorm.norms.nonlinear import is_copying, is_nonlinear, known_base

__all__ = [
    "ForwardGraph",
    "attributes_restored",
    "forward_graph",
    "mixes_points",
    "no_random_numbers",
    "same_output",
    "shifted",
]


class ForwardGraph(NamedTuple):
    """A forward as a graph.

    Attributes:
        graph: its nodes.
        named: the layers and constants that the nodes name.
        read: the parameters that are used outside of the layers that are nodes, by name.
        inputs: values of the placeholders.
        made_anew: names of the constants that the forward makes and writes to.
    """

    graph: fx.Graph
    named: dict[str, Any]
    read: dict[str, Tensor]
    inputs: list[Tensor]
    made_anew: frozenset[str]


def forward_graph(
    model: nn.Module,
    example: Example,
    is_node: Callable[[nn.Module], bool] | None = None,
    written_out: Mapping[str, Callable[..., Any]] | None = None,
) -> ForwardGraph:
    """The graph of what the forward does with an example, down to the layers that opnorm has formulas for.

    Args:
        model: taken as it is.
        example: as for :func:`opnorm.measure`.
        is_node: whether a layer is one node, always; by default if opnorm has a formula for it.
        written_out: functions of torch, by their names, and others of which the operations are recorded in their place.

    Raises:
        BoundError: the forward cannot be written as a graph, with the operation or the reason.
        OpnormError: the model does not take the example.
    """
    args, kwargs = arguments(model, example)
    is_node = is_node or _is_known
    recorder = Recorder(model, written_out)
    inputs = map_tensors((args, kwargs), lambda t: recorder.input(shifted(t)))
    try:
        with no_random_numbers(), _uncompiled(model), attributes_restored(model):
            for name, layer in _leaves(model, is_node, written_out or {}):
                call = recorder.layer(name, layer, layer._call_impl, is_node(layer))
                vars(layer)["_compiled_call_impl"] = call  # torch takes it in the place of the forward
            with recorder:
                output = model(*inputs[0], **inputs[1])
            recorder.output(output)
    except BoundError:
        raise
    except Exception as e:  # of the user's own network
        trace(model, example)
        raise BoundError(f"its forward cannot be followed: {first_line(e)}") from e
    placed = tensors_in(arguments(model, example))
    return ForwardGraph(recorder.graph, recorder.named, recorder.read, placed, frozenset(recorder.made_anew))


def _is_known(layer: nn.Module) -> bool:
    """Whether opnorm has a formula for the layer, whose forward is that of the formula."""
    return known_base(layer, l1.registry) is not None or is_copying(layer) or is_nonlinear(layer)


def _leaves(
    model: nn.Module, is_node: Callable[[nn.Module], bool], written_out: Collection[str]
) -> list[tuple[str, nn.Module]]:
    """The layers with a formula and torch's own ones without children, each once, but for those that are written out."""
    return [
        (name.replace("_orig_mod.", ""), m)
        for name, m in model.named_modules()
        if m is not model
        and type(m).__name__.lower() not in written_out
        and (is_node(m) or (type(m).__module__.startswith("torch.nn.") and not m._modules))
    ]


@contextmanager
def no_random_numbers() -> Iterator[None]:
    """BoundError when the block draws from the global generator, whose state is restored then."""
    before = torch.get_rng_state()
    yield
    if not torch.equal(before, torch.get_rng_state()):
        torch.set_rng_state(before)
        raise BoundError("its forward draws random numbers")


@contextmanager
def _uncompiled(model: nn.Module) -> Iterator[None]:
    """Compiled modules inside the model are replaced by the original ones."""
    with attributes_restored(model), eagerly():
        for parent in list(model.modules()):
            for name, child in parent._modules.items():
                parent._modules[name] = child if child is None else unwrap(child)
        yield


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
    return t + torch.rand(t.shape, dtype=torch.float32, generator=generator).to(t)


def mixes_points(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an output depends on two points of a batch, as it does after a softmax along the batch axis.

    The example is run in a batch of five, since windows along the batch axis may overlap in long batches only, or of two
    where it takes no five. Then two neighbors are changed, one by one. No number of the outputs may change both times, and
    each change must be as large as that of an example alone. A model that takes no such batch has none to mix.
    """
    sizes = [len(t) for t in tensors_in((args, kwargs)) if t.is_floating_point() and t.ndim]

    def outputs(*seeds: int) -> list[Tensor]:
        def joined(t: Tensor) -> Tensor:
            is_batch = t.ndim > 0 and len(t) == sizes[0]
            return torch.cat([shifted(t, seed) for seed in seeds]) if is_batch else shifted(t)

        return tensors_in(model(*map_tensors(args, joined), **map_tensors(kwargs, joined)))

    batches: list[tuple[Sequence[int], int, int, Sequence[int]]] = [((1, 2), 3, 4, (5,)), ((), 1, 2, ())]
    for before, one, other, after in batches if sizes else []:
        try:
            all_of_them = outputs(*before, one, other, *after)
            changed = outputs(*before, 6, other, *after), outputs(*before, one, 6, *after)
            alone, new = (outputs(one), outputs(other)), outputs(6)
        except Exception:  # noqa: BLE001 - of the user's own network, which need not take such a batch
            continue
        return any(
            bool((_changed(out, changed[0][i]) & _changed(out, changed[1][i])).any())
            or any(_unlike(out, c[i], a[i], new[i]) for c, a in zip(changed, alone, strict=True))
            for i, out in enumerate(all_of_them)
        )
    return False


def _unlike(out: Tensor, changed: Tensor, alone: Tensor, new: Tensor) -> bool:
    """Whether the change in a batch has another length than that of the example alone, up to rounding."""
    if not out.numel():
        return False
    change, change_alone = _distance(out, changed), _distance(alone, new)
    rounding = 1e-5 * math.sqrt(out.numel()) * float(out.double().nan_to_num().abs().max())
    return abs(change - change_alone) > 1e-4 * change_alone + rounding


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
