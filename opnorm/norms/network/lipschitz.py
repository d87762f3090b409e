"""Bounds for a whole network from the norms of its layers, along the graph of what its forward does.

``torch.fx`` writes the forward down as a graph; each value in it gets a number L with

    ‖value(x) - value(y)‖_p <= L ‖x - y‖_p    for all inputs x, y,

composition multiplies, a sum adds, a concatenation takes the ℓp norm of its parts (‖(a, b)‖_p^p = ‖a‖_p^p + ‖b‖_p^p),
and copies count: an input that reaches m places counts m^(1/p). What has no rule here is "not known", with its name and
the reason, and is never taken for 1. The bound holds for one input at a time, in eval mode.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from opnorm._core.layers import Shape, missing_values
from opnorm._core.modes import evaluating
from opnorm.errors import NormError
from opnorm.norms import display as show
from opnorm.norms._operator_norm import check_ords
from opnorm.norms.network import rules as rules  # they register themselves
from opnorm.norms.network.graph import elsewhere, first_line, forward_graph, same_output
from opnorm.norms.network.interpreter import Part, Unknown, Walk
from opnorm.norms.network.rules import RULES
from opnorm.norms.network.trace import Example, arguments, called, layers, mapped, unwrapped
from opnorm.norms.table import NormTable, Product, measure, visited

__all__ = ["NetworkBound", "Part", "lipschitz_bound", "spectral_complexity"]

ROUNDING = 1e-12  # relative, for each step: far above the float64 rounding of a few products and sums


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
        if reason := missing_values(t):
            return NetworkBound(None, f"{name} {reason}", ())
    with evaluating(model):
        graph, values, reason = forward_graph(model, example)
        if graph is None:
            return NetworkBound(None, reason, ())
        walk = Walk(graph, RULES, ord, _known(model, table))
        before = torch.get_rng_state()
        try:
            result = walk.run(*(mapped(v, elsewhere) for v in values))
            args, kwargs = (mapped(v, elsewhere) for v in arguments(model, example))
            same = same_output(result, called(model, args, kwargs))
        except Exception as e:  # noqa: BLE001 - whatever the user's own network raises
            visited(model, example)  # says so if the model itself does not take the example
            return NetworkBound(
                None, f"its graph fails where the model does not: {first_line(e)}", tuple(walk.parts)
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
    except Unknown as e:
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
