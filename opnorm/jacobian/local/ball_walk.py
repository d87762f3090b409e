"""A walk along the graph of a forward that keeps, for every value, bounds on its Jacobian on a ball around a point."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from opnorm._core.derived_weights import weight_of
from opnorm._core.layers import changed_by_hooks, is_standard
from opnorm.errors import BoundError, NormError
from opnorm.jacobian.local.ball_rules import Rows, matrix_product, normalized, one_variable, product, softmax
from opnorm.jacobian.local.between import norm_between
from opnorm.jacobian.local.known_linear import LINEAR, MOVING, largest_row
from opnorm.jacobian.local.known_values import Entries, Known, Operand, combined, divided, size
from opnorm.jacobian.local.normalization_calls import NORMALIZATIONS, of_groups
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.network.graph import ForwardGraph
from opnorm.norms.network.interpreter import BoundInterpreter, KnownFactors, NodeBound
from opnorm.norms.network.layer_rules import BUILDERS, RULES
from opnorm.norms.network.normalization import normalization, quotient
from opnorm.norms.network.one_variable import IDENTITY
from opnorm.norms.network.pointwise import Pointwise, Start, TooLong, pointwise
from opnorm.norms.network.rules import AT_THE_DATA, FunctionCall, depends
from opnorm.norms.network.trace import leaves, map_tensors
from opnorm.norms.network.walk import RANDOM, operation_of
from opnorm.norms.nonlinear import is_copying, known_base, softmax_axis

__all__ = ["LocalWalk"]

NEGLIGIBLE = 0.03  # of the norm at the center: so small a change is good enough
PAIRS = 12  # operations before a value, up to which its change is a sum over them, not a product of constants
MUL, DIV = ("mul", "imul", "multiply"), ("div", "truediv", "itruediv", "divide", "true_divide")
PRODUCT = ("matmul", "imatmul", "bmm")
RESHAPED = frozenset(("size", "dim", "numel", "zeros_like", "ones_like", "new_zeros", "new_ones"))


class LocalWalk(BoundInterpreter):
    """Runs the graph at a point, in float64, and keeps a :class:`Known` of every value that depends on it.

    Attributes:
        radius: of the ball around the point.
        steps: of the Lanczos iteration for the Jacobian's norm of each value that an operation that is not linear takes; 0
            for the product of the norms of the operations before it.
        changing: the operations whose derivative changes: kind, value, and what is known of it.
        nodes: factor: a bound on the derivative's norm on the ball; bound: on that of the value.
        result: of the output.
    """

    follows_writes = False

    def __init__(
        self,
        forward: ForwardGraph,
        radius: float,
        known: KnownFactors,
        nodes: list[NodeBound],
        steps: int = 0,
    ) -> None:
        super().__init__(forward, 2, known, nodes)
        self.radius, self.steps = radius, steps
        self.changing: list[tuple[str, Tensor, Known]] = []
        self.input: Tensor = torch.empty(0)
        self.sharp: dict[int, tuple[Tensor, Known]] = {}  # by the id of a value

    def overwrite(self, m: fx.Node, by: fx.Node, whole: bool) -> None:
        """Nothing more than the walk itself does."""

    def partly(self, m: fx.Node, value: Any, n: fx.Node, output: Any, reason: BoundError) -> Any:
        """The reason."""
        return reason

    def known_of(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """What is known of a node's value."""
        with torch.no_grad():
            return self._known_of(n, args, kwargs, output)

    def _known_of(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if n.op == "placeholder":
            self.input = output
            depending = isinstance(output, Tensor) and output.is_floating_point()
            return Known(1.0, 0.0, 1.0, 0.0, size(output)) if depending else None
        bounds, kwarg_bounds = self._known_in(n.args), self._known_in(n.kwargs)
        if n.op == "output":
            return bounds[0]
        if not depends((bounds, kwarg_bounds)):
            random = str(operation_of(n)) in RANDOM
            return BoundError(f"{n.name} draws random numbers") if random else None
        error = next((b for b in leaves((bounds, kwarg_bounds)) if isinstance(b, BoundError)), None)
        layer = self.layer_of(n)
        name = n.name if layer is None else str(n.target)
        kind = operation_of(n) if layer is None else type(layer).__name__
        call = FunctionCall(kind, args, kwargs, bounds, kwarg_bounds, output, 2, self.factor)
        try:
            if error or self.overwritten:
                raise error or BoundError(self.overwritten)
            known = self._of_call(n, layer, call)
        except NormError as e:
            said = str(e).removesuffix(f"; {AT_THE_DATA}")
            return e if e is error else BoundError(f"{name} ({kind}): {said}")
        return self._noted(name, kind, call, known)

    def _noted(self, name: str, kind: str, call: FunctionCall, known: Any) -> Any:
        """List a node, and divide the change among the kinds of the operations."""
        given = [k for k in leaves((call.bounds, call.kwarg_bounds)) if isinstance(k, Known)]
        if isinstance(known, Known):
            before = [b for k in given for b in (k.norm, k.change, k.most)]
            norm, change, most, own = (
                self.above_underflow(b, before) for b in (known.norm, known.change, known.most, known.own)
            )
            known = replace(known, norm=norm, change=change, most=most, own=own)
            factor = known.lipschitz / given[0].lipschitz if len(given) == 1 and given[0].lipschitz else None
            self.nodes.append(NodeBound(name, kind, factor, known.lipschitz))
        for part, t in zip(leaves(known), leaves(call.output), strict=False):
            if isinstance(part, Known) and part.own and self.steps:
                self.changing.append((kind.lower(), t, part))
        return divided(known, kind.lower(), given)

    def _sharpened(self, known: Known, value: Tensor) -> Known:
        """With the norm of the Jacobian of the value itself, and a sum over operations for its change, where smaller."""
        if not self.steps or not self.radius or value is self.input:
            return known
        if id(value) not in self.sharp:
            norm = min(known.norm, norm_between(self.input, value, self.steps))
            found = replace(known, norm=norm)
            if known.change > NEGLIGIBLE * norm and len(self.changing) <= PAIRS:
                found = self.telescoped(found, value)
            self.sharp[id(value)] = value, found
        found = self.sharp[id(value)][1]
        return replace(known, norm=found.norm, change=found.change, parts=found.parts)

    def telescoped(self, known: Known, output: Tensor) -> Known:
        """With the change of a value's Jacobian as a sum over the operations before it, where that is smaller.

        With A_k the derivative of the value by that of operation k at the center,

            J(x) - J(x₀) = Σ_k A_k (Df_k(x) - Df_k(x₀)) J_k(x),

        where J_k is the Jacobian of what operation k takes. The term is at most ‖A_k diag(weights)‖ times ``own`` of it.
        """
        parts: dict[str, float] = {}
        for kind, value, k in self.changing:
            add = k.own * norm_between(value, output, self.steps, k.weights)
            if add:
                parts[kind] = parts.get(kind, 0.0) + add
        change = math.fsum(parts.values())
        return replace(known, change=change, parts=parts) if change < known.change else known

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """In float64, whatever type the forward converts to: the bounds are of exact arithmetic."""
        return map_tensors(super().call_function(target, args, kwargs), _in_float64)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """As a function."""
        return map_tensors(super().call_method(target, args, kwargs), _in_float64)

    def _known_in(self, value: Any) -> Any:
        """What is known of arguments, in their own structure; None for what is no node."""
        if isinstance(value, fx.Node):
            return self.bounds[value]
        if isinstance(value, slice):
            value = (value.start, value.stop, value.step)
        if isinstance(value, Mapping):
            return {k: self._known_in(v) for k, v in value.items()}
        return tuple(map(self._known_in, value)) if isinstance(value, tuple | list) else None

    # ---------------------------------------------------------------- which rule

    def _of_call(self, n: fx.Node, layer: nn.Module | None, call: FunctionCall) -> Any:
        if layer is not None and changed_by_hooks(layer):
            raise BoundError("a hook may change what it computes")
        if call.output is None:
            raise BoundError("writes into a part of another value")
        name = call.function.removesuffix("_") if layer is None else ""
        call = call._replace(function=name or call.function)
        if name in RESHAPED:
            return RULES[name](call)
        if layer is None and name in BUILDERS and name not in LINEAR:
            layer, call = self._built(name, call), call._replace(args=call.args[:1], kwargs={})
        if layer is not None and (found := self._of_kind(layer, call)) is not None:
            return found
        if name in NORMALIZATIONS:
            return NORMALIZATIONS[name](self._operand(call, 0, "input"), call)
        if (found := quotient(n, self.written)) is not None:
            return self._root_mean_square(found, call)
        if name in (*MUL, *DIV, *PRODUCT) and (found := self._of_product(name, call)) is not None:
            return found
        if (found := self._of_one_variable(layer, call)) is not None:
            return found
        return self._by_rules(n, layer, call)

    def _built(self, name: str, call: FunctionCall) -> nn.Module:
        settings = {k: v for k, v in call.kwargs.items() if k != "input"}
        return BUILDERS[name](*call.args[1:], **settings)

    def _of_kind(self, layer: Any, call: FunctionCall) -> Any:
        """Of the layers with rules of their own."""
        a = self._operand(call, 0, "input")
        if is_standard(layer, nn.Softmax, nn.Softmax2d):
            return softmax(a, call.output, softmax_axis(layer, a.value.ndim))
        if is_standard(layer, nn.LayerNorm, nn.RMSNorm):
            centered = isinstance(layer, nn.LayerNorm)
            count = math.prod(layer.normalized_shape)
            eps = torch.finfo(a.value.dtype).eps if layer.eps is None else layer.eps
            rows = Rows(a.value.reshape(-1, count))
            return normalized(a, call.output, rows, eps, weight_of(layer), centered)
        if is_standard(layer, nn.GroupNorm):
            return of_groups(a, call, layer.num_groups, layer.eps, weight_of(layer))
        return None

    def _root_mean_square(self, found: Any, call: FunctionCall) -> Known:
        first = self.bounds[found.x]
        a = Operand(self.env[found.x].detach(), self._sharpened(first, self.env[found.x]), self.radius)
        count = a.value.numel() // max(1, self.env[found.size].numel())
        divisors = self.env[found.size].shape
        sigma = self.env[found.size].detach().flatten()
        sigma = 1 / sigma if found.inverse else sigma
        # the rows themselves are not needed: each is replaced by one with the same root mean square
        rows = (sigma.square() - found.eps).clamp(min=0).sqrt()[:, None].expand(-1, count)
        return normalized(a, call.output, Rows(rows, divisors), found.eps, None, False)

    def _of_product(self, name: str, call: FunctionCall) -> Any:
        """A product of two tensors, unless a rule is as good; None there."""
        of_a, of_b = call.operand(0, "input")[1], call.operand(1, "mat2" if name == "bmm" else "other")[1]
        both = of_a is not None and of_b is not None
        if name in PRODUCT:
            a, b = (
                self._operand(call, i, ("input", "mat2" if name == "bmm" else "other")[i]) for i in (0, 1)
            )
            if not both and (a if of_a is None else b).value.ndim == 2:
                return None
            if min(a.value.ndim, b.value.ndim) < 2:
                raise BoundError("a product with a vector is not known")
            batch = torch.broadcast_shapes(a.value.shape[:-2], b.value.shape[:-2])
            a, b = (_spread(t, (*batch, *t.value.shape[-2:])) for t in (a, b))
            return matrix_product(a, b, call.output)
        if not both and not (name in DIV and of_b is not None):
            return None
        a, b = (self._operand(call, i, ("input", "other")[i]) for i in (0, 1))
        if name in DIV:
            if call.kwargs.get("rounding_mode"):
                raise BoundError("division with rounding jumps")
            form = pointwise("reciprocal", None, [Pointwise(Start(1.0, b.value.shape), IDENTITY)], {})
            assert form is not None, "a reciprocal is a function of one variable"
            inverse = b.value.reciprocal()
            b = Operand(inverse, one_variable(b, inverse, form.function), self.radius)
        shape = call.output.shape
        return product(_spread(a, shape), _spread(b, shape), call.output)

    def _of_one_variable(self, layer: nn.Module | None, call: FunctionCall) -> Known | None:
        """An activation, or another function of one variable, of the only argument that depends on the input."""
        known = leaves((call.bounds, call.kwarg_bounds))
        if sum(k is not None for k in known) != 1 or not isinstance(call.output, Tensor):
            return None
        if layer is None and call.function in LINEAR:
            return None
        place = next((i for i, k in enumerate(call.bounds) if isinstance(k, Known)), None)
        if place is None or call.args[place].shape != call.output.shape:
            return None
        start = Start(1.0, call.output.shape)
        operands = [Pointwise(start, IDENTITY) if i == place else v for i, v in enumerate(call.args)]
        try:
            form = pointwise("" if layer else call.function, layer, operands, dict(call.kwargs))
        except TooLong:
            return None
        if form is None or start.constants:
            return None
        return one_variable(self._operand(call, place, "input"), call.output, form.function)

    def _by_rules(self, n: fx.Node, layer: nn.Module | None, call: FunctionCall) -> Any:
        """By the rules for Lipschitz bounds on all inputs."""
        if layer is None:
            linear, rule = call.function in LINEAR, RULES.get(n.target) or RULES.get(call.function)
            if rule is None:
                raise BoundError("not known; opnorm has no rule for it")
        else:
            affine = known_base(layer, l1.registry) is not None or is_copying(layer)
            linear, found = affine, layer
            rule = lambda c: c.only_input()[1] * self.factor(found, tuple(c.only_input()[0].shape))  # noqa: E731

        def bounded(part: Callable[[Known], float]) -> Any:
            def pick(value: Any) -> Any:
                if isinstance(value, Mapping):
                    return {k: pick(v) for k, v in value.items()}
                if isinstance(value, tuple):
                    return tuple(map(pick, value))
                return part(value) if isinstance(value, Known) else value

            parts = call._replace(bounds=pick(call.bounds), kwarg_bounds=pick(call.kwarg_bounds))
            known = normalization(n, parts, lambda m: part(self.bounds[m]), self.written)
            return rule(parts) if known is None else known

        found = combined(bounded, call.output, self.radius, linear)
        return self._with_entries(n, layer, call, found)

    def _with_entries(self, n: fx.Node, layer: nn.Module | None, call: FunctionCall, found: Any) -> Any:
        """With how far each entry can move, of a linear layer and of what only moves entries."""
        first = call.bounds[0] if call.bounds else None
        known = [k for k in leaves((call.bounds, call.kwarg_bounds)) if isinstance(k, Known)]
        if not self.steps or not isinstance(first, Known) or len(known) != 1:
            return found
        moves = call.function in MOVING if layer is None else is_copying(layer)
        entries = first.entries if moves else None
        row = None if moves else largest_row(layer if layer is not None else call)
        if row is not None:
            entries = Entries(row, first, call.args[0])
        parts = leaves(found)
        if entries is None or not all(isinstance(k, Known) for k in parts):
            return found
        parts = [replace(k, entries=entries) for k in parts]
        return tuple(parts) if isinstance(found, tuple) else parts[0]

    # ---------------------------------------------------------------- arguments

    def _operand(self, call: FunctionCall, position: int, name: str) -> Operand:
        value, known = call.operand(position, name)
        if isinstance(known, Known):
            known = self._sharpened(known, value)
            if e := known.entries:
                known = replace(known, entries=replace(e, known=self._sharpened(e.known, e.value)))
        value = torch.as_tensor(value, dtype=torch.float64).detach()
        if known is None:
            known = Known(0.0, 0.0, 0.0, 0.0, size(value))
        if not isinstance(known, Known):
            raise BoundError("a tuple, where one tensor was expected")
        return Operand(value, known, self.radius)


def _in_float64(t: Tensor) -> Tensor:
    return t.double() if t.is_floating_point() and t.dtype != torch.float64 else t


def _spread(a: Operand, shape: Any) -> Operand:
    """The operand copied to a shape: m copies count √m."""
    copies = math.sqrt(math.prod(shape) / max(1, a.value.numel()))
    if copies == 1:
        return a
    k = a.known
    known = replace(
        k,
        norm=copies * k.norm,
        change=copies * k.change,
        most=copies * k.most,
        error=copies * k.error,
        scale=copies * k.scale,
    )
    return Operand(a.value, known, a.radius)
