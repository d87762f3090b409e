"""A walk along the graph of a network that carries a Lipschitz bound to every value; the rules are in ``rules.py``."""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from opnorm._core.layers import Shape
from opnorm.errors import NormError
from opnorm.norms import display as show
from opnorm.norms.network.graph import first_line
from opnorm.norms.table import layer_norms

__all__ = [
    "Call",
    "Part",
    "Rule",
    "Unknown",
    "Walk",
    "changed_by_hooks",
    "depends",
    "number",
    "p_norm",
    "rule",
]


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


class Unknown(Exception):  # noqa: N818 - no error: a value without a bound, with the reason
    """The reason why a value has no bound."""


class Call(NamedTuple):
    """A node with its numbers and its bounds."""

    walk: "Walk"
    what: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bounds: tuple[Any, ...]  # of args
    named: dict[str, Any]  # of kwargs
    output: Any

    @property
    def p(self) -> float:
        """Of the norm."""
        return self.walk.ord

    def first(self) -> tuple[Tensor, float]:
        """The first argument and its bound, where nothing else depends on the input."""
        rest = (*self.bounds[1:], *self.named.values())
        if (
            not self.bounds
            or not isinstance(self.bounds[0], float | Unknown)
            or any(depends(b) for b in rest)
        ):
            raise Unknown("something else than its first argument depends on the input")
        return self.args[0], number(self.bounds[0])

    def value(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


def depends(bound: Any) -> bool:
    """Whether a value depends on the input: None says no, and so do collections of None."""
    if isinstance(bound, Mapping):
        return any(depends(b) for b in bound.values())
    return any(depends(b) for b in bound) if isinstance(bound, tuple | list) else bound is not None


def number(bound: Any) -> float:
    """A bound of one tensor as a number, 0 for what does not depend on the input; raises Unknown where it is not known."""
    if isinstance(bound, Unknown):
        raise bound
    if bound is None:
        return 0.0
    if not isinstance(bound, float):
        raise Unknown("a tuple stands where one tensor was expected")
    return bound


class Walk(fx.Interpreter):
    """Runs the graph on the example, and carries the bounds along."""

    def __init__(
        self,
        graph: fx.GraphModule,
        rules: Mapping[Any, "Rule"],
        ord: float,
        known: dict[tuple[nn.Module, Shape, float], tuple[float, str]],
    ) -> None:
        super().__init__(graph)
        self.rules, self.ord, self.known = rules, ord, known
        self.of: dict[fx.Node, Any] = {}
        self.parts: list[Part] = []
        self.result: Any = None
        self.spoiled = ""  # a parameter or buffer that the forward wrote to

    def run_node(self, n: fx.Node) -> Any:
        """What the node computes; its bound is noted in ``of``."""
        live = [(m, t, t._version) for m, t in self.env.items() if isinstance(t, Tensor)]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        output = super().run_node(n)
        bound = self._bound(n, args, kwargs, output)
        self.of[n] = bound
        for m, t, version in live:
            if t._version != version:
                self.of[m] = (
                    bound if _is(t, output) else Unknown(f"{n.name} ({_what(n)}) writes into {m.name}")
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
        if not depends(bounds) and not depends(named):
            return Unknown(f"{n.name} draws random numbers") if str(_what(n)) in RANDOM else None
        call = Call(self, _what(n), args, kwargs, bounds, named, output)
        try:
            if self.spoiled:
                raise Unknown(self.spoiled)
            bound = self._layer(n, call) if n.op == "call_module" else _rule(n, call, self.rules)
        except (Unknown, NormError) as e:
            blame = next((b for b in (*_flat(bounds), *_flat(named)) if isinstance(b, Unknown)), None)
            return blame or Unknown(
                f"{n.target if n.op == 'call_module' else n.name} ({_what(n, self)}): {e}"
            )
        except Exception as e:  # noqa: BLE001 - a call that the rule did not foresee is not known
            return Unknown(f"{n.name} ({_what(n, self)}): no rule fits this call ({first_line(e)})")
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

    def _layer(self, n: fx.Node, call: Call) -> float:
        layer = self.fetch_attr(str(n.target))
        if changed_by_hooks(layer):
            raise Unknown("a hook may change what it computes")
        x, bound = call.first()
        if not isinstance(call.output, Tensor):
            raise Unknown(f"returns {type(call.output).__name__}, not one tensor")
        return bound * self.factor(layer, tuple(x.shape[1:]))

    def factor(self, layer: nn.Module, shape: Shape) -> float:
        """How far a layer can stretch, or Unknown."""
        place = (layer, shape, self.ord)
        if place not in self.known:
            norms, constants, note = layer_norms(layer, shape, (self.ord,))
            upper = constants.get(self.ord, float(norms[self.ord].upper) if self.ord in norms else math.inf)
            self.known[place] = (upper, note)
        upper, note = self.known[place]
        if not math.isfinite(upper):
            raise Unknown(note or f"no upper bound of its {show.label(self.ord)} norm is known")
        return upper

    def joined(self, bound: Any) -> float:
        """The bound of several values side by side: the ℓp norm of theirs."""
        values = [number(b) for b in _flat(bound)]
        return p_norm(values, self.ord)


def _flat(bound: Any) -> list[Any]:
    if isinstance(bound, Mapping):
        bound = tuple(bound.values())
    return [b for part in bound for b in _flat(part)] if isinstance(bound, tuple | list) else [bound]


def p_norm(values: Sequence[float], p: float) -> float:
    """(Σ v^p)^(1/p) of what is not negative, without overflow."""
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


def changed_by_hooks(layer: nn.Module) -> bool:
    """Pre-hooks of torch.nn.utils only compute the weight; nobody knows what other hooks do."""
    pre = [
        h for h in layer._forward_pre_hooks.values() if not type(h).__module__.startswith("torch.nn.utils")
    ]
    return bool(layer._forward_hooks) or bool(pre)


def _what(n: fx.Node, walk: "Walk | None" = None) -> str:
    """What a node does, in a word."""
    if n.op == "call_module" and walk is not None:
        return type(walk.fetch_attr(str(n.target))).__name__
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))


# ---------------------------------------------------------------- where rules are found

Rule = Callable[[Call], Any]
RULES: dict[Any, Rule] = {}
"""By function, and by name for methods of tensors."""

RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "dropout1d", "dropout2d", "dropout3d",
))  # fmt: skip


def _rule(n: fx.Node, call: Call, rules: Mapping[Any, Rule]) -> Any:
    found = rules.get(n.target)
    if found is None and isinstance(n.target, str) and n.target.endswith("_") and not n.target.endswith("__"):
        found = rules.get(n.target[:-1])  # in place: the walk sees to what else it changes
    if found is None:
        raise Unknown("not known; opnorm has no rule for it")
    return found(call)


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
