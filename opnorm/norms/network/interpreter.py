"""An interpreter of a network's graph that propagates a Lipschitz bound to every value, by the rules of ``rules.py``."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from opnorm._core.layers import Shape, is_standard
from opnorm.errors import BoundError, NormError
from opnorm.norms import display
from opnorm.norms.layer_table import layer_norms
from opnorm.norms.network.graph import ForwardGraph
from opnorm.norms.network.layer_rules import RULES  # those of rules.py and its own
from opnorm.norms.network.normalization import normalization
from opnorm.norms.network.rules import FunctionCall, constant, depends, p_norm
from opnorm.norms.network.trace import first_line, leaves, tensors_in
from opnorm.norms.nonlinear import SOFTMAX, softmax_constant

__all__ = ["BoundInterpreter", "KnownFactors", "NodeBound", "changed_by_hooks"]

RANDOM = frozenset((
    "rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform_", "poisson", "dropout", "alpha_dropout", "feature_alpha_dropout",
    "dropout1d", "dropout2d", "dropout3d",
))  # fmt: skip


KnownFactors = dict[tuple[nn.Module, Shape, float], tuple[float, str]]
"""(layer, input shape, order) -> upper bound, infinite where it is not known, and the reason."""


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


class BoundInterpreter(fx.Interpreter):
    """Runs the graph on an example and propagates the bounds of its values.

    Attributes:
        ord: of the norm.
        nodes: the bounds so far, in the order of the forward pass.
        result: the bound of the output.
    """

    def __init__(
        self, forward: ForwardGraph, ord: float, known: KnownFactors, nodes: list[NodeBound]
    ) -> None:
        super().__init__(nn.Module(), graph=forward.graph)
        self.named, self.ord, self.known, self.nodes = forward.named, ord, known, nodes
        self.bounds: dict[fx.Node, Any] = {}
        self.result: Any = None
        self.written: set[fx.Node] = set()  # nodes whose values were written to later
        self.overwritten = ""  # a parameter or buffer that the forward writes to

    def fetch_attr(self, target: str) -> Any:
        """The layer or constant that a node names."""
        return self.named[target]

    def run_node(self, n: fx.Node) -> Any:
        """The value of the node; its bound is kept in ``bounds``."""
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        versions = [(t, t._version) for t in tensors_in((*self.env.values(), args, kwargs))]
        try:
            output = super().run_node(n)
        except Exception as e:  # of the user's own network
            raise BoundError(f"its graph fails where the model need not, at {n.name}: {first_line(e)}") from e
        bound = self.bounds[n] = self._bound(n, args, kwargs, output)
        written = {t.untyped_storage().data_ptr() for t, version in versions if t._version != version}
        for m, value in self.env.items() if written else ():
            if any(t.untyped_storage().data_ptr() in written for t in tensors_in(value)):
                reason = BoundError(f"{n.name} ({_operation(n)}) writes into {m.name}")
                self.written.add(m)
                self.bounds[m] = bound if _is_same_memory(value, output) else reason
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
        layer = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        operation = _operation(n) if layer is None else type(layer).__name__
        name = n.name if layer is None else str(n.target)
        call = FunctionCall(operation, args, kwargs, bounds, kwarg_bounds, output, self.ord, self.factor)
        inputs = leaves((bounds, kwarg_bounds))
        try:
            if self.overwritten:
                raise BoundError(self.overwritten)
            bound = self._of_function(n, call) if layer is None else self._of_layer(layer, call)
        except NormError as e:
            first = next((b for b in inputs if isinstance(b, BoundError)), None)
            return first or BoundError(f"{name} ({operation}): {e}")
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
        known = normalization(n, call, lambda m: constant(self._bounds_of(m)), self.written)
        if known is not None:
            return known
        rule = RULES.get(n.target)
        if rule is None and isinstance(n.target, str) and n.target.endswith("_") and n.target[-2:] != "__":
            rule = RULES.get(n.target[:-1])  # in place: run_node treats the value that it overwrites
        if rule is None:
            raise BoundError("not known; opnorm has no rule for it")
        if isinstance(call.kwargs.get("out"), Tensor):
            raise BoundError("writes its result into another value")
        return rule(call)

    def _of_layer(self, layer: nn.Module, call: FunctionCall) -> float:
        if changed_by_hooks(layer):
            raise BoundError("a hook may change what it computes")
        x, bound = call.only_input()
        if not isinstance(call.output, Tensor):
            raise BoundError(f"returns {type(call.output).__name__}, not one tensor")
        return bound * self.factor(layer, tuple(x.shape))

    def factor(self, layer: nn.Module, shape: Shape) -> float:
        """An upper bound on a layer's Lipschitz constant for a tensor of this shape, or BoundError."""
        if len(shape) == 1 and is_standard(layer, nn.Linear):
            shape = (1, *shape)  # one point without a batch axis
        if is_standard(layer, *SOFTMAX):  # the first axis may be any, where a permutation came before
            return softmax_constant(layer, self.ord, shape)
        key = (layer, shape[1:], self.ord)
        if key not in self.known:
            norms, constants, note = layer_norms(layer, shape[1:], (self.ord,))
            upper = constants.get(self.ord, float(norms[self.ord].upper) if self.ord in norms else math.inf)
            self.known[key] = (upper, note)
        upper, note = self.known[key]
        if not math.isfinite(upper):
            raise BoundError(note or f"no upper bound of its {display.label(self.ord)} norm is known")
        return upper

    def output_bound(self) -> float:
        """The bound of all outputs side by side: the ℓp norm of theirs."""
        return p_norm([constant(b) for b in leaves(self.result)], self.ord)


def _is_same_memory(value: Any, output: Any) -> bool:
    """Whether the output is that tensor, all of it."""
    return (
        isinstance(value, Tensor)
        and isinstance(output, Tensor)
        and value.data_ptr() == output.data_ptr()
        and value.shape == output.shape
        and value.stride() == output.stride()
    )


def changed_by_hooks(layer: nn.Module) -> bool:
    """Whether hooks may change the output; the pre-hooks of torch.nn.utils only compute the weight."""
    pre = [type(h).__module__ for h in layer._forward_pre_hooks.values()]
    return bool(layer._forward_hooks) or any(not module.startswith("torch.nn.utils") for module in pre)


def _operation(n: fx.Node) -> str:
    return n.target if isinstance(n.target, str) else getattr(n.target, "__name__", str(n.target))
