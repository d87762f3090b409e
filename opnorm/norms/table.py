"""The norms of every layer of a network, as a table."""

import copy
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm.errors import NormError, OpnormError
from opnorm.linear import Shape
from opnorm.modes import evaluating
from opnorm.norms.exact import l1, linf
from opnorm.norms.spectral import Norm, spectral

__all__ = ["LayerNorms", "NormTable", "Visit", "measure", "operator_norm", "trace"]

Order = float
ORDERS: dict[Order, str] = {1: "ℓ1", 2: "ℓ2", math.inf: "ℓ∞"}


def operator_norm(layer: nn.Module, ord: Order, in_shape: Sequence[int]) -> Norm:
    """The operator norm ‖M‖_p = max ‖M v‖_p / ‖v‖_p of one layer without its bias, in float64.

    Args:
        layer: a layer; see :func:`opnorm.norms.l1` for the types.
        ord: 1 or ``math.inf`` (exact), or 2 (an interval).
        in_shape: shape of one input, without the batch axis: ``(C, H, W)`` for a Conv2d.

    Returns:
        ``Norm(lower, upper, method)``.

    Raises:
        NormError: another ``ord``, a layer whose norm is not known, NaN or infinite weights.

    Source: Liang & Huang 2021, Theorem 1 (ℓ1, ℓ∞); power iteration (ℓ2).
    """
    if ord not in ORDERS:
        raise NormError(f"ord={ord!r} is not known; expected 1, 2 or math.inf")
    _check_weights(layer)
    if ord == 2:
        return spectral(layer, tuple(in_shape))
    with torch.no_grad():
        exact = (l1 if ord == 1 else linf)(copy.deepcopy(layer).double(), tuple(in_shape))
    return Norm.of(exact, exact, "exact")


def _check_weights(layer: nn.Module) -> None:
    for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
        if not torch.isfinite(tensor).all():
            bad = int((~torch.isfinite(tensor)).sum())
            raise NormError(
                f"{name} has {bad} of {tensor.numel()} entries that are NaN or infinite; diverged training?"
            )


class Visit(NamedTuple):
    """One call of a layer in a forward pass, with the shapes of one input and one output (no batch axis)."""

    name: str
    layer: nn.Module
    in_shape: Shape
    out_shape: Shape


def trace(model: nn.Module, example: Tensor) -> list[Visit]:
    """Which layers a forward pass visits, in order, and the shapes that they see.

    Layers are the modules without children; a layer that is called twice is visited twice.

    Args:
        model: run once in eval mode; left as it was.
        example: a batch of inputs (B, ...), of which the first is used.
    """
    visits: list[Visit] = []
    handles = []

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: tuple, output: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
                visits.append(Visit(name, layer, tuple(inputs[0].shape[1:]), tuple(output.shape[1:])))

        return hook

    for name, module in model.named_modules():
        if _is_layer(module):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        with evaluating(model):
            model(example[:1])
    finally:
        for handle in handles:
            handle.remove()
    return visits


def _is_layer(module: nn.Module) -> bool:
    known = l1.dispatch(type(module)) is not l1.dispatch(object)
    return known or not any(True for _ in module.children())


@dataclass(frozen=True)
class LayerNorms:
    """One row of a :class:`NormTable`.

    Attributes:
        layer: its name in the model, as in ``named_modules``.
        kind: the name of its class.
        in_shape: shape of one input.
        out_shape: shape of one output.
        parameters: how many numbers it has.
        norms: by order (1, 2, inf); empty where the layer is not linear or its norms are not known.
        note: why a norm is missing; empty otherwise.
    """

    layer: str
    kind: str
    in_shape: Shape
    out_shape: Shape
    parameters: int
    norms: dict[Order, Norm] = field(default_factory=dict)
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an unknown upper bound is null."""
        norms = {
            f"{p:g}": {
                "lower": float(n.lower),
                "upper": float(n.upper) if math.isfinite(n.upper) else None,
                "exact": n.exact,
                "method": n.method,
            }
            for p, n in self.norms.items()
        }
        return {
            "layer": self.layer,
            "kind": self.kind,
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "parameters": self.parameters,
            "norms": norms,
            "note": self.note,
        }


@dataclass(frozen=True)
class NormTable:
    """What :func:`measure` found, layer by layer; ``print`` it, or take ``.rows``, ``.to_json()``."""

    rows: tuple[LayerNorms, ...]
    ords: tuple[Order, ...]

    def to_json(self) -> str:
        """The rows as a JSON list."""
        return json.dumps([row.as_dict() for row in self.rows], indent=1)

    def __rich__(self) -> Any:
        from rich.table import Table

        table = Table(box=None, header_style="bold", pad_edge=False)
        for title in ("layer", "kind", "input"):
            table.add_column(title, overflow="fold")
        for p in self.ords:
            table.add_column(ORDERS[p], justify="right")
        table.add_column("", overflow="fold", style="dim")
        for row in self.rows:
            cells = [_cell(row.norms.get(p)) for p in self.ords]
            shape = "x".join(map(str, row.in_shape))
            table.add_row(row.layer or "(model)", row.kind, shape, *cells, row.note)
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


def _cell(norm: Norm | None) -> str:
    if norm is None:
        return "-"
    if norm.exact:
        return f"{float(norm.lower):.4g}"
    upper = f"{float(norm.upper):.4g}" if math.isfinite(norm.upper) else "not known"
    return f"[{float(norm.lower):.4g}, {upper}]".replace("[", "\\[")


def measure(model: nn.Module, example: Tensor, ords: Sequence[Order] = (1, 2, math.inf)) -> NormTable:
    """The operator norms of every layer that a forward pass visits.

    A layer whose norm cannot be told is a row with a note, and does not hide the others.

    Args:
        model: any network; left as it was.
        example: a batch of inputs (B, C, H, W), of which the first is run through the model to find the shapes.
        ords: which norms: 1 and ``math.inf`` exact, 2 as an interval.

    Raises:
        NormError: an order that is not known.
        OpnormError: the model does not take the example.
    """
    for p in ords:
        if p not in ORDERS:
            raise NormError(f"ord={p!r} is not known; expected some of 1, 2, math.inf")
    try:
        visits = trace(model, example)
    except (RuntimeError, ValueError, TypeError) as e:
        raise OpnormError(f"the model does not take an input of shape {tuple(example.shape[1:])}: {e}") from e
    return NormTable(tuple(_row(v, ords) for v in visits), tuple(ords))


def _row(visit: Visit, ords: Sequence[Order]) -> LayerNorms:
    norms, note = {}, ""
    try:
        if l1.dispatch(type(visit.layer)) is l1.dispatch(object):
            raise NormError("not linear, or not known yet")
        norms = {p: operator_norm(visit.layer, p, visit.in_shape) for p in ords}
    except NormError as e:
        note = str(e)
    size = sum(p.numel() for p in visit.layer.parameters())
    return LayerNorms(
        visit.name, type(visit.layer).__name__, visit.in_shape, visit.out_shape, size, norms, note
    )
