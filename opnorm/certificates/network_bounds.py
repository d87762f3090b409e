"""The steps of a network with bounds, from the recorded graph of its forward.

Layers have the bounds of :mod:`opnorm.certificates.layer_bounds`; functions those of the layer that does the same, or of a
rule of :mod:`opnorm.certificates.function_bounds`: sums, scaling, means, concatenation, and all that moves, copies or drops
entries; or, of what is a function of one variable of a value before it, the lines of
:mod:`opnorm.certificates.expressions`. What has none is refused with its name.
"""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from opnorm._core.layers import Shape, changed_by_hooks
from opnorm._core.modes import evaluating
from opnorm._core.outputs import output_of
from opnorm.certificates.affine import Affine
from opnorm.certificates.expressions import Expression, WrittenOut, expression_of
from opnorm.certificates.function_bounds import OF_SHAPES, Call, function_bounds
from opnorm.certificates.layer_bounds import LayerBounds, layer_bounds
from opnorm.errors import BoundError, NormError, OpnormError
from opnorm.norms.network.graph import forward_graph, mixes_points, shifted
from opnorm.norms.network.one_variable import IDENTITY
from opnorm.norms.network.pointwise import Pointwise, Start, TooLong, pointwise
from opnorm.norms.network.rules import FunctionCall
from opnorm.norms.network.trace import leaves
from opnorm.norms.network.walk import RANDOM, GraphWalk, operation_of
from opnorm.norms.nonlinear import known_base

__all__ = ["Box", "Step", "has_bounds", "network_bounds"]

Box = tuple[Tensor, Tensor]


class Step(NamedTuple):
    """One operation of a network, with its bounds.

    Attributes:
        bounds: of the operation; where it has several inputs, of the function of them flattened side by side.
        inputs: the values that it takes: 0 is the input of the network, k + 1 the output of step k.
    """

    bounds: LayerBounds
    inputs: tuple[int, ...]

    def joined(self, values: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """Its inputs side by side, of the values so far."""
        if len(self.inputs) == 1:
            return values[self.inputs[0]]
        return torch.cat([values[i].flatten(1) for i in self.inputs], 1)

    def box(self, boxes: Sequence[Box]) -> Box:
        """Bounds on its inputs, side by side."""
        low, high = ({i: boxes[i][end] for i in self.inputs} for end in (0, 1))
        return self.joined(low), self.joined(high)

    def parted(self, A: Tensor, boxes: Sequence[Box]) -> Iterator[tuple[int, Tensor]]:
        """Functionals (B, R, ...) of the inputs side by side as those of each."""
        shapes = [boxes[i][0].shape[1:] for i in self.inputs]
        parts = A.flatten(2).split([math.prod(s) for s in shapes], 2)
        for i, part, shape in zip(self.inputs, parts, shapes, strict=True):
            yield i, part.reshape(*A.shape[:2], *shape)


def network_bounds(model: nn.Module, in_shape: Shape) -> list[Step]:
    """The operations of a network in eval mode with their bounds, in order; the output is that of the last.

    Args:
        model: unchanged afterwards.
        in_shape: shape of one input, without the batch axis.

    Raises:
        BoundError: the forward cannot be followed, or an operation has no bounds (which, and why).
    """
    example = (torch.zeros(2, *in_shape),)
    try:
        with evaluating(model):
            forward = forward_graph(nn.Sequential(model), example, is_node=has_bounds)
            walk = _Walk(forward, in_shape)
            walk.run(*forward.inputs)
            if mixes_points(model, (forward.inputs[0],), {}):
                raise BoundError("an output depends on several points of a batch")
    except BoundError:
        raise
    except OpnormError as e:
        raise BoundError(str(e)) from e
    steps = _used(walk.steps[: walk.value_of(walk.result)])
    if not steps:
        raise BoundError("it returns its input")
    with evaluating(model):
        _check_outputs(model, steps, forward.inputs[0])
    return steps


def _used(steps: Sequence[Step]) -> list[Step]:
    """The steps that the last one depends on."""
    used = {len(steps)}
    for k in range(len(steps), 0, -1):
        used |= {*steps[k - 1].inputs} if k in used else set()
    number = {old: new for new, old in enumerate(sorted({0} | used))}
    kept = [
        step._replace(inputs=tuple(number[i] for i in step.inputs))
        for k, step in enumerate(steps, 1)
        if k in used
    ]
    for step in kept:
        if isinstance(step.bounds, WrittenOut):
            step.bounds.check()
    return kept


def _check_outputs(model: nn.Module, steps: Sequence[Step], example: Tensor) -> None:
    """BoundError unless the outputs for some points, alone and together, are those of the steps, up to rounding."""
    x = torch.cat([shifted(torch.zeros_like(example), seed) for seed in (1, 2)])
    boxes = [(x.double(), x.double())]
    for step in steps:
        boxes.append(step.bounds.interval(*step.box(boxes)))
    low, high = boxes[-1]
    for points in (slice(1), slice(4)):
        z = output_of(model, x[points])
        if z.shape != low[points].shape or not bool(((low[points] <= z) & (z <= high[points])).all()):
            raise BoundError("its graph gives another output than the model: control flow by the data?")


def has_bounds(layer: nn.Module) -> bool:
    """Whether the layer has bounds of its own, and the forward that they are for."""
    return known_base(layer, layer_bounds.registry) is not None


class _Form(NamedTuple):
    """A value that is, entry by entry, a function of one variable of the value with number ``start``."""

    start: int
    form: Pointwise
    expression: Expression

    @classmethod
    def at(cls, start: int, shape: Shape) -> "_Form":
        """The value itself."""
        return cls(start, Pointwise(Start(1.0, shape), IDENTITY), Expression("x"))

    def bounds(self) -> WrittenOut:
        return WrittenOut(self.expression, self.form.function, tuple(self.form.start.shape[1:]))


class _Walk(GraphWalk):
    """Gathers the steps; what is known of a node is the number of its value."""

    def __init__(self, forward: Any, in_shape: Shape) -> None:
        super().__init__(forward)
        self.steps: list[Step] = []
        self.forms: dict[fx.Node, _Form] = {}

    def overwrite(self, m: fx.Node, by: fx.Node, whole: bool) -> None:
        """The form of a node is that of the node that wrote its value."""
        self.forms.pop(m, None)
        if whole and by in self.forms:
            self.forms[m] = self.forms[by]

    def value_of(self, known: Any) -> int:
        """The number of the output's one value."""
        found = leaves(known)
        error = next((b for b in found if isinstance(b, BoundError)), None)
        if error is not None:
            raise error
        if len(found) != 1 or found[0] is None:
            raise BoundError("its output is not one tensor that depends on the input")
        return int(found[0])

    def known_of(self, n: fx.Node, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        """The number of the value, several for a tuple; None for a constant."""
        if n.op == "placeholder":
            self.forms[n] = _Form.at(0, tuple(output.shape))
            return 0
        if n.op == "get_attr":
            return None
        given = [m for m in _nodes_in(n) if self.bounds[m] is not None]
        if n.op == "output":
            return [self.bounds[m] for m in given]
        if not given:
            return BoundError(f"{n.name} draws random numbers") if operation_of(n) in RANDOM else None
        # an operation in place gets a copy of what it writes to
        pairs = zip(n.args, args, strict=True)
        args = tuple(self.env[m] if isinstance(m, fx.Node) and m in given else a for m, a in pairs)
        errors = [b for m in given for b in leaves(self.bounds[m]) if isinstance(b, BoundError)]
        layer = self.layer_of(n)
        name = n.name if layer is None else str(n.target).partition(".")[2] or "the model"
        operation = operation_of(n) if layer is None else type(layer).__name__
        try:
            if errors or self.overwritten:
                raise errors[0] if errors else BoundError(self.overwritten)
            if operation == "getitem" and isinstance(args[0], tuple | list):
                return self.bounds[given[0]][args[1]]
            if operation in OF_SHAPES:
                return None
            return self._steps_of(
                n, operation, layer, FunctionCall(operation, args, kwargs, (), {}, output, 1, _no_factor)
            )
        except NormError as e:
            return e if errors else BoundError(f"{name} ({operation}): {e}")

    def _steps_of(self, n: fx.Node, operation: str, layer: nn.Module | None, call: FunctionCall) -> Any:
        nodes = [m for m in _nodes_in(n) if self.bounds[m] is not None]
        for t in leaves(call.output):
            if (
                not isinstance(t, Tensor)
                or t.dtype not in (torch.float32, torch.float64)
                or t.shape[:1] != (2,)
            ):
                kind = f"{t.dtype} {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
                raise BoundError(
                    f"it gives {kind}; expected float32 or float64, with the batch axis in front"
                )
        if not all(isinstance(self.bounds[m], int) for m in nodes):
            raise BoundError("it takes a tuple of values")
        of_two = Call(call, [self.env[m] for m in nodes], functools.partial(self._again, n))
        if layer is not None and changed_by_hooks(layer):
            raise BoundError("it has hooks, which may change what it computes")
        given = tuple(self.bounds[m] for m in nodes)
        form = self._form(n, operation, layer, call)
        try:
            found: Any = of_two.of_layer(layer) if layer is not None else function_bounds(operation)(of_two)
        except BoundError:
            if form is None:
                raise
            found, given = form.bounds(), (form.start,)
        outputs = found if isinstance(found, list) else [found]
        numbers = []
        for bounds, output in zip(outputs, leaves(call.output), strict=True):
            if isinstance(bounds, Affine):
                bounds.largest = torch.finfo(output.dtype).max
            self.steps.append(Step(bounds, given))
            numbers.append(len(self.steps))
        if isinstance(call.output, tuple | list):
            return numbers
        self.forms[n] = form or _Form.at(numbers[0], tuple(call.output.shape))
        return numbers[0]

    def _form(
        self, n: fx.Node, operation: str, layer: nn.Module | None, call: FunctionCall
    ) -> "_Form | None":
        """The node as a function of one variable of a value before it; None where it is none."""
        depending = [m for m in n.all_input_nodes if self.bounds[m] is not None]
        for m in depending:  # an entry of a tuple has none yet
            self.forms.setdefault(m, _Form.at(self.bounds[m], tuple(self.env[m].shape)))
        first = self.forms[depending[0]]
        if any(self.forms[m].start != first.start for m in depending):
            return None
        settings, named = dict(call.kwargs), [k for k in ("input", "other") if k in call.kwargs]
        arguments = [*zip(n.args, call.args, strict=True), *((n.kwargs[k], settings.pop(k)) for k in named)]
        if any(isinstance(n.kwargs[k], fx.Node) and n.kwargs[k] in depending for k in settings):
            return None
        known = [
            (self.forms[a] if isinstance(a, fx.Node) and a in depending else None, v) for a, v in arguments
        ]
        settings.pop("inplace", None)
        try:
            form = pointwise(operation, layer, [v if f is None else f.form for f, v in known], settings)
        except TooLong:
            return None
        if form is None or form.start.constants or form.start.shape != call.output.shape:
            return None
        run = (lambda x: layer(x)) if layer is not None else (lambda x: self._again(n, [x]))
        made = expression_of(
            operation, layer, [v if f is None else f.expression for f, v in known], settings, run
        )
        return None if made is None else _Form(first.start, form, made)

    def _again(self, n: fx.Node, values: Sequence[Tensor]) -> Any:
        """The node's function on other values, with its constants in float64."""
        new = iter(values)

        def value(m: fx.Node) -> Any:
            if self.bounds[m] is not None:
                return next(new)
            constant = self.env[m]
            floating = isinstance(constant, Tensor) and constant.is_floating_point()
            return constant.double() if floating else constant

        args, kwargs = map_arg(n.args, value), map_arg(n.kwargs, value)
        if n.op == "call_method":
            return getattr(args[0], str(n.target))(*args[1:], **kwargs)
        return n.target(*args, **kwargs)  # type: ignore[operator]


def _nodes_in(n: fx.Node) -> list[fx.Node]:
    """The nodes among the arguments, each time that they are."""
    found: list[fx.Node] = []
    map_arg((n.args, n.kwargs), lambda m: found.append(m))
    return found


def _no_factor(layer: nn.Module, shape: Shape) -> float:
    raise BoundError("no Lipschitz constants are computed here")
