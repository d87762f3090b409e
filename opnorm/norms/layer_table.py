"""Measuring the norms of every layer of a network."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from opnorm._core.layers import BATCH_NORM, Shape, changed_by_hooks, check_weights, in_float64, unwrap
from opnorm._core.modes import in_default_modes
from opnorm._core.orders import check_interval, check_ords
from opnorm.errors import NormError
from opnorm.norms._operator_norm import Order, interval_settings, norm_of
from opnorm.norms.exact.by_layer import l1
from opnorm.norms.network.trace import Example, LayerCall, first_line, layers, trace
from opnorm.norms.nonlinear import is_nonlinear, known_base, lipschitz
from opnorm.norms.norm import Norm
from opnorm.norms.table import LayerNorms, NormTable, matching

__all__ = ["layer_norms", "measure"]


@in_default_modes
def measure(
    model: nn.Module,
    example: Example,
    ords: Sequence[Order] = (1, 2, math.inf),
    *,
    only: str = "*",
    progress: bool = False,
    relative_width: float | None = None,
    failure_probability: float = 0.0,
) -> NormTable:
    """The operator norms of every layer that a forward pass calls, as they are in eval mode.

    A layer whose norm is not known is a row with a note, and does not hide the others. What a forward does without a
    module (``F.relu``, ``+``, ``view``) is seen by :func:`opnorm.norms.lipschitz_bound` only.

    Args:
        model: any network; left as it was. Compiled and data-parallel ones are looked into.
        example: a batch of inputs (B, C, H, W), of which the first is run through the model to find the shapes; or a tuple
            of the model's arguments, or a dict of its named ones.
        ords: which norms: 1 and ``math.inf`` exact, 2 and "rms" as intervals, pairs (p, q).
        only: leave out all layers but those whose name or class matches a pattern, as :meth:`NormTable.select`.
        progress: show a bar with the time left on standard error, if that is a terminal.
        relative_width: of ℓ2 intervals, upper / lower - 1, to aim at; 5e-3 when None.
        failure_probability: with which the upper end of each may be wrong, for narrow intervals of large layers.

    Raises:
        NormError: an order that is not known, a pattern that no layer matches, or a setting out of its range.
        OpnormError: the model does not take the example.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2), torch.nn.ReLU())
        >>> table = measure(model, torch.rand(1, 1, 2, 2), ords=(1,))
        >>> [(row.layer, row.kind) for row in table.rows]
        [('0', 'Flatten'), ('1', 'Linear'), ('2', 'ReLU')]
        >>> table.rows[2].lipschitz
        {1: 1.0}
    """
    check_ords(ords)
    settings = interval_settings(relative_width, failure_probability)
    check_interval(**settings)
    model = unwrap(model)
    calls = every = trace(model, example)
    if only != "*":
        calls = [every[i] for i in matching([(v.name, _kind(v.layer)) for v in every], only)]
    rows = _rows(calls, ords, settings, progress)
    return NormTable(tuple(rows), tuple(ords), _uncalled(model, every) if only == "*" else ())


def _rows(
    calls: Sequence[LayerCall], ords: Sequence[Order], settings: dict[str, Any], progress: bool
) -> list[LayerNorms]:
    owners: dict[int, str] = {}  # parameter -> the first layer that has it
    known: dict[tuple[nn.Module, Shape, str], tuple[dict[Order, Norm], dict[Order, float], str]] = {}
    rows: list[LayerNorms] = []
    listed = {call.layer for call in calls}
    for call in _with_bar(calls) if progress else calls:
        name, layer, in_shape, out_shape, note = call
        key = (layer, in_shape, note)
        if key not in known:
            known[key] = ({}, {}, note) if note else _norms_or_error(layer, in_shape, ords, settings)
        norms, constants, note = known[key]
        tags = _tags(call, owners, repeated=any(r.layer == name for r in rows))
        size = sum(p.numel() for p in _own_parameters(layer, listed) if not is_lazy(p))
        rows.append(LayerNorms(name, _kind(layer), in_shape, out_shape, size, norms, note, constants, tags))
    return rows


def _norms_or_error(
    layer: nn.Module, shape: Shape, ords: Sequence[Order], settings: dict[str, Any]
) -> tuple[dict[Order, Norm], dict[Order, float], str]:
    """As :func:`layer_norms`; an error, such as of a user's own norm, is a row that does not hide the others."""
    try:
        return layer_norms(layer, shape, ords, settings)
    except Exception as e:  # noqa: BLE001
        return {}, {}, f"error in the computation of its norms: {first_line(e)}"


def _own_parameters(layer: nn.Module, listed: set[nn.Module]) -> list[nn.Parameter]:
    """The parameters of a layer without those of layers inside it that have rows of their own."""
    inner = {p for m in layer.modules() if m is not layer and m in listed for p in m.parameters()}
    return [p for p in layer.parameters() if p not in inner]


def _uncalled(model: nn.Module, calls: Sequence[LayerCall]) -> tuple[str, ...]:
    """The layers with parameters that are neither called nor a child of a layer that is treated as a whole."""
    called = {c.layer for c in calls}
    whole = tuple(f"{c.name}." for c in calls if c.note and c.name)
    return tuple(
        name
        for name, layer in layers(model)
        if layer not in called and any(True for _ in layer.parameters()) and not name.startswith(whole)
    )


def layer_norms(
    layer: nn.Module,
    shape: Shape,
    ords: Sequence[Order],
    settings: dict[str, Any] | None = None,
) -> tuple[dict[Order, Norm], dict[Order, float], str]:
    """The norms of one layer, its Lipschitz constants where it is not linear, and why some are missing.

    A layer without a formula is followed into its forward.
    """
    from opnorm.norms.network.lipschitz import lipschitz_bound  # which needs this module

    norms: dict[Order, Norm] = {}
    constants: dict[Order, float] = {}
    reasons: list[str] = []
    try:
        check_weights(layer)
    except NormError as e:
        return {}, {}, str(e)
    for ord in ords:
        try:
            if is_nonlinear(layer) and not isinstance(ord, tuple):
                constants[ord] = _constant(layer, ord, shape)
            else:
                norms[ord] = norm_of(layer, ord, shape, settings or {})
                if ord == 2 and math.isinf(norms[ord].upper) and known_base(layer, l1.registry) is None:
                    norms[ord] = _with_upper(norms[ord], lipschitz_bound(layer, torch.zeros(1, *shape)).value)
        except NormError as e:
            reason, bound = str(e), None
            if (
                isinstance(ord, int | float)
                and known_base(layer, l1.registry) is None
                and not is_nonlinear(layer)
            ):
                bound = lipschitz_bound(layer, torch.zeros(1, *shape), ord).value
            if bound is not None:
                constants[ord] = bound
                reason += "; the figure after ≤ is a Lipschitz constant, from its forward"
            reasons.append(reason)
    if is_nonlinear(layer) and not reasons:
        reasons.append("not linear; the figure after ≤ is its Lipschitz constant")
    return norms, constants, "; ".join(dict.fromkeys(reasons))


def _with_upper(norm: Norm, upper: float | None) -> Norm:
    """The interval with a bound of the layer's forward as its upper end, if there is one."""
    if upper is None:
        return norm
    return Norm.of(
        norm.lower,
        max(upper, float(norm.lower)),
        f"{norm.method.partition(';')[0]}; upper end from its forward",
    )


def _constant(layer: nn.Module, ord: float | str, shape: Shape) -> float:
    """The Lipschitz constant of a layer that is not linear; from RMS to RMS by the number of its outputs."""
    if not isinstance(ord, str):
        return lipschitz(layer, ord, shape)
    constant = lipschitz(layer, 2, shape)
    with torch.no_grad():
        outputs = in_float64(layer)(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    return constant * math.sqrt(math.prod(shape) / outputs) if outputs else 0.0


def _kind(layer: nn.Module) -> str:
    kind = type(layer)
    return (kind.__mro__[1] if "parametrizations" in layer._modules else kind).__name__


def _tags(call: LayerCall, names: dict[int, str], repeated: bool) -> tuple[str, ...]:
    """What the reader should know of a row beside its norms."""
    layer, tags = call.layer, []
    parameters = [p for p in layer.parameters() if not is_lazy(p)]
    running = isinstance(layer, BATCH_NORM) and layer.running_var is not None
    if repeated:
        tags.append("called again")
    owners = {names.setdefault(id(p), call.name) for p in parameters}
    shared = {name for name in owners if not (_is_within(name, call.name) or _is_within(call.name, name))}
    if shared:
        tags.append(f"weights shared with {', '.join(sorted(shared))}")
    if parameters and not any(p.requires_grad for p in parameters):
        tags.append("frozen")
    if "parametrizations" in layer._modules:
        tags.append("parametrized")
    if running and layer.training:
        tags.append("in train mode, where it is not linear; this is its norm in eval mode")
    if changed_by_hooks(layer):
        tags.append("has a forward hook, which is not in the norm")
    return tuple(tags)


def _is_within(inner: str, outer: str) -> bool:
    """Whether a module is another one by their names, or a part of it; the name of the whole model is empty."""
    return inner == outer or not outer or inner.startswith(f"{outer}.")


def _with_bar(calls: Sequence[LayerCall]) -> Iterator[LayerCall]:
    """The calls, with a progress bar."""
    from opnorm._core.progress_bar import progress_bar

    def work(call: LayerCall) -> int:  # the cost of an ℓ2 interval grows about with the number of channels
        weight = call.layer._parameters.get("weight")
        return 1 + (math.isqrt(weight.numel()) if weight is not None and not is_lazy(weight) else 0)

    with progress_bar() as bar:
        task = bar.add_task("layers", total=sum(map(work, calls)), note="")
        for call in calls:
            bar.update(task, description=call.name or "(model)")
            yield call
            bar.advance(task, work(call))
