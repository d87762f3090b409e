"""Bounds for a whole network from the norms of its layers, along the graph of what its forward does.

``torch.fx`` writes the forward down as a graph; each value in it gets a number L with

    ‖value(x) - value(y)‖_p <= L ‖x - y‖_p    for all inputs x, y,

composition multiplies, a sum adds, a concatenation takes the ℓp norm of its parts (‖(a, b)‖_p^p = ‖a‖_p^p + ‖b‖_p^p),
and copies count: an input that reaches m places counts m^(1/p). What has no rule here is "not known", with its name and
the reason, and is never taken for 1. The bound holds for one input at a time, in eval mode.
"""

import functools
import inspect
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import config as jaxtyping_config
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from opnorm.errors import NormError
from opnorm.linear import Shape, overrides
from opnorm.modes import evaluating
from opnorm.norms import show
from opnorm.norms.exact import l1
from opnorm.norms.nonlinear import copies, is_copying, is_nonlinear, normalizing
from opnorm.norms.table import NormTable, Product, check_ords, layer_norms, measure, visited
from opnorm.norms.visits import Example, arguments, called, eagerly, layers, mapped, unwrapped

__all__ = ["NetworkBound", "Part", "lipschitz_bound", "spectral_complexity"]

ROUNDING = 1e-12  # relative, for each step: far above the float64 rounding of a few products and sums


class Part(NamedTuple):
    """One step of the graph.

    Attributes:
        name: of the node, or of the layer in the model.
        what: what it does: the class of a layer, the name of a function.
        factor: by how much it can stretch its input; None where it has several inputs.
        bound: L of its result.
    """

    name: str
    what: str
    factor: float | None
    bound: float


class NetworkBound(NamedTuple):
    """An upper bound on a network's Lipschitz constant from ℓp to ℓp, or the reason why there is none.

    Attributes:
        value: the bound, or None.
        reason: why it is not known; empty where it is.
        parts: the steps that led to it, in the order of the forward pass, as far as they are known.
    """

    value: float | None
    reason: str
    parts: tuple[Part, ...]

    def __str__(self) -> str:
        """The bound to 4 digits, rounded up, or the reason."""
        if self.value is None:
            return f"not known: {self.reason}"
        return "0" if self.value == 0 else show.magnitude(math.log10(self.value), up=True)


def lipschitz_bound(
    model: nn.Module, example: Example, ord: float = 2, *, table: NormTable | None = None
) -> NetworkBound:
    """An upper bound on sup ‖f(x) - f(y)‖_p / ‖x - y‖_p over all inputs, from the layers' norms along the graph.

    It says how far the network can amplify anything anywhere. It is usually far above what happens near the data, and the
    more so the deeper the network: see the page "Which norm do I need?".

    Args:
        model: any network; taken in eval mode and left as it was.
        example: as for :func:`opnorm.measure`. With several inputs, x and y are all floating-point ones side by side.
        ord: p: 1, 2 or ``math.inf``.
        table: what :func:`opnorm.measure` found for this model and example, so that it is not computed again.

    Returns:
        ``NetworkBound(value, reason, parts)``.

    Raises:
        NormError: another ``ord``.
        OpnormError: the model does not take the example.

    Example:
        >>> import torch
        >>> double = torch.nn.Linear(1, 1)
        >>> _ = double.weight.data.fill_(2.0)
        >>> model = torch.nn.Sequential(double, torch.nn.ReLU(), double)
        >>> print(lipschitz_bound(model, torch.zeros(1, 1), ord=1))
        4
    """
    check_ords([ord])
    if isinstance(ord, tuple):
        raise NormError(f"ord={ord!r}: bounds along the graph are from ℓp to ℓp; expected 1, 2 or math.inf")
    model = unwrapped(model)
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(t) or t.is_meta:
            return NetworkBound(None, f"{name} has no numbers yet (a lazy layer, or the meta device)", ())
    with evaluating(model):
        graph, values, reason = _graph(model, example)
        if graph is None:
            return NetworkBound(None, reason, ())
        walk = _Walk(graph, ord, _known(model, table))
        before = torch.get_rng_state()
        try:
            result = walk.run(*(mapped(v, _elsewhere) for v in values))
            args, kwargs = (mapped(v, _elsewhere) for v in arguments(model, example))
            same = _same(result, called(model, args, kwargs))
        except Exception as e:  # noqa: BLE001 - whatever the user's own network raises
            visited(model, example)  # says so if the model itself does not take the example
            return NetworkBound(
                None, f"its graph fails where the model does not: {_line(e)}", tuple(walk.parts)
            )
        if not torch.equal(before, torch.get_rng_state()):
            torch.set_rng_state(before)
            return NetworkBound(None, "its forward draws random numbers", tuple(walk.parts))
    parts = tuple(walk.parts)
    if not same:
        return NetworkBound(
            None, "its graph gives another output than the model: control flow by the data?", parts
        )
    try:
        joint = walk.joined(walk.result)
    except _Unknown as e:
        return NetworkBound(None, str(e), parts)
    value = joint * (1 + ROUNDING * (1 + len(graph.graph.nodes)))
    if not math.isfinite(value):
        return NetworkBound(None, "the product of the norms is too large for a number", parts)
    return NetworkBound(value, "", parts)


def sentences(bounds: Mapping[float, NetworkBound]) -> list[str]:
    """Bounds by order, in words."""
    known = ", ".join(f"{show.label(p)} ≤ {b}" for p, b in bounds.items() if b.value is not None)
    lines = [f"Lipschitz constant of the whole network, along its graph: {known}"] if known else []
    reasons: dict[str, list[str]] = {}
    for p, b in bounds.items():
        if b.value is None:
            reasons.setdefault(b.reason, []).append(show.label(p))
    return lines + [
        f"Lipschitz constant in {', '.join(names)} not known: {why}" for why, names in reasons.items()
    ]


def spectral_complexity(model: nn.Module, example: Example) -> Product:
    """∏ ‖W^i‖_2 over the linear and convolutional layers as an interval, and its logarithm.

    Args:
        model: any network.
        example: as for :func:`opnorm.measure`.

    Raises:
        OpnormError: the model does not take the example.

    Source: Wen et al. 2020, Definition 7. (They train without batch normalization; it is not counted here either.)
    """
    found = measure(model, example, ords=(2,)).spectral_complexity
    assert found is not None, "ℓ2 was asked for"
    return found


def _known(
    model: nn.Module, table: NormTable | None
) -> dict[tuple[nn.Module, Shape, float], tuple[float, str]]:
    """Layer, input shape and order -> upper bound and what is missing, from a table."""
    modules = dict(layers(model))
    found: dict[tuple[nn.Module, Shape, float], tuple[float, str]] = {}
    for row in table.rows if table else ():
        for p in (1, 2, math.inf):
            value = row.lipschitz.get(p, row.norms[p].upper if p in row.norms else None)
            if value is not None and row.layer in modules:
                found[modules[row.layer], row.in_shape, p] = (float(value), "")
    return found


# ---------------------------------------------------------------- the graph


class _Tracer(fx.Tracer):
    """Stops at the layers that opnorm knows, and follows everything else."""

    def __init__(self) -> None:
        super().__init__(autowrap_modules=(math,))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        base = next((c for c in type(m).__mro__ if c in l1.registry and c is not object), None)
        if base is not None:
            return not overrides(m, base)
        return is_copying(m) or is_nonlinear(m) or super().is_leaf_module(m, module_qualified_name)


def _graph(model: nn.Module, example: Example) -> tuple[fx.GraphModule | None, list[Any], str]:
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
        return None, [], f"its forward cannot be written as a graph: {_line(e)}"
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


def _elsewhere(t: Tensor) -> Tensor:
    """A copy somewhere near, by the same numbers in every call: examples are often zeros, which hide what is wrong."""
    if not t.is_floating_point():
        return t.clone()
    generator = torch.Generator().manual_seed(0)
    return t + torch.rand(t.shape, generator=generator).to(t)


def _variadic(bound: inspect.BoundArguments, name: str) -> bool:
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return bound.signature.parameters[name].kind in kinds


def _line(e: BaseException) -> str:
    return f"{type(e).__name__}: {e}".splitlines()[0][:200]


def _same(a: Any, b: Any) -> bool:
    """Whether two outputs agree up to rounding."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape:
            return False
        a, b = a.double(), b.double()
        largest = float(b[b.isfinite()].abs().max()) if bool(b.isfinite().any()) else 0.0
        return torch.allclose(a, b, rtol=1e-3, atol=1e-4 * largest, equal_nan=True)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


# ---------------------------------------------------------------- values of the graph


class _Unknown(Exception):  # noqa: N818 - no error: a value without a bound, with the reason
    """The reason why a value has no bound."""


class _Call(NamedTuple):
    """A node with its numbers and its bounds."""

    walk: "_Walk"
    what: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bounds: tuple[Any, ...]  # of args
    named: dict[str, Any]  # of kwargs
    output: Any

    @property
    def p(self) -> float:
        return self.walk.ord

    def first(self) -> tuple[Tensor, float]:
        """The first argument and its bound, where nothing else depends on the input."""
        rest = (*self.bounds[1:], *self.named.values())
        if (
            not self.bounds
            or not isinstance(self.bounds[0], float | _Unknown)
            or any(_depends(b) for b in rest)
        ):
            raise _Unknown("something else than its first argument depends on the input")
        return self.args[0], _number(self.bounds[0])

    def value(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def _depends(bound: Any) -> bool:
    """Whether a value depends on the input: None says no, and so do collections of None."""
    if isinstance(bound, Mapping):
        return any(_depends(b) for b in bound.values())
    return any(_depends(b) for b in bound) if isinstance(bound, tuple | list) else bound is not None


def _number(bound: Any) -> float:
    if isinstance(bound, _Unknown):
        raise bound
    if bound is None:
        return 0.0
    if not isinstance(bound, float):
        raise _Unknown("a tuple stands where one tensor was expected")
    return bound


class _Walk(fx.Interpreter):
    """Runs the graph on the example, and carries the bounds along."""

    def __init__(
        self,
        graph: fx.GraphModule,
        ord: float,
        known: dict[tuple[nn.Module, Shape, float], tuple[float, str]],
    ) -> None:
        super().__init__(graph)
        self.ord, self.known = ord, known
        self.of: dict[fx.Node, Any] = {}
        self.parts: list[Part] = []
        self.result: Any = None
        self.spoiled = ""  # a parameter or buffer that the forward wrote to

    def run_node(self, n: fx.Node) -> Any:
        live = [(m, t, t._version) for m, t in self.env.items() if isinstance(t, Tensor)]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        output = super().run_node(n)
        bound = self._bound(n, args, kwargs, output)
        self.of[n] = bound
        for m, t, version in live:
            if t._version != version:
                self.of[m] = (
                    bound if _is(t, output) else _Unknown(f"{n.name} ({_what(n)}) writes into {m.name}")
                )
                if m.op == "get_attr":
                    self.spoiled = f"{n.name} writes into {m.target}"
        if n.op == "output":
            self.result = bound
        return output

    def _bound(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if n.op == "placeholder":
            return 1.0 if isinstance(output, Tensor) and output.is_floating_point() else None
        if n.op == "get_attr":
            return None
        bounds = self._bounds(n.args)
        named = self._bounds(n.kwargs)
        if n.op == "output":
            return bounds[0]
        if not _depends(bounds) and not _depends(named):
            return _Unknown(f"{n.name} draws random numbers") if str(_what(n)) in RANDOM else None
        call = _Call(self, _what(n), args, kwargs, bounds, named, output)
        try:
            if self.spoiled:
                raise _Unknown(self.spoiled)
            bound = self._layer(n, call) if n.op == "call_module" else _rule(n, call)
        except (_Unknown, NormError) as e:
            blame = next((b for b in (*_flat(bounds), *_flat(named)) if isinstance(b, _Unknown)), None)
            return blame or _Unknown(
                f"{n.target if n.op == 'call_module' else n.name} ({_what(n, self)}): {e}"
            )
        except Exception as e:  # noqa: BLE001 - a call that the rule did not foresee is not known
            return _Unknown(f"{n.name} ({_what(n, self)}): no rule fits this call ({_line(e)})")
        if isinstance(bound, float):
            sources = [b for b in (*_flat(bounds), *_flat(named)) if isinstance(b, float)]
            factor = bound / sources[0] if len(sources) == 1 and sources[0] else None
            name = str(n.target) if n.op == "call_module" else n.name
            self.parts.append(Part(name, _what(n, self), factor, bound))
        return bound

    def _bounds(self, value: Any) -> Any:
        """The bounds of arguments, in their own structure; None for what is no node."""
        if isinstance(value, fx.Node):
            return self.of[value]
        if isinstance(value, slice):
            value = (value.start, value.stop, value.step)
        if isinstance(value, Mapping):
            return {k: self._bounds(v) for k, v in value.items()}
        return tuple(self._bounds(v) for v in value) if isinstance(value, tuple | list) else None

    def _layer(self, n: fx.Node, call: _Call) -> float:
        layer = self.fetch_attr(str(n.target))
        if _changed_by_hooks(layer):
            raise _Unknown("a hook may change what it computes")
        x, bound = call.first()
        if not isinstance(call.output, Tensor):
            raise _Unknown(f"returns {type(call.output).__name__}, not one tensor")
        return bound * self.factor(layer, tuple(x.shape[1:]))

    def factor(self, layer: nn.Module, shape: Shape) -> float:
        """How far a layer can stretch, or _Unknown."""
        place = (layer, shape, self.ord)
        if place not in self.known:
            norms, constants, note = layer_norms(layer, shape, (self.ord,))
            upper = constants.get(self.ord, float(norms[self.ord].upper) if self.ord in norms else math.inf)
            self.known[place] = (upper, note)
        upper, note = self.known[place]
        if not math.isfinite(upper):
            raise _Unknown(note or f"no upper bound of its {show.label(self.ord)} norm is known")
        return upper

    def joined(self, bound: Any) -> float:
        """The bound of several values side by side: the ℓp norm of theirs."""
        values = [_number(b) for b in _flat(bound)]
        return _p_norm(values, self.ord)


def _flat(bound: Any) -> list[Any]:
    if isinstance(bound, Mapping):
        bound = tuple(bound.values())
    return [b for part in bound for b in _flat(part)] if isinstance(bound, tuple | list) else [bound]


def _p_norm(values: Sequence[float], p: float) -> float:
    largest = max(values, default=0.0)
    if largest == 0 or math.isinf(p):
        return largest
    return largest * math.fsum((v / largest) ** p for v in values) ** (1 / p)


def _is(t: Tensor, output: Any) -> bool:
    """Whether the output is that tensor, all of it."""
    return (
        isinstance(output, Tensor)
        and t.data_ptr() == output.data_ptr()
        and t.shape == output.shape
        and t.stride() == output.stride()
    )


def _changed_by_hooks(layer: nn.Module) -> bool:
    """Pre-hooks of torch.nn.utils only compute the weight; nobody knows what other hooks do."""
    pre = [
        h for h in layer._forward_pre_hooks.values() if not type(h).__module__.startswith("torch.nn.utils")
    ]
    return bool(layer._forward_hooks) or bool(pre)


def _what(n: fx.Node, walk: "_Walk | None" = None) -> str:
    """What a node does, in a word."""
    if n.op == "call_module" and walk is not None:
        return type(walk.fetch_attr(str(n.target))).__name__
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))


# ---------------------------------------------------------------- rules

Rule = Callable[[_Call], Any]
RULES: dict[Any, Rule] = {}
"""By function, and by name for methods of tensors."""

RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "dropout1d", "dropout2d", "dropout3d",
))  # fmt: skip


def _rule(n: fx.Node, call: _Call) -> Any:
    rule = RULES.get(n.target)
    if rule is None and isinstance(n.target, str) and n.target.endswith("_") and not n.target.endswith("__"):
        rule = RULES.get(n.target[:-1])  # in place: the walk sees to what else it changes
    if rule is None:
        raise _Unknown("not known; opnorm has no rule for it")
    return rule(call)


def _functions(*names: str) -> list[Any]:
    """The functions of torch, torch.nn.functional and operator that have one of these names, and the names for methods."""
    found: list[Any] = list(names)
    for name in names:
        for place in (torch, F, operator):
            in_place = f"{name}_" if place is not operator else name
            found += [f for n in {name, in_place} if callable(f := getattr(place, n, None))]
    return found


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register what happens to the bound under these functions and methods."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(_functions(*names), function))
        return function

    return register


def _spread(x: Any, output: Tensor, p: float) -> float:
    """m^(1/p) for a tensor that was broadcast m times."""
    if not isinstance(x, Tensor) or x.numel() in (0, output.numel()):
        return 1.0
    return (output.numel() / x.numel()) ** (1 / p)


# what only says something of the shape or the type


@rule(
    "size", "dim", "ndimension", "numel", "nelement", "is_floating_point", "is_complex", "stride", "get_device",
    "element_size", "is_contiguous", "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones",
    "new_full", "new_empty", "new_tensor",
)  # fmt: skip
def _(call: _Call) -> Any:
    if len(call.bounds) > 1 and _depends(call.bounds[1:]):
        raise _Unknown("something else than its first argument depends on the input")
    return None


@rule("getattr")
def _(call: _Call) -> Any:
    if call.args[1] in (
        "shape",
        "dtype",
        "device",
        "ndim",
        "is_cuda",
        "requires_grad",
        "layout",
        "is_quantized",
        "is_meta",
    ):
        return None
    if isinstance(call.bounds[0], tuple) and call.args[1] == "values":
        return call.bounds[0][0]
    if call.args[1] in ("T", "mT"):
        return _number(call.bounds[0])
    raise _Unknown(f"the attribute {call.args[1]!r} is not known")


RULES[getattr] = RULES["getattr"]

# what moves numbers about


@rule(
    "view", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "squeeze", "unsqueeze", "contiguous", "clone", "detach", "narrow", "select", "chunk", "split",
    "tensor_split", "unbind", "flip", "fliplr", "flipud", "roll", "rot90", "float", "double", "half", "bfloat16", "to",
    "type", "cpu", "cuda", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "diagonal",
    "hsplit", "vsplit", "view_as", "reshape_as", "type_as", "requires_grad_",
)  # fmt: skip
def _(call: _Call) -> Any:
    """Each output is another input: ℓp norms do not grow."""
    bound = _number(call.bounds[0])  # the other arguments give shapes only
    if call.what == "view" and any(isinstance(a, torch.dtype) for a in (*call.args, *call.kwargs.values())):
        raise _Unknown("reads the bits of numbers as others")

    def part(output: Any) -> Any:
        if isinstance(output, tuple | list):
            return tuple(part(o) for o in output)
        if not output.is_floating_point():
            raise _Unknown("rounds to whole numbers")
        return bound

    return part(call.output)


@rule("expand", "expand_as", "repeat", "tile", "broadcast_to", "repeat_interleave")
def _(call: _Call) -> float:
    x, bound = call.args[0], _number(call.bounds[0])
    return bound * _spread(x, call.output, call.p)  # every entry equally often


@rule("index_select", "gather", "take", "take_along_dim")
def _(call: _Call) -> float:
    raise _Unknown("picks by an index; write x[:, index] for a fixed one")


@rule("getitem")
def _(call: _Call) -> Any:
    if isinstance(call.bounds[0], tuple | list | Mapping):
        return call.bounds[0][call.args[1]]
    x, bound = call.first()
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if all(isinstance(i, int | slice | None | type(...)) for i in index):
        return bound
    moved = copies(lambda numbers: numbers.view(x.shape).to(x.device)[call.args[1]].cpu(), tuple(x.shape))
    return bound * moved ** (1 / call.p)


@rule("pad")
def _(call: _Call) -> float:
    x, bound = call.first()
    mode = call.value(2, "mode", "constant")
    if mode == "constant":
        return bound
    pads = call.value(1, "pad")
    moved = copies(lambda numbers: F.pad(numbers.view(x.shape), pads, mode), tuple(x.shape))
    return bound * moved ** (1 / call.p)


# arithmetic


def _sum(call: _Call, first: float = 1.0) -> float:
    if len(call.args) < 2:
        raise _Unknown("two arguments are expected")
    scale = call.kwargs.get("alpha", 1)
    if not isinstance(scale, int | float) or isinstance(scale, bool):
        raise _Unknown("alpha is not a number")
    parts = zip(call.args[:2], call.bounds[:2], (1.0, abs(scale)), strict=True)
    return math.fsum(s * _number(b) * _spread(a, call.output, call.p) for a, b, s in parts)


for _name in ("add", "iadd", "sub", "isub", "subtract"):
    rule(_name)(_sum)


def _scaled(call: _Call, size: Callable[[Tensor], Tensor], position: int, constant: Any) -> float:
    """Multiplied by a constant, of which ``size`` is what counts."""
    numbers = (
        constant.detach().double()
        if isinstance(constant, Tensor)
        else torch.tensor(float(constant), dtype=torch.float64)
    )
    scale = float(size(numbers.abs())) if numbers.numel() else 0.0
    if not math.isfinite(scale):
        raise _Unknown("the constant that it scales by is not finite")
    x, bound = call.args[position], _number(call.bounds[position])
    return bound * scale * _spread(x, call.output, call.p)


@rule("mul", "imul", "multiply")
def _(call: _Call) -> float:
    depends = [_depends(b) for b in call.bounds[:2]]
    if all(depends) or len(call.args) != 2:
        raise _Unknown(
            "a product of two values that both depend on the input has no Lipschitz constant by itself"
        )
    position = depends.index(True)
    return _scaled(call, Tensor.max, position, call.args[1 - position])


@rule("div", "truediv", "itruediv", "divide", "true_divide")
def _(call: _Call) -> float:
    if len(call.args) != 2 or _depends(call.bounds[1]) or call.kwargs.get("rounding_mode"):
        raise _Unknown("division by what depends on the input, or with rounding, has no Lipschitz constant")
    return _scaled(call, lambda t: (1 / t).max(), 0, call.args[1])


@rule("matmul", "mm", "imatmul")
def _(call: _Call) -> float:
    x, bound = call.first()
    W = call.args[1]
    if W.ndim != 2 or x.ndim < 2:
        raise _Unknown("only a product with a fixed matrix from the right is known")
    return bound * call.walk.factor(_linear(W.T), tuple(x.shape[1:]))


# coordinate by coordinate


@rule(
    "neg",
    "negative",
    "positive",
    "pos",
    "abs",
    "absolute",
    "sin",
    "cos",
    "atan",
    "arctan",
    "asinh",
    "arcsinh",
)
@rule("clamp", "clip", "clamp_min", "clamp_max")
def _(call: _Call) -> float:
    x, bound = call.first()
    return bound * _spread(x, call.output, call.p)


@rule("erf")
def _(call: _Call) -> float:
    return call.first()[1] * 1.1283791670955126  # 2/√π, rounded up


@rule("maximum", "minimum")
def _(call: _Call) -> float:
    """|max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|), coordinate by coordinate."""
    parts = zip(call.args[:2], call.bounds[:2], strict=True)
    return _p_norm([_number(b) * _spread(a, call.output, call.p) for a, b in parts], call.p)


@rule("where", "masked_fill")
def _(call: _Call) -> float:
    """Each entry is one of the two, by a fixed mask."""
    mask = 0 if call.what == "where" else 1
    if len(call.args) != 3 or _depends(call.bounds[mask]):
        raise _Unknown("picks by the values themselves")
    parts = [(call.args[i], call.bounds[i]) for i in range(3) if i != mask]
    return _p_norm([_number(b) * _spread(a, call.output, call.p) for a, b in parts], call.p)


# sums over axes, concatenation


def _reduced(call: _Call, factor: Callable[[float], float]) -> float:
    x, bound = call.first()
    return bound * factor(x.numel() / max(1, call.output.numel()))


@rule("mean")
def _(call: _Call) -> float:
    """|mean|^p <= k^{-p} k^{p-1} Σ |x_i|^p (Hölder), reached by equal entries: k^{-1/p}."""
    return _reduced(call, lambda k: k ** (-1 / call.p))


@rule("sum")
def _(call: _Call) -> float:
    """As k times the mean: k^{1 - 1/p}."""
    return _reduced(call, lambda k: k ** (1 - 1 / call.p))


@rule("amax", "amin", "logsumexp")
def _(call: _Call) -> float:
    """Of disjoint groups, each changes by no more than its entry that changes most."""
    return call.first()[1]


@rule("max", "min")
def _(call: _Call) -> Any:
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return RULES["maximum"](call)
    bound = call.first()[1]
    return (bound, _Unknown("the place of a maximum jumps")) if isinstance(call.output, tuple) else bound


@rule("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack")
def _(call: _Call) -> float:
    parts = call.bounds[0] if call.bounds else call.named["tensors"]
    return _p_norm([_number(b) for b in parts], call.p)


# functions that are layers


def _like(*names: str, build: Callable[..., nn.Module]) -> None:
    """Functions that do what a layer does: ``build`` makes it from the arguments after the first."""

    @rule(*names)
    def _(call: _Call) -> float:
        x, bound = call.first()
        if not isinstance(call.output, Tensor):
            raise _Unknown("returns more than one tensor")
        return bound * call.walk.factor(build(*call.args[1:], **call.kwargs), tuple(x.shape[1:]))


for _names, _build in {
    ("relu",): nn.ReLU, ("relu6",): nn.ReLU6, ("leaky_relu",): nn.LeakyReLU, ("elu",): nn.ELU, ("celu",): nn.CELU,
    ("selu",): nn.SELU, ("gelu",): nn.GELU, ("silu",): nn.SiLU, ("mish",): nn.Mish, ("hardtanh",): nn.Hardtanh,
    ("tanhshrink",): nn.Tanhshrink, ("softsign",): nn.Softsign, ("softplus",): nn.Softplus, ("logsigmoid",): nn.LogSigmoid,
    ("hardsigmoid",): nn.Hardsigmoid, ("hardswish",): nn.Hardswish, ("softshrink",): nn.Softshrink,
    ("hardshrink",): nn.Hardshrink, ("threshold",): nn.Threshold, ("glu",): nn.GLU,
    ("avg_pool1d",): nn.AvgPool1d, ("avg_pool2d",): nn.AvgPool2d, ("avg_pool3d",): nn.AvgPool3d,
    ("adaptive_avg_pool1d",): nn.AdaptiveAvgPool1d, ("adaptive_avg_pool2d",): nn.AdaptiveAvgPool2d,
    ("adaptive_avg_pool3d",): nn.AdaptiveAvgPool3d, ("adaptive_max_pool1d",): nn.AdaptiveMaxPool1d,
    ("adaptive_max_pool2d",): nn.AdaptiveMaxPool2d, ("adaptive_max_pool3d",): nn.AdaptiveMaxPool3d,
}.items():  # fmt: skip
    _like(*_names, build=_build)

_like("tanh", build=lambda: nn.Tanh())
_like("sigmoid", build=lambda: nn.Sigmoid())
_like("softmax", build=lambda dim=None, *_, **__: nn.Softmax(dim))
_like("softmin", build=lambda dim=None, *_, **__: nn.Softmin(dim))
_like("log_softmax", build=lambda dim=None, *_, **__: nn.LogSoftmax(dim))


def _resize(
    size: Any = None, scale_factor: Any = None, mode: str = "nearest", align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None, antialias: bool = False,
) -> nn.Module:  # fmt: skip
    if antialias:
        raise _Unknown("antialiased resizing is not known")
    return nn.Upsample(size, scale_factor, mode, align_corners, recompute_scale_factor)


_like("interpolate", "upsample", build=_resize)


def _max_pool(
    kind: type[nn.Module], kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> nn.Module:  # fmt: skip
    return kind(kernel_size, stride, padding, dilation, return_indices, ceil_mode)


for _axes, _kind in enumerate((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), start=1):
    _like(f"max_pool{_axes}d", build=functools.partial(_max_pool, _kind))


@rule("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout1d", "dropout2d", "dropout3d")
def _(call: _Call) -> float:
    if call.value(2, "training", call.kwargs.get("train", True)):
        raise _Unknown("drops at random even in eval mode")
    return call.first()[1]


def _linear(W: Tensor) -> nn.Linear:
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(W.detach(), requires_grad=False)
    return layer


@rule("linear")
def _(call: _Call) -> float:
    x, bound = call.first()
    return bound * call.walk.factor(_linear(call.value(1, "weight")), tuple(x.shape[1:]))


def _convolution(axes: int, transposed: bool) -> Rule:
    kinds: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    names: tuple[str, ...] = ("stride", "padding", "dilation", "groups")
    if transposed:
        kinds = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        names = ("stride", "padding", "output_padding", "groups", "dilation")
    defaults = {"stride": 1, "padding": 0, "output_padding": 0, "groups": 1, "dilation": 1}

    def apply(call: _Call) -> float:
        x, bound = call.first()
        K = call.value(1, "weight")
        settings = {name: call.value(3 + i, name, defaults[name]) for i, name in enumerate(names)}
        channels = [K.shape[1] * settings["groups"], K.shape[0]][:: -1 if transposed else 1]
        layer = kinds[axes - 1](*channels, tuple(K.shape[2:]), bias=False, device="meta", **settings)
        layer.weight = nn.Parameter(K.detach(), requires_grad=False)
        return bound * call.walk.factor(layer, tuple(x.shape[1:]))

    return apply


for _axes in (1, 2, 3):
    rule(f"conv{_axes}d")(_convolution(_axes, transposed=False))
    rule(f"conv_transpose{_axes}d")(_convolution(_axes, transposed=True))


@rule("prelu")
def _(call: _Call) -> float:
    _, bound = call.first()
    return bound * max(1.0, float(call.value(1, "weight").abs().max()))


@rule("batch_norm")
def _(call: _Call) -> float:
    _, bound = call.first()
    var, weight = call.value(2, "running_var"), call.value(3, "weight")
    if F.batch_norm is torch.batch_norm or call.value(5, "training", False) or var is None:
        raise _Unknown("batch normalization by the batch's own statistics")
    gain = (var.double() + call.value(7, "eps", 1e-5)).rsqrt() * (1.0 if weight is None else weight.double())
    if not torch.isfinite(gain).all():
        raise _Unknown("its numbers are not finite")
    return bound * float(gain.abs().max())


@rule("layer_norm", "group_norm")
def _(call: _Call) -> float:
    _, bound = call.first()
    return bound * normalizing(call.value(4, "eps", 1e-5), call.value(2, "weight"), call.p, "it")


@rule(
    "normalize",
    "cosine_similarity",
    "rsqrt",
    "sqrt",
    "log",
    "exp",
    "pow",
    "square",
    "reciprocal",
    "bmm",
    "einsum",
)
def _(call: _Call) -> float:
    raise _Unknown("has no Lipschitz constant on all inputs, or none that is known here")


@rule(
    "round", "floor", "ceil", "sign", "argmax", "argmin", "gt", "lt", "ge", "le", "eq", "ne", "topk", "sort"
)
def _(call: _Call) -> float:
    raise _Unknown("jumps, or picks by the values themselves")
