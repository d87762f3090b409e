"""The layers that a forward pass calls, with the shapes of their inputs and outputs."""

import copy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from opnorm._core.layers import Shape, unwrap
from opnorm._core.modes import evaluating, in_default_modes
from opnorm.errors import OpnormError
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.nonlinear import is_copying, is_nonlinear

__all__ = [
    "Example",
    "LayerCall",
    "arguments",
    "eagerly",
    "first_line",
    "has_formula",
    "layers",
    "leaves",
    "map_tensors",
    "tensors_in",
    "trace",
]

Example = Tensor | Sequence[Any] | Mapping[str, Any]
"""What a model is called with: one batch, or a tuple of arguments, or a dict of named ones."""


class LayerCall(NamedTuple):
    """One call of a layer in a forward pass.

    Attributes:
        name: of the layer in the model, without the prefixes of ``torch.compile`` and ``DataParallel``.
        layer: the layer itself.
        in_shape: of one input, the first tensor, without the batch axis.
        out_shape: of one output, the first tensor.
        note: why this is no map from one tensor to one; empty where it is.
    """

    name: str
    layer: nn.Module
    in_shape: Shape
    out_shape: Shape
    note: str = ""


@in_default_modes
def trace(model: nn.Module, example: Example) -> list[LayerCall]:
    """The calls of layers in a forward pass, in order.

    Layers are the modules without children, those of a type that opnorm has a formula for, and those with parameters of
    their own; a layer that is called twice is listed twice.

    Args:
        model: run once in eval mode, without compilation; left as it was, uninitialized lazy layers too.
        example: a batch of inputs (B, ...), of which the first is used; or a tuple of arguments or a dict of named
            ones, used as they are. Moved to the model's device and its floating-point type.

    Raises:
        OpnormError: the example is something else, or the model does not take it.
    """
    model = unwrap(model)
    args, kwargs = arguments(model, example)
    try:
        return _trace(model, args, kwargs)
    except Exception as e:  # whatever the user's own network raises
        raise OpnormError(
            f"the model does not take {_input_text(args, kwargs)}: {e}{_cause(model, example, e)}"
        ) from e


def _cause(model: nn.Module, example: Any, e: Exception) -> str:
    """The likely cause why a model does not take an example; empty where none is known."""
    sparse = [name for name, p in model.named_parameters() if p.layout != torch.strided]
    if sparse:
        return f"; {sparse[0]} is sparse, of which no norm is known: weight.to_dense() makes it dense"
    if isinstance(e, TypeError):
        return "; does its forward want more? Pass a tuple of arguments or a dict"
    if isinstance(example, Tensor) and not example.is_floating_point() and not example.is_complex():
        return f"; the example is {example.dtype}: are its inputs floating point, as pixels / 255?"
    if isinstance(example, Tensor) and _takes(model, example[None]):
        return f"; the first axis of an example of shape {tuple(example.shape)} is taken for the batch: is it missing?"
    if isinstance(example, Tensor) and len(example) == 1 and example.dim() > 2 and _takes(model, example[0]):
        return (
            f"; it takes an input of shape {tuple(example.shape[2:])}: is the axis of the batch twice there?"
        )
    return ""


def _takes(model: nn.Module, example: Tensor) -> bool:
    try:
        return bool(_trace(model, (example,), {}))
    except Exception:  # noqa: BLE001 - whatever the user's own network raises
        return False


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[LayerCall]:
    if any(is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        own = dict(layers(model))
        with torch.random.fork_rng():  # the copy draws its initial weights
            calls = _recorded(copy.deepcopy(model), lambda m: m(*args, **kwargs))
        return [c._replace(layer=own[c.name]) for c in calls]
    try:
        return _recorded(model, lambda m: m(*args, **kwargs))
    except RuntimeError:  # NotImplementedError is one, too
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        if not any(t.is_meta or t.dtype in (torch.half, torch.bfloat16) for t in tensors.values()):
            raise
        try:  # weights without values, or of a type that this device cannot compute in: shapes suffice
            meta = {k: t.to("meta") for k, t in tensors.items()}
            on_meta = [map_tensors(v, lambda t: t.to("meta")) for v in (args, kwargs)]
            return _recorded(model, lambda m: torch.func.functional_call(m, meta, *on_meta))
        except Exception:  # noqa: BLE001 - the first error says more
            pass
        raise


def arguments(model: nn.Module, example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments for the model, on its device and in its floating-point type: copies, to write to.

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

    def moved(t: Tensor) -> Tensor:
        wanted = dtype if dtype and t.is_floating_point() else t.dtype
        return t.detach().to(device=device or t.device, dtype=wanted, copy=True)

    return map_tensors(args, moved), map_tensors(kwargs, moved)


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The function on every tensor of nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, dict):
        return {k: map_tensors(v, function) for k, v in value.items()}
    return type(value)(map_tensors(v, function) for v in value) if type(value) in (tuple, list) else value


def leaves(value: Any) -> list[Any]:
    """What nested tuples, lists and dicts hold."""
    if isinstance(value, Mapping):
        value = list(value.values())
    return [x for v in value for x in leaves(v)] if isinstance(value, tuple | list) else [value]


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of nested tuples, lists and dicts."""
    return [t for t in leaves(value) if isinstance(t, Tensor)]


def _input_text(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The shapes that a model was called with, for a message."""
    if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
        return f"an input of shape {tuple(args[0].shape[1:])}"
    named = [("", a) for a in args] + [(f"{k}=", v) for k, v in kwargs.items()]
    texts = [
        k + (f"tensor {tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__) for k, v in named
    ]
    return f"({', '.join(texts)})"


def eagerly() -> AbstractContextManager[Any]:
    """Compiled modules run uncompiled; the compiler is not imported for this (it takes a second or two)."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()


def first_line(e: BaseException) -> str:
    """The kind of an error and the first line of its text."""
    return f"{type(e).__name__}: {e}".splitlines()[0][:200]


def has_formula(layer: nn.Module) -> bool:
    """Whether opnorm has a formula for the norm or the Lipschitz constant of layers of this type."""
    return l1.dispatch(type(layer)) is not l1.dispatch(object) or is_copying(layer) or is_nonlinear(layer)


def layers(
    model: nn.Module, name: str = "", seen: set[nn.Module] | None = None
) -> Iterator[tuple[str, nn.Module]]:
    """The modules that count as one layer, each once, with their names."""
    seen = set() if seen is None else seen
    if model in seen:
        return
    seen.add(model)
    children = [(n, c) for n, c in model.named_children() if n != "parametrizations"]
    whole = (
        has_formula(model) or ".quantized" in type(model).__module__
    )  # those keep their weights in a child
    if whole or not children or any(p is not None for p in model._parameters.values()):
        yield name, model
    for child_name, child in () if whole else children:
        inner = name if child_name == "_orig_mod" else f"{name}.{child_name}".removeprefix(".")
        yield from layers(child, inner, seen)


def _recorded(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[LayerCall]:
    calls: list[LayerCall] = []

    def recorder(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
            inputs = tensors_in((args, kwargs))
            in_shape, out_shape = (tuple(t[0].shape[1:]) if t else () for t in (inputs, tensors_in(output)))
            calls.append(LayerCall(name, layer, in_shape, out_shape, _no_map(layer, inputs, output)))

        return hook

    handles = [m.register_forward_hook(recorder(name), with_kwargs=True) for name, m in layers(model)]
    try:
        with evaluating(model), eagerly():
            run(model)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _no_map(layer: nn.Module, inputs: list[Tensor], output: Any) -> str:
    """Why a call is no map from one floating-point tensor to another one; empty where it is."""
    kind = type(layer).__name__
    own = [n for n, p in layer._parameters.items() if p is not None]
    if not has_formula(layer) and own and any(True for _ in layer.children()):
        names = ", ".join(own[:3]) + ", ..." * (len(own) > 3)
        return f"{kind} uses parameters of its own ({names}) in a way no layer shows"
    if not inputs:
        return f"{kind} takes no tensor"
    if inputs[0].is_complex():
        return f"{kind} takes complex numbers; norms are known for real ones only"
    if not inputs[0].is_floating_point():
        return f"{kind} takes whole numbers, between which there is no small change"
    if not isinstance(output, Tensor):
        return f"{kind} returns {type(output).__name__}, not one tensor; its norm is not known"
    if len(inputs) > 1:
        return f"{kind} takes {len(inputs)} tensors; its norm is not known"
    return ""
