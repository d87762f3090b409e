"""An interpreter of a network's graph that propagates a Lipschitz bound to every value, by the rules of ``rules.py``."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from opnorm._core.layers import Shape, changed_by_hooks, is_standard
from opnorm.errors import BoundError, NormError
from opnorm.norms import display
from opnorm.norms.layer_table import layer_norms
from opnorm.norms.network.graph import ForwardGraph
from opnorm.norms.network.normalization import normalization
from opnorm.norms.network.one_variable import IDENTITY, MAX_STEPS
from opnorm.norms.network.placement_rules import RULES  # those of all files of rules
from opnorm.norms.network.pointwise import Pending, Pointwise, Start, TooLong, pointwise
from opnorm.norms.network.reflections import PICKS, by_sign
from opnorm.norms.network.rules import FunctionCall, constant, depends, p_norm
from opnorm.norms.network.shared_memory import most_copies, places_of, same_memory
from opnorm.norms.network.sorting import JOINED, READ, Made, side_by_side
from opnorm.norms.network.trace import leaves
from opnorm.norms.network.walk import RANDOM, GraphWalk, operation_of
from opnorm.norms.nonlinear import SOFTMAX, softmax_constant

__all__ = ["BoundInterpreter", "KnownFactors", "NodeBound"]

KnownFactors = dict[tuple[nn.Module, Shape, float], tuple[float, str]]
"""(layer, input shape, order) -> upper bound, infinite where it is not known, and the reason."""
UNDERFLOW = 1e-100  # products of smaller numbers may be smaller than a float can be


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


class BoundInterpreter(GraphWalk):
    """Runs the graph on an example and propagates the bounds of its values.

    Attributes:
        ord: of the norm.
        nodes: the bounds so far, in the order of the forward pass.
        result: the bound of the output.
    """

    follows_writes = True

    def __init__(
        self, forward: ForwardGraph, ord: float, known: KnownFactors, nodes: list[NodeBound]
    ) -> None:
        super().__init__(forward)
        self.ord, self.known, self.nodes = ord, known, nodes
        self.least_factor = 1.0  # of the layers so far, but for 0
        self.forms: dict[fx.Node, Pointwise] = {}  # the nodes as functions of one variable of nodes before
        self.made: dict[fx.Node, Made] = {}
        self.constants: dict[fx.Node, tuple[Any, int]] = {}  # what does not depend on the input; its version
        self.pieces: dict[
            fx.Node, list[fx.Node]
        ] = {}  # the values that entries of a constant were replaced by

    def overwrite(self, m: fx.Node, by: fx.Node, whole: bool) -> None:
        """The form of a node is that of the node that wrote its value."""
        self.forms.pop(m, None)
        if whole:
            self.pieces.pop(m, None)
        if whole and by in self.forms:
            self.forms[m] = self.forms[by]

    def partly(self, m: fx.Node, value: Any, n: fx.Node, output: Any, reason: BoundError) -> Any:
        """The bound of a value of which a part was written: the ℓp norm of those of the entries before and the new ones."""
        places = self._written_places(n, output)
        if places is None:
            return reason
        before, new = self._settled(m), self._settled(n)
        if not isinstance(value, Tensor):
            parts = before if isinstance(before, tuple) else (before,) * len(value)
            return tuple(self._joined(b, new, v, places, reason) for b, v in zip(parts, value, strict=True))
        bound = self._joined(before, new, value, places, reason)
        if isinstance(bound, float) and self._piece(m, n, places, before):
            bound = min(bound, self._of_entries(self.pieces[m]))
        self.constants.pop(m, None)
        return self._start(m, bound, value)

    def _piece(self, m: fx.Node, n: fx.Node, places: Tensor, before: Any) -> bool:
        """Whether all entries of a value are constants, or of values that they were replaced by, each once."""
        pieces = self.pieces.pop(m, [] if before is None else None)
        source = n.args[2] if operation_of(n) == "setitem" and n.args[0] is m else None
        if pieces is None or not isinstance(source, fx.Node) or self.env[source].numel() != places.numel():
            return False
        self.pieces[m] = [*pieces, source]
        return not self.written & set(self.pieces[m])

    def _joined(self, before: Any, new: Any, value: Any, places: Tensor, reason: BoundError) -> Any:
        """Of one tensor with a bound before, of which the places in memory that are among some others have a new one."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return reason
        own = places_of(value)
        hit = torch.isin(own, places)
        if not bool(hit.any()):
            return before
        if bool(hit.all()):
            before = None
        for bound in (before, new):
            if isinstance(bound, BoundError):
                return bound
        if before is None and new is None:
            return None
        return p_norm([constant(before), constant(new) * most_copies(own[hit]) ** (1 / self.ord)], self.ord)

    def _written_places(self, n: fx.Node, output: Any) -> Tensor | None:
        """The places in memory that a node wrote to; None where that is not known."""
        args, _ = self.fetch_args_kwargs_from_env(n)
        if not args or not isinstance(args[0], Tensor):
            return None
        if operation_of(n) == "setitem":
            places = places_of(args[0])[args[1]].contiguous()
            return places[:0] if same_memory(args[2], args[0][args[1]]) else places
        return places_of(args[0]) if same_memory(args[0], output) else None

    def _settled(self, n: fx.Node) -> Any:
        known = self.bounds[n]
        return known.form.best(known.fallback) if isinstance(known, Pending) else known

    def known_of(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The bound of a node."""
        self.made[n] = self._made(n, args, kwargs, output)
        if n.op == "placeholder":
            depending = isinstance(output, Tensor) and output.is_floating_point()
            return self._start(n, 1.0, output) if depending else None
        form = self._form(n, args, kwargs, output)
        if form is None:
            self._resolve(n)
        bounds, kwarg_bounds = self._bounds_of(n.args), self._bounds_of(n.kwargs)
        if n.op == "output":
            return bounds[0]
        if not depends((bounds, kwarg_bounds)):
            if str(operation_of(n)) in RANDOM:
                return BoundError(f"{n.name} draws random numbers")
            self.constants[n] = output, getattr(output, "_version", 0)
            return None
        bound = self._by_rule(n, args, kwargs, (bounds, kwarg_bounds), output)
        if form is None:
            return self._start(n, bound, output)
        self.forms[n] = form
        several = sum(m in self.forms for m in n.all_input_nodes) > 1
        if several and len(form.function) > MAX_STEPS / 3 and isinstance(form.best(bound), float):
            self._note(n, form, bound)
            return self._start(n, form.best(bound), output)  # a long chain of activations: begin again
        pending = any(isinstance(self.bounds[m], Pending) for m in n.all_input_nodes)
        return Pending(form, bound) if several or pending or isinstance(bound, BoundError) else bound

    def _by_rule(
        self, n: fx.Node, args: tuple, kwargs: dict[str, Any], bounds: tuple[Any, Any], output: Any
    ) -> Any:
        layer = self.layer_of(n)
        operation = operation_of(n) if layer is None else type(layer).__name__
        name = n.name if layer is None else str(n.target)
        call = FunctionCall(operation, args, kwargs, *bounds, output, self.ord, self.factor)
        inputs = leaves(bounds)
        try:
            if self.overwritten:
                raise BoundError(self.overwritten)
            bound = self._of_function(n, call) if layer is None else self._of_layer(layer, call)
        except NormError as e:
            first = next((b for b in inputs if isinstance(b, BoundError)), None)
            bound = self._by_sign([n]) if operation_of(n) in PICKS else None
            if bound is None:
                return first or BoundError(f"{name} ({operation}): {e}")
        if isinstance(bound, float):
            known = [b for b in inputs if isinstance(b, float)]
            bound = self.above_underflow(bound, known)
            factor = bound / known[0] if len(known) == 1 and known[0] else None
            self.nodes.append(NodeBound(name, operation, factor, bound))
        return bound

    def above_underflow(self, bound: float, inputs: Sequence[float]) -> float:
        """A bound of an operation, no smaller than floats are exact where it may be a product that has underflowed."""
        positive = [b for b in inputs if b > 0]
        underflow = bound > 0 or (positive and min(*positive, self.least_factor) < UNDERFLOW)
        return max(bound, sys.float_info.min) if underflow else bound

    # ---------------------------------------------------------------- functions of one variable

    def _form(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Pointwise | None:
        """The node as a function of one variable of a node before, or None."""
        if n.op not in ("call_function", "call_method", "call_module") or self.overwritten:
            return None
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        layer, given = self.layer_of(n), dict(zip(n.kwargs, kwargs.values(), strict=True))
        if layer is not None and changed_by_hooks(layer):
            return None
        named = [(n.kwargs[k], given.pop(k)) for k in ("input", "other") if k in given]
        arguments = [*zip(n.args, args, strict=True), *named]
        if any(depends(self.bounds[m]) and m not in self.forms for m in n.all_input_nodes):
            return None
        operands = [self.forms.get(m, value) if isinstance(m, fx.Node) else value for m, value in arguments]
        own = [m for m, _ in arguments if isinstance(m, fx.Node)]
        if any(m in self.forms and m not in own for m in n.all_input_nodes):
            return None  # inside a list or a setting
        try:
            form = pointwise(operation_of(n), layer, operands, given)
        except TooLong:  # begin at the arguments
            self._resolve(n)
            for m in n.all_input_nodes:
                self._start(m, self.bounds[m], self.env[m])
            form = None
        starts_here = form is not None and form.start.shape == output.shape
        return form if starts_here else None

    def _start(self, n: fx.Node, bound: Any, output: Any) -> Any:
        """Functions of one variable may begin at this node; returns its bound."""
        self.forms.pop(n, None)
        if isinstance(bound, float) and isinstance(output, Tensor):
            self.forms[n] = Pointwise(Start(bound, output.shape), IDENTITY)
        return bound

    def _resolve(self, n: fx.Node) -> None:
        """Compute the pending bounds of a node's arguments."""
        for m in n.all_input_nodes:
            pending = self.bounds[m]
            if isinstance(pending, Pending):
                self.bounds[m] = pending.form.best(pending.fallback)
                self._note(m, pending.form, pending.fallback)

    def _note(self, n: fx.Node, form: Pointwise, by_rule: Any) -> None:
        """List the bound of a function of one variable, in the place of that by the rule."""
        bound, start = form.best(by_rule), form.start.bound
        if isinstance(bound, float) and bound != by_rule:
            self.nodes[:] = [x for x in self.nodes if (x.name, x.bound) != (n.name, by_rule)]
            self.nodes.append(NodeBound(n.name, operation_of(n), bound / start if start else None, bound))

    def _bounds_of(self, value: Any) -> Any:
        """The bounds of arguments, in their own structure; None for what is no node."""
        if isinstance(value, fx.Node):
            bound = self.bounds[value]
            return bound.fallback if isinstance(bound, Pending) else bound
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
        bound = rule(call)
        return min(bound, self._side_by_side(n)) if operation_of(n) in JOINED else bound

    def _side_by_side(self, n: fx.Node) -> float:
        """The bound of values side by side by what their entries are; infinite where that is not known."""
        parts: Any = n.args[0] if n.args else n.kwargs["tensors"]
        picked = self._by_sign(parts) if all(isinstance(m, fx.Node) for m in parts) else None
        return min(self._of_entries(parts), math.inf if picked is None else picked)

    def _of_entries(self, parts: Sequence[fx.Node]) -> float:
        """The bound of values side by side, by the values that their entries are from."""

        def bound(m: fx.Node) -> float:
            known = self._settled(m)
            return math.inf if isinstance(known, BoundError) else constant(known)

        return side_by_side(parts, self.made, self.written, bound, self.ord)

    def _by_sign(self, parts: Sequence[fx.Node]) -> float | None:
        """The bound of values side by side that are picked by the sign of another one; None where they are not."""
        if self.overwritten:
            return None
        return by_sign(parts, self.made, self.constants, self.written, self._of_entries, self.ord)

    def _made(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Made:
        first = output[0] if isinstance(output, tuple | list) and output else output
        shape = tuple(first.shape) if isinstance(first, Tensor) else ()
        layer, operation = (
            self.layer_of(n),
            operation_of(n) if n.op in ("call_function", "call_method") else "",
        )
        if layer is not None and is_standard(layer, nn.ReLU) and not changed_by_hooks(layer):
            operation = "relu"
        fixed = not depends([self.bounds[m] for m in n.all_input_nodes if m is not (n.args or (None,))[0]])
        settings, named = (args[1:], kwargs) if operation in READ else ((), {})
        return Made(operation, settings, named, shape, first is not output, fixed)

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
        self.least_factor = min(self.least_factor, upper or 1.0)
        if not math.isfinite(upper):
            raise BoundError(note or f"no upper bound of its {display.label(self.ord)} norm is known")
        return upper

    def output_bound(self) -> float:
        """The bound of all outputs side by side: the ℓp norm of theirs."""
        return p_norm([constant(b) for b in leaves(self.result)], self.ord)
