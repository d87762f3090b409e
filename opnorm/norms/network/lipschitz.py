"""Bounds for a whole network from the norms of its layers, along the graph of what its forward does.

The graph of the forward is recorded while it runs on the example; each value in it gets a constant L with

    ‖value(x) - value(y)‖_p <= L ‖x - y‖_p    for all inputs x, y,

composition multiplies, a sum adds, a concatenation takes the ℓp norm of the bounds (‖(a, b)‖_p^p = ‖a‖_p^p + ‖b‖_p^p),
and an input that is copied to m places counts m^(1/p). A value that is, entry by entry, a function f of one variable of a
value before it, such as x σ(x), counts a certified bound on sup |f'| (:mod:`opnorm.norms.network.one_variable`). An
operation without a rule is "not known", with its name and the reason, and is never taken for 1. The bound holds for one
input at a time, in eval mode; a network whose output for one point depends on the other points of a batch, the first axis,
is not known.
"""

import functools
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from opnorm._core.layers import changed_by_hooks, check_weights, missing_values, unwrap
from opnorm._core.modes import evaluating, in_default_modes
from opnorm._core.orders import check_ords
from opnorm._core.rounding import PRODUCT
from opnorm.errors import BoundError, NormError
from opnorm.norms import display
from opnorm.norms._operator_norm import norm_of
from opnorm.norms.layer_table import measure
from opnorm.norms.network.graph import (
    attributes_restored,
    forward_graph,
    mixes_points,
    no_random_numbers,
    same_output,
    shifted,
)
from opnorm.norms.network.interpreter import BoundInterpreter, KnownFactors, NodeBound
from opnorm.norms.network.trace import (
    Example,
    arguments,
    eagerly,
    first_line,
    has_formula,
    layers,
    map_tensors,
    trace,
)
from opnorm.norms.norm import Product
from opnorm.norms.number_text import magnitude
from opnorm.norms.table import NormTable

__all__ = [
    "NetworkBound",
    "NodeBound",
    "lipschitz_bound",
    "lipschitz_bounds",
    "sentences",
    "spectral_complexity",
]


class NetworkBound(NamedTuple):
    """An upper bound on a network's Lipschitz constant from ℓp to ℓp, or the reason why there is none.

    Attributes:
        value: the bound, or None.
        reason: why it is not known; empty where it is.
        nodes: the bounds along the graph, in the order of the forward pass, as far as they are known.
    """

    value: float | None
    reason: str
    nodes: tuple[NodeBound, ...]

    def __str__(self) -> str:
        """The bound to 4 digits, rounded up, or the reason."""
        if self.value is None:
            return f"not known: {self.reason}"
        return "0" if self.value == 0 else magnitude(math.log10(self.value), up=True)


@in_default_modes
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
        ``NetworkBound(value, reason, nodes)``.

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
    return lipschitz_bounds(model, example, [ord], table=table)[ord]


@in_default_modes
def lipschitz_bounds(
    model: nn.Module, example: Example, ords: Iterable[float], *, table: NormTable | None = None
) -> dict[float, NetworkBound]:
    """:func:`lipschitz_bound` for each of several orders; what does not depend on the order is found once."""
    for ord in (ords := list(ords)):
        check_ords([ord])
        if isinstance(ord, tuple | str):
            raise NormError(
                f"ord={ord!r}: bounds along the graph are from ℓp to ℓp; expected 1, 2 or math.inf"
            )
    nodes: dict[float, list[NodeBound]] = {ord: [] for ord in ords}
    try:
        values = _propagated(unwrap(model), example, table, nodes)
    except BoundError as e:
        values = dict.fromkeys(nodes, str(e))
    found = {}
    for ord, value in values.items():
        why = value if isinstance(value, str) else ""
        known = _of_matrix(model, example, ord) if isinstance(value, str) else value
        found[ord] = NetworkBound(known, why if known is None else "", tuple(nodes[ord]))
    return found


def _propagated(
    model: nn.Module, example: Example, table: NormTable | None, nodes: dict[float, list[NodeBound]]
) -> dict[float, float | str]:
    """The bound of each order, or why it is not known; ``nodes``, by order, are filled in.

    Raises:
        BoundError: no order's is known.
    """
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        if reason := missing_values(t):
            raise BoundError(f"{name} {reason}")
        if t.is_complex():
            raise BoundError(f"{name} is complex; bounds are known for real numbers only")
    if has_formula(model) and isinstance(example, Tensor):
        # the graph of a layer itself would not show the hooks that compute its weight
        model = nn.Sequential(model)
    other_numbers = functools.partial(shifted, seed=1)  # than those that the graph is recorded with
    found: dict[float, float | str] = {}
    with attributes_restored(model), evaluating(model):
        forward = forward_graph(model, example)
        factors = _known_factors(model, table)
        with no_random_numbers(), eagerly():
            args, kwargs = (map_tensors(v, other_numbers) for v in arguments(model, example))
            try:
                output = model(*args, **kwargs)
            except Exception as e:  # whatever the user's own network raises
                trace(model, example)  # raises if the model itself does not take the example
                raise BoundError(f"its forward fails for other numbers: {first_line(e)}") from e
            for ord, of_order in nodes.items():
                interpreter = BoundInterpreter(forward, ord, factors, of_order)
                try:
                    with attributes_restored(model):
                        result = interpreter.run(*map(other_numbers, forward.inputs))
                    found[ord] = _bound_of(interpreter, same_output(result, output))
                except BoundError as e:
                    found[ord] = str(e)
            known = any(not isinstance(value, str) for value in found.values())
            if known and mixes_points(model, *arguments(model, example)):
                raise BoundError(
                    "an output depends on several points of a batch; its first axis is taken for the batch"
                )
    return found


def _bound_of(interpreter: BoundInterpreter, same: bool) -> float:
    """The bound of the output, with its rounding; ``same``: whether the graph gave the output of the model."""
    if not same:
        raise BoundError("its graph gives another output than the model: control flow by the data?")
    value = interpreter.output_bound() * (1 + PRODUCT * (1 + len(interpreter.graph.nodes)))
    if not math.isfinite(value):
        raise BoundError("the product of the norms is too large for a number")
    return value


def _of_matrix(model: nn.Module, example: Example, ord: float) -> float | None:
    """The norm of the explicit matrix of one affine layer of torch that has no formula, such as Unfold."""
    if (
        not type(model).__module__.startswith("torch.nn.")
        or model._modules
        or not isinstance(example, Tensor)
        or changed_by_hooks(model)
    ):
        return None
    try:
        check_weights(model)
        return float(norm_of(model, ord, tuple(example.shape[1:]), {}).upper)
    except NormError:
        return None


def sentences(bounds: Mapping[float, NetworkBound]) -> list[str]:
    """Bounds by order, in words."""
    known = ", ".join(f"{display.label(p)} ≤ {b}" for p, b in bounds.items() if b.value is not None)
    lines = [f"Lipschitz constant of the whole network, along its graph: {known}"] if known else []
    reasons: dict[str, list[str]] = {}
    for p, b in bounds.items():
        if b.value is None:
            reasons.setdefault(b.reason, []).append(display.label(p))
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


def _known_factors(model: nn.Module, table: NormTable | None) -> KnownFactors:
    """The upper bounds of a table's layers."""
    modules = dict(layers(model))
    factors: KnownFactors = {}
    for row in table.rows if table else ():
        for p in (1, 2, math.inf):
            value = row.lipschitz.get(p, row.norms[p].upper if p in row.norms else None)
            if value is not None and row.layer in modules:
                factors[modules[row.layer], row.in_shape, p] = (float(value), "")
    return factors
