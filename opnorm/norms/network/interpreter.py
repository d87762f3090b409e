"""An interpreter of a network's graph that propagates a Lipschitz bound to every value; its rules are in ``rules.py``.

The bound of a value is a float L; None for a value that does not depend on the input; a BoundError, the reason, where no L
is known; and a tuple or dict of these for a tuple or dict of values.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from opnorm._core.layers import Shape
from opnorm.errors import BoundError, NormError
from opnorm.norms import display
from opnorm.norms.layer_table import layer_norms
from opnorm.norms.network.trace import first_line

__all__ = [
    "BoundInterpreter",
    "FunctionCall",
    "KnownFactors",
    "NodeBound",
    "Rule",
    "changed_by_hooks",
    "constant",
    "depends",
    "p_norm",
]

RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "dropout1d", "dropout2d", "dropout3d",
))  # fmt: skip


class NodeBound(NamedTuple):
    """The bound at one node of the graph.

    Attributes:
        name: of the node, or of the layer in the model.
        operation: the class of a layer, or the name of a function.
        factor: the Lipschitz constant of the operation; None where it has several inputs.
        bound: L of its result.
    """

    name: str
    operation: str
    factor: float | None
    bound: float


class FunctionCall(NamedTuple):
    """A call in the graph, with its values and their bounds."""

    interpreter: "BoundInterpreter"
    function: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    bounds: tuple[Any, ...]  # of args
    kwarg_bounds: dict[str, Any]
    output: Any

    @property
    def ord(self) -> float:
        """Of the norm."""
        return self.interpreter.ord

    def only_input(self) -> tuple[Tensor, float]:
        """The first argument and its bound; BoundError where another argument depends on the input."""
        others = (*self.bounds[1:], *self.kwarg_bounds.values())
        if not self.bounds or not isinstance(self.bounds[0], float | BoundError) or depends(others):
            raise BoundError("something else than its first argument depends on the input")
        return self.args[0], constant(self.bounds[0])

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)


Rule = Callable[[FunctionCall], Any]
KnownFactors = dict[tuple[nn.Module, Shape, float], tuple[float, str]]
"""(layer, input shape, order) -> upper bound, infinite where it is not known, and the reason."""


def depends(bound: Any) -> bool:
    """Whether a value depends on the input."""
    if isinstance(bound, Mapping):
        return any(map(depends, bound.values()))
    return any(map(depends, bound)) if isinstance(bound, tuple | list) else bound is not None


def constant(bound: Any) -> float:
    """The bound of one tensor as a float, 0 for a value that does not depend on the input; or its BoundError."""
    if isinstance(bound, BoundError):
        raise bound
    if bound is None:
        return 0.0
    if not isinstance(bound, float):
        raise BoundError("a tuple, where one tensor was expected")
    return bound


class BoundInterpreter(fx.Interpreter):
    """Runs the graph on an example and propagates the bounds of its values.

    Attributes:
        ord: of the norm.
        nodes: the bounds so far, in the order of the forward pass.
        result: the bound of the output.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        rules: Mapping[Any, Rule],
        ord: float,
        known: KnownFactors,
        nodes: list[NodeBound],
    ) -> None:
        super().__init__(graph)
        self.rules, self.ord, self.known, self.nodes = rules, ord, known, nodes
        self.bounds: dict[fx.Node, Any] = {}
        self.result: Any = None
        self.overwritten = ""  # a parameter or buffer that the forward writes to

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node; its bound is kept in ``bounds``."""
        live = [(m, t, t._version) for m, t in self.env.items() if isinstance(t, Tensor)]
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        output = super().run_node(n)
        bound = self.bounds[n] = self._bound(n, args, kwargs, output)
        for m, t, version in live:
            if t._version != version:
                reason = BoundError(f"{n.name} ({_operation(n)}) writes into {m.name}")
                self.bounds[m] = bound if _is_same_memory(t, output) else reason
                if m.op == "get_attr":
                    self.overwritten = f"{n.name} writes into {m.target}"
        if n.op == "output":
            self.result = bound
        return output

    def _bound(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if n.op == "placeholder":
            return 1.0 if isinstance(output, Tensor) and output.is_floating_point() else None
        bounds, kwarg_bounds = self._bounds_of(n.args), self._bounds_of(n.kwargs)
        if n.op in ("get_attr", "output"):
            return bounds[0] if n.op == "output" else None
        if not depends((bounds, kwarg_bounds)):
            random = str(_operation(n)) in RANDOM
            return BoundError(f"{n.name} draws random numbers") if random else None
        call = FunctionCall(self, _operation(n), args, kwargs, bounds, kwarg_bounds, output)
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        operation = call.function if layer is None else type(layer).__name__
        name = n.name if layer is None else str(n.target)
        inputs = _flat((bounds, kwarg_bounds))
        try:
            if self.overwritten:
                raise BoundError(self.overwritten)
            bound = self._of_function(n, call) if layer is None else self._of_layer(layer, call)
        except NormError as e:
            first = next((b for b in inputs if isinstance(b, BoundError)), None)
            return first or BoundError(f"{name} ({operation}): {e}")
        except Exception as e:  # noqa: BLE001 - a call that the rule did not foresee is not known
            return BoundError(f"{n.name} ({operation}): no rule fits this call ({first_line(e)})")
        if isinstance(bound, float):
            known = [b for b in inputs if isinstance(b, float)]
            factor = bound / known[0] if len(known) == 1 and known[0] else None
            self.nodes.append(NodeBound(name, operation, factor, bound))
        return bound

    def _bounds_of(self, value: Any) -> Any:
        """The bounds of arguments, in their own structure; None for what is no node."""
        if isinstance(value, fx.Node):
            return self.bounds[value]
        if isinstance(value, slice):
            value = (value.start, value.stop, value.step)
        if isinstance(value, Mapping):
            return {k: self._bounds_of(v) for k, v in value.items()}
        return tuple(map(self._bounds_of, value)) if isinstance(value, tuple | list) else None

    def _of_function(self, n: fx.Node, call: FunctionCall) -> Any:
        rule = self.rules.get(n.target)
        if rule is None and isinstance(n.target, str) and n.target.endswith("_") and n.target[-2:] != "__":
            rule = self.rules.get(n.target[:-1])  # in place: run_node treats the value that it overwrites
        if rule is None:
            raise BoundError("not known; opnorm has no rule for it")
        return rule(call)

    def _of_layer(self, layer: nn.Module, call: FunctionCall) -> float:
        if changed_by_hooks(layer):
            raise BoundError("a hook may change what it computes")
        x, bound = call.only_input()
        if not isinstance(call.output, Tensor):
            raise BoundError(f"returns {type(call.output).__name__}, not one tensor")
        return bound * self.factor(layer, tuple(x.shape[1:]))

    def factor(self, layer: nn.Module, shape: Shape) -> float:
        """An upper bound on a layer's Lipschitz constant, or BoundError."""
        key = (layer, shape, self.ord)
        if key not in self.known:
            norms, constants, note = layer_norms(layer, shape, (self.ord,))
            upper = constants.get(self.ord, float(norms[self.ord].upper) if self.ord in norms else math.inf)
            self.known[key] = (upper, note)
        upper, note = self.known[key]
        if not math.isfinite(upper):
            raise BoundError(note or f"no upper bound of its {display.label(self.ord)} norm is known")
        return upper

    def output_bound(self) -> float:
        """The bound of all outputs side by side: the ℓp norm of theirs."""
        return p_norm([constant(b) for b in _flat(self.result)], self.ord)


def _flat(bound: Any) -> list[Any]:
    if isinstance(bound, Mapping):
        bound = tuple(bound.values())
    return [b for item in bound for b in _flat(item)] if isinstance(bound, tuple | list) else [bound]


def p_norm(values: Sequence[float], p: float) -> float:
    """(Σ v^p)^(1/p) of numbers that are not negative, without overflow."""
    largest = max(values, default=0.0)
    if largest == 0 or math.isinf(p):
        return largest
    return largest * math.fsum((v / largest) ** p for v in values) ** (1 / p)


def _is_same_memory(t: Tensor, output: Any) -> bool:
    """Whether the output is that tensor, all of it."""
    return (
        isinstance(output, Tensor)
        and t.data_ptr() == output.data_ptr()
        and t.shape == output.shape
        and t.stride() == output.stride()
    )


def changed_by_hooks(layer: nn.Module) -> bool:
    """Whether hooks may change the output; the pre-hooks of torch.nn.utils only compute the weight."""
    pre = (
        h for h in layer._forward_pre_hooks.values() if not type(h).__module__.startswith("torch.nn.utils")
    )
    return bool(layer._forward_hooks) or any(True for _ in pre)


def _operation(n: fx.Node) -> str:
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
