"""Which layers a forward pass visits, and the shapes that they see."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opnorm._core.layers import Shape
from opnorm._core.modes import evaluating
from opnorm.errors import OpnormError
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.nonlinear import is_copying, is_nonlinear

__all__ = [
    "Example",
    "Visit",
    "arguments",
    "called",
    "eagerly",
    "input_text",
    "is_known",
    "layers",
    "mapped",
    "trace",
    "unwrapped",
]

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one batch, or a tuple of arguments, or a dict of named ones."""


class Visit(NamedTuple):
    """One call of a layer in a forward pass, with the shapes of one input and one output (no batch axis).

    Attributes:
        name: of the layer in the model, without what ``torch.compile`` and ``DataParallel`` put before it.
        layer: the layer itself.
        in_shape: of its first tensor.
        out_shape: of the first tensor that it returns.
        note: why this is no map from one tensor to one; empty where it is.
    """

    name: str
    layer: nn.Module
    in_shape: Shape
    out_shape: Shape
    note: str = ""


def trace(model: nn.Module, example: Example) -> list[Visit]:
    """Which layers a forward pass visits, in order, and the shapes that they see.

    Layers are the modules without children, those of a type that opnorm knows, and those that hold parameters of their
    own; a layer that is called twice is visited twice.

    Args:
        model: run once in eval mode, without compilation; left as it was, uninitialized lazy layers too.
        example: a batch of inputs (B, ...), of which the first is used; or a tuple of arguments or a dict of named
            ones, used as they are. Moved to the model's device and its floating-point type.

    Raises:
        OpnormError: the example is something else.
        Exception: whatever the model raises.
    """
    model = unwrapped(model)
    args, kwargs = arguments(model, example)
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        own = dict(layers(model))
        with torch.random.fork_rng():  # the copy draws its initial weights
            visits = _watch(copy.deepcopy(model), lambda m: called(m, args, kwargs))
        return [v._replace(layer=own[v.name]) for v in visits]
    try:
        return _watch(model, lambda m: called(m, args, kwargs))
    except (RuntimeError, NotImplementedError):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if not any(t.is_meta or t.dtype in (torch.half, torch.bfloat16) for t in tensors.values()):
            raise
        try:  # weights without numbers, or of a type that this device cannot compute in: shapes are all we need
            meta = {k: t.to("meta") for k, t in tensors.items()}
            args, kwargs = (mapped(v, lambda t: t.to("meta")) for v in (args, kwargs))
            return _watch(model, lambda m: torch.func.functional_call(m, meta, args, kwargs))
        except Exception:  # noqa: BLE001 - the first error says more
            pass
        raise


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call the model with, on its device and in its floating-point type.

    Raises:
        OpnormError: the example is no tensor with a batch axis, no tuple and no dict.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(example, Tensor):
        if example.ndim == 0:
            raise OpnormError(
                "the example is a single number; expected a batch of inputs, such as (1, 3, 32, 32)"
            )
        args = (example[:1],)
    elif isinstance(example, Mapping) and all(isinstance(k, str) for k in example):
        kwargs = dict(example)
    elif isinstance(example, tuple | list):
        args = tuple(example)
    else:
        raise OpnormError(
            f"the example is {type(example).__name__}; expected a batch of inputs as a tensor, a tuple of the model's "
            "arguments, or a dict of its named ones"
        )
    tensors = [t for t in (*model.parameters(), *model.buffers()) if not is_lazy(t)]
    devices = {t.device for t in tensors}
    device = devices.pop() if len(devices) == 1 else None
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), None)

    def fit(t: Tensor) -> Tensor:
        return t.to(device=device or t.device, dtype=dtype if dtype and t.is_floating_point() else t.dtype)

    return mapped(args, fit), mapped(kwargs, fit)


def mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function on every tensor of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: mapped(v, function) for k, v in value.items()}
    return type(value)(mapped(v, function) for v in value) if type(value) in (tuple, list) else value


def input_text(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The shapes that a model was called with, for a message."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return f"an input of shape {tuple(args[0].shape[1:])}"
    named = [("", a) for a in args] + [(f"{k}=", v) for k, v in kwargs.items()]
    shown = [
        k + (f"tensor {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__) for k, v in named
    ]
    return f"({', '.join(shown)})"


def called(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """model(*args, **kwargs), with nothing compiled on the way."""
    with eagerly():
        return model(*args, **kwargs)


def eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run as they were before; what loads the compiler (a second or two) is not done for its sake."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def is_known(layer: nn.Module) -> bool:
    """Whether opnorm knows the norm or the Lipschitz constant of layers of this type."""
    return l1.dispatch(type(layer)) is not l1.dispatch(object) or is_copying(layer) or is_nonlinear(layer)


def layers(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that are looked at as one, each once, with their names."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
        if module in seen:
            return
        seen.add(module)
        children = [(n, c) for n, c in module.named_children() if n != "parametrizations"]
        quantized = ".quantized" in type(module).__module__  # those keep their weights in a child
        whole = is_known(module) or quantized
        if whole or not children or any(p is not None for p in module._parameters.values()):
            yield name, module
        if not whole:
            for child_name, child in children:
                inner = name if child_name == "_orig_mod" else f"{name}.{child_name}".removeprefix(".")
                yield from walk(child, inner)

    return walk(model, name)


def _watch(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[Visit]:
    visits: list[Visit] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            inputs = _tensors((args, kwargs))
            outputs = _tensors(output)
            shapes = [tuple(t[0].shape[1:]) if t else () for t in (inputs, outputs)]
            visits.append(Visit(name, layer, shapes[0], shapes[1], _strange(layer, inputs, output)))

        return hook

    for name, module in layers(model):
        handles.append(module.register_forward_hook(watch(name), with_kwargs=True))
    try:
        with evaluating(model):
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return visits


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, tuple | list) else []


def _strange(layer: nn.Module, inputs: list[Tensor], output: Any) -> str:
    """What keeps a call from being a map from one tensor of numbers to another one."""
    kind = type(layer).__name__
    own = [n for n, p in layer._parameters.items() if p is not None]
    if not is_known(layer) and own and any(True for _ in layer.children()):
        return f"{kind} uses parameters of its own ({', '.join(own[:3])}{', ...' * (len(own) > 3)}) in a way no layer shows"
    if not inputs:
        return f"{kind} takes no tensor"
    if not inputs[0].is_floating_point():
        return f"{kind} takes whole numbers, between which there is no small change"
    if not isinstance(output, Tensor):
        return f"{kind} returns {type(output).__name__}, not one tensor; its norm is not known"
    if len(inputs) > 1:
        return f"{kind} takes {len(inputs)} tensors; its norm is not known"
    return ""
