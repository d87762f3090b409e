"""Records what a forward does with its input as a graph, while the network runs on an example.

A ``TorchFunctionMode`` sees every call of a function of torch and of a method of a tensor. Numbers and shapes are those of
the example, so that control flow by shapes, named arguments, nested outputs and code of other packages are followed; control
flow by values that depend on the input is refused. Nothing is compiled, and torch's compiler is not imported.

What a function mode does not see (a scripted function, an extension in C++) a dispatch mode still does: it notes the memory
that depends on the input, and a value in such memory whose operation was not seen is refused, never taken for a constant.
"""

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from opnorm.errors import BoundError
from opnorm.norms.network.trace import leaves, tensors_in

__all__ = ["Recorder"]

OF_SHAPE = frozenset((
    "size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex", "stride", "get_device",
    "element_size", "is_contiguous", "storage_offset", "is_same_size", "is_signed", "is_inference", "is_tensor",
    "result_type", "can_cast", "type", "__len__", "__hash__", "__repr__", "__format__",
))  # fmt: skip
"""Functions of shapes and types alone, whose results are no tensors."""

MAKES = frozenset((
    "zeros", "ones", "empty", "full", "eye", "arange", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros",
    "new_ones", "new_empty", "new_full", "clone", "tensor", "new_tensor",
))  # fmt: skip
"""Functions whose results are in memory of their own."""


class _Memory(TorchDispatchMode):
    """The memory of all tensors that depend on the input."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to be sure that it does not compile this mode."""
        return False

    def __init__(self) -> None:
        super().__init__()
        self.dependent: set[int] = set()
        self.kept: list[Tensor] = []  # so that no address is used again

    def add(self, t: Tensor) -> None:
        self.dependent.add(_address(t))
        self.kept.append(t)

    def __contains__(self, t: Tensor) -> bool:
        address = _address(t)
        return address != 0 and address in self.dependent

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with unseen():
            output = func(*args, **kwargs)
            given = tensors_in((args, kwargs))
            if any(t in self for t in given):
                fixed = {_address(t) for t in given if t not in self}
                named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
                written = [
                    named.get(a.name)
                    for a in func._schema.arguments
                    if a.alias_info and a.alias_info.is_write
                ]
                # a view of a constant in the shape of another value is a constant
                for t in (*tensors_in(written), *(t for t in tensors_in(output) if _address(t) not in fixed)):
                    self.add(t)
        return output


unseen = torch._C.DisableTorchFunction
"""No function is recorded in this context."""


def _address(t: Tensor) -> int:
    """Of a tensor's memory; 0 where it has none of its own."""
    try:
        return t.untyped_storage().data_ptr()
    except NotImplementedError:  # sparse tensors, and those inside of torch.vmap
        return 0


class Recorder(TorchFunctionMode):
    """Records the operations on values that depend on the input.

    Attributes:
        graph: of the operations so far.
        named: the layers and constants that the graph names.
        read: the parameters of the model that are used outside of recorded layers, with their names.
        written_out: functions of torch, by their names, that are recorded as the operations of another one.
        made_anew: names of constants that the forward made, and wrote to.
    """

    def __init__(self, model: nn.Module, written_out: Mapping[str, Callable[..., Any]] | None = None) -> None:
        super().__init__()
        self.written_out = written_out or {}
        self.graph = fx.Graph()
        self.named: dict[str, Any] = {}
        self.read: dict[str, Tensor] = {}
        self.made_anew: set[str] = set()
        self._memory = _Memory()
        self._made: set[int] = set()  # addresses of constants that the forward made
        self._own = {id(t): (name, t, t._version) for name, t in _tensors(model)}
        self._nodes: dict[int, Callable[[], fx.Node]] = {}  # by the id of a tensor
        self._constants: dict[tuple[int, int], fx.Node] = {}  # by id and version
        self._kept: list[Any] = []  # so that no id is used again
        self._paused = False
        self._refused: BoundError | None = None

    def __enter__(self) -> "Recorder":
        """Begin to record."""
        self._memory.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """End; what the forward may have caught is raised."""
        super().__exit__(*error)
        self._memory.__exit__(*error)
        if self._refused is not None:
            raise self._refused

    def input(self, value: Tensor) -> Tensor:
        """An input of the graph, floating-point or not."""
        self._keep(value, self.graph.placeholder("x"))
        if value.is_floating_point():
            self._memory.add(value)
        return value

    def output(self, value: Any) -> None:
        """The output of the graph: its tensors, side by side."""
        for part in leaves(value):
            if part is not None and not isinstance(
                part, Tensor | int | float | str | torch.dtype | torch.device
            ):
                raise BoundError(
                    f"its forward returns {type(part).__name__}; expected tensors, or tuples or dicts of them"
                )
        with unseen():
            self.graph.output(tuple(self._node(t) for t in tensors_in(value)))

    def depends(self, value: Any) -> bool:
        """Whether tensors in nested arguments depend on the input, or are inputs."""
        found: list[bool] = []
        map_aggregate(
            value,
            lambda v: found.append(isinstance(v, Tensor) and (id(v) in self._nodes or v in self._memory)),
        )
        return any(found)

    def layer(self, name: str, layer: nn.Module, call: Callable[..., Any], must: bool) -> Callable[..., Any]:
        """The call of a layer that is one node of the graph; unless it ``must`` be, only if it maps one tensor to one."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            with unseen():
                if self._paused or not self.depends((args, kwargs)):
                    return self._run(call, args, kwargs)
                one = len(args) == 1 and isinstance(args[0], Tensor) and not kwargs
                if must or one:
                    arguments, versions = self._arguments(args, kwargs)
                    output = self._run(call, args, kwargs)
                    if must or isinstance(output, Tensor):
                        self.named[name] = layer
                        self._add("call_module", name, arguments, output, versions)
                        return output
            return call(*args, **kwargs)

        return recorded

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the function, and record it if it depends on the input."""
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        if _is_of_shape(func) and not tensors_in(output := func(*args, **kwargs)):
            return output
        self.read |= {self._own[id(t)][0]: t for t in tensors_in((args, kwargs)) if id(t) in self._own}
        if not self.depends((args, kwargs)):
            output = func(*args, **kwargs)
            if _name(func) in MAKES:
                self._made.update(map(_address, tensors_in(output)))
                self._kept.append(output)
            return output
        if (function := self.written_out.get(_name(func))) is not None:
            with _Again(self):
                return function(*args, **kwargs)
        try:
            if _writes(func) and isinstance(args[0], Tensor):
                self._whole(args[0])
            arguments, versions = self._arguments(args, kwargs)
            output = func(*args, **kwargs)
            self._add(*_target(func, *arguments), output, versions)
        except BoundError as e:
            self._refused = e
            raise
        return output

    # ---------------------------------------------------------------- nodes

    def _run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        before, self._paused = self._paused, True
        try:
            return call(*args, **kwargs)
        finally:
            self._paused = before

    def _arguments(self, args: Any, kwargs: Any) -> tuple[tuple[Any, Any], list[tuple[Tensor, int]]]:
        """Arguments with nodes for tensors, and the tensors with their versions before the call."""

        def node(v: Any) -> Any:
            return self._node(v) if isinstance(v, Tensor) else v

        versions = [(t, t._version) for t in tensors_in((args, kwargs))]
        return (map_aggregate(args, node), map_aggregate(kwargs, node)), versions

    def _node(self, t: Tensor) -> fx.Node:
        if id(t) in self._nodes:
            return self._nodes[id(t)]()
        if t in self._memory:
            if t._base is not None and id(t._base) in self._nodes:
                return self._view(t)
            raise BoundError(
                "a value depends on the input by an operation that is hidden from torch's function modes"
            )
        key = (id(t), t._version)
        if key not in self._constants:
            own, _, version = self._own.get(id(t), ("", t, -1))
            name = own.replace(".", "_") or f"constant_{len(self._constants)}"
            while name in self.named:
                name += "_"
            self.named[name] = t if version == t._version else t.detach().clone()
            self._constants[key] = self.graph.get_attr(name)
            self._kept.append(t)
        return self._constants[key]

    def _whole(self, t: Tensor) -> None:
        """A view of a constant that the forward made, and that is written to now, is a view of a node."""
        if t._base is not None and _address(t) in self._made and not self.depends(t):
            self._keep(t._base, self._node(t._base))
            self.made_anew.add(str(self._node(t._base).target))
            self._view(t)

    def _view(self, t: Any) -> fx.Node:
        memory = tuple(t.shape), t.stride(), t.storage_offset()
        self._keep(t, node := self.graph.call_function(torch.as_strided, (self._node(t._base), *memory)))
        return node

    def _add(
        self, kind: str, target: Any, arguments: Any, output: Any, versions: list[tuple[Tensor, int]]
    ) -> None:
        """A node, unless the output is one of the tensors given, as it was."""
        written = [t for t, version in versions if t._version != version]
        if any(output is t for t, _ in versions) and not written:
            return
        if output is not None and not tensors_in(output):
            raise BoundError(
                f"its forward goes by values that depend on the input: control flow by the data ({_name(target)})"
            )
        node = self.graph.create_node(kind, target, *arguments)
        self._keep(output, node)
        for t, version in versions:
            constant = self._constants.get((id(t), version)) if t._version != version else None
            if constant is not None and _address(t) in self._made:
                self.made_anew.add(str(constant.target))
            if constant is not None and id(t) not in self._nodes:
                self._keep(t, constant)

    def _keep(self, output: Any, node: fx.Node) -> None:
        self._kept.append(output)
        self._place(output, lambda: node)

    def _place(self, output: Any, node: Callable[[], fx.Node]) -> None:
        """Where each tensor of an output is found in the graph; parts get a node when they are used."""
        if isinstance(output, Tensor):
            self._nodes[id(output)] = node
            self._memory.add(output)
        elif isinstance(output, Mapping | tuple | list):
            for key in output if isinstance(output, Mapping) else range(len(output)):
                self._place(output[key], functools.cache(functools.partial(self._part, node, key)))

    def _part(self, whole: Callable[[], fx.Node], key: Any) -> fx.Node:
        return self.graph.call_function(operator.getitem, (whole(), key))


class _Again(TorchFunctionMode):
    """The recorder inside one of its own calls, where torch switches it off."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.recorder.__torch_function__(func, types, args, kwargs)


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _writes(func: Any) -> bool:
    """Whether a function writes into its first argument, by its name."""
    name = _name(func)
    if name.startswith("__"):
        return name == "__setitem__" or (
            name[2] == "i" and name not in ("__invert__", "__index__", "__int__")
        )
    return name.endswith("_")


def _is_of_shape(func: Any) -> bool:
    """Whether a function reads shapes and types alone, or is an attribute, which does so if it is no tensor."""
    return _name(func) in OF_SHAPE or _name(func) == "__get__"


def _name(func: Any) -> str:
    return func if isinstance(func, str) else getattr(func, "__name__", str(func))


def _target(func: Any, args: Any, kwargs: Any) -> tuple[str, Any, tuple[Any, Any]]:
    """The kind, target and arguments of a node: a function, a method by its name, or an operator."""
    name = _name(func)
    if name == "__get__":
        return "call_function", getattr, ((args[0], func.__self__.__name__), {})
    if name == "__set__":
        raise BoundError(f"its forward sets the attribute {func.__self__.__name__!r} of a tensor")
    if getattr(Tensor, f"__{name}__", None) is func:  # such as pow
        name = f"__{name}__"
    elif getattr(Tensor, name, None) != func:
        return "call_function", func, (args, kwargs)
    if not name.startswith("__"):
        return "call_method", name, (args, kwargs)
    plain = (
        name.strip("_").replace("div", "truediv")
        if name in ("__div__", "__rdiv__", "__idiv__")
        else name.strip("_")
    )
    for n, swap in ((plain, False), (f"{plain}_", False), (plain[1:], True), (f"{plain[1:]}_", True)):
        if hasattr(operator, n) and (not swap or plain[0] == "r"):
            return "call_function", getattr(operator, n), (args[::-1] if swap else args, kwargs)
    return "call_method", name, (args, kwargs)
