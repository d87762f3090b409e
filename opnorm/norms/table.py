"""The norms of every layer of a network, as a table."""

import csv
import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from opnorm._core.layers import WEIGHTED, Shape, check_weights, unwrap
from opnorm.errors import NormError
from opnorm.norms import display
from opnorm.norms._operator_norm import Double, Order, check_ords, interval_settings, norm_of
from opnorm.norms.network.trace import Example, LayerCall, first_line, layers, trace
from opnorm.norms.nonlinear import is_nonlinear, lipschitz
from opnorm.norms.norm import Norm, Product, product
from opnorm.norms.spectral.interval import check_interval

__all__ = ["LayerNorms", "NormTable", "layer_norms", "measure"]


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
        lipschitz: by order, upper bounds on the Lipschitz constant of a layer that is not linear.
        tags: what else there is to know: frozen, called again, a shared weight, ...
    """

    layer: str
    kind: str
    in_shape: Shape
    out_shape: Shape
    parameters: int
    norms: dict[Order, Norm] = field(default_factory=dict)
    note: str = ""
    lipschitz: dict[Order, float] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    @property
    def has_weight(self) -> bool:
        """Whether it is a linear or convolutional layer, which the papers' products count."""
        return self.kind in _WEIGHT_KINDS

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; an unknown upper bound is null."""
        norms = {
            display.key(p): {
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
            "lipschitz": {display.key(p): c for p, c in self.lipschitz.items()},
            "tags": list(self.tags),
            "note": self.note,
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "LayerNorms":
        """The row that :meth:`as_dict` wrote."""
        norms = {
            display.order(p): Norm.of(n["lower"], math.inf if n["upper"] is None else n["upper"], n["method"])
            for p, n in value["norms"].items()
        }
        constants = {display.order(p): float(c) for p, c in value.get("lipschitz", {}).items()}
        return LayerNorms(
            value["layer"], value["kind"], tuple(value["in_shape"]), tuple(value["out_shape"]), value["parameters"],
            norms, value["note"], constants, tuple(value.get("tags", ())),
        )  # fmt: skip


_WEIGHT_KINDS = {kind.__name__ for kind in WEIGHTED}


@dataclass(frozen=True)
class NormTable:
    """What :func:`measure` found, layer by layer; ``print`` it, or take ``.rows``, ``.to_json()``, ``.plot(path)``.

    Attributes:
        rows: one for each call of a layer, in the order of the forward pass.
        ords: which norms.
        uncalled: layers with parameters that the forward pass did not reach.
    """

    rows: tuple[LayerNorms, ...]
    ords: tuple[Order, ...]
    uncalled: tuple[str, ...] = ()

    @property
    def spectral_complexity(self) -> Product | None:
        """∏ ‖W‖_2 over the linear and convolutional layers, each call counted; None where ℓ2 was not asked for.

        Source: Wen et al. 2020, Definition 7.
        """
        if 2 not in self.ords:
            return None
        rows = [row for row in self.rows if row.has_weight]
        missing = [
            row.layer or "(model)"
            for row in rows
            if 2 not in row.norms or not math.isfinite(row.norms[2].upper)
        ]
        reason = (
            f"no upper bound of {', '.join(missing[:3])}{', ...' * (len(missing) > 3)}" if missing else ""
        )
        return product([row.norms[2] for row in rows if row.layer not in missing and 2 in row.norms], reason)

    def select(self, pattern: str) -> "NormTable":
        """The rows whose layer's name matches a pattern such as ``layer1.*`` or ``*conv*`` (as in a shell).

        Raises:
            NormError: none does.
        """
        kept = matching([(row.layer, row.kind) for row in self.rows], pattern)
        return NormTable(tuple(self.rows[i] for i in kept), self.ords)

    def to_json(self) -> str:
        """The rows as a JSON list."""
        return json.dumps([row.as_dict() for row in self.rows], indent=1)

    @staticmethod
    def from_json(text: str) -> "NormTable":
        """The table that :meth:`to_json` wrote.

        Raises:
            NormError: the text is no such list.
        """
        try:
            value = json.loads(text)
            listed = (
                value["layers"] if isinstance(value, dict) else value
            )  # an object is from `opnorm norms --json`
            rows = tuple(LayerNorms.from_dict(row) for row in listed)
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise NormError(f"this is no table of norms as NormTable.to_json writes it: {e!r:.100}") from e
        ords = dict.fromkeys(p for row in rows for p in (*row.norms, *row.lipschitz))
        return NormTable(rows, tuple(ords))

    def to_csv(self) -> str:
        """One line a layer; each norm as its lower end, its upper end (empty where not known) and its method."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        ends = [f"norm_{display.key(p)}_{end}" for p in self.ords for end in ("lower", "upper", "method")]
        constants = [f"lipschitz_{display.key(p)}" for p in self.ords]
        writer.writerow(
            ["layer", "kind", "in_shape", "out_shape", "parameters", *ends, *constants, "tags", "note"]
        )
        for row in self.rows:
            cells: list[Any] = [
                row.layer,
                row.kind,
                display.shape(row.in_shape),
                display.shape(row.out_shape),
                row.parameters,
            ]
            for p in self.ords:
                n = row.norms.get(p)
                high = float(n.upper) if n and math.isfinite(n.upper) else ""
                cells += [float(n.lower), high, n.method] if n else ["", "", ""]
            cells += [row.lipschitz.get(p, "") for p in self.ords]
            writer.writerow([*cells, "; ".join(row.tags), row.note])
        return out.getvalue()

    def to_markdown(self) -> str:
        """A table for a README or an issue, with totals below."""
        head = ["layer", "kind", "input", *(display.label(p) for p in self.ords), "note"]
        lines = [
            display.markdown_row(head),
            "|" + "|".join(["---"] * 3 + ["---:"] * len(self.ords) + ["---"]) + "|",
        ]
        for row in self.rows:
            norms = [display.cell(row.norms.get(p), row.lipschitz.get(p)) for p in self.ords]
            notes = "; ".join(filter(None, (*row.tags, row.note)))
            lines.append(
                display.markdown_row(
                    [row.layer or "(model)", row.kind, display.shape(row.in_shape), *norms, notes]
                )
            )
        return "\n".join([*lines, "", *(f"{line}  " for line in self.totals())]).rstrip() + "\n"

    def to_html(self) -> str:
        """The table as a piece of HTML."""
        return display.html(self.rows, self.ords, self.totals())

    def _repr_html_(self) -> str:
        return self.to_html()

    def plot(self, path: str | Path) -> Path:
        """Write the norms of the layers as a bar plot; the name's end says how: .svg, .pdf, .png or .html (offline).

        Raises:
            NormError: another ending, or nothing to draw.
        """
        from opnorm.norms.plot import write_plot

        return write_plot(self.rows, Path(path))

    def totals(self) -> list[str]:
        """What holds for the whole network, in sentences."""
        lines = []
        complexity = self.spectral_complexity
        if complexity is not None and complexity.layers:
            what = f"Product of the ℓ2 norms of {complexity.layers} linear and convolutional layers (spectral complexity)"
            lines.append(f"{what}: {display.product(complexity)}")
        if self.uncalled:
            some = ", ".join(self.uncalled[:4]) + f" and {len(self.uncalled) - 4} more" * (
                len(self.uncalled) > 4
            )
            lines.append(f"Not reached by this forward pass: {some}")
        return lines

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from display.rich_table(self.rows, self.ords, self.totals(), options.max_width)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=110, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return "\n".join(line.rstrip() for line in capture.get().splitlines())


def matching(layers: Sequence[tuple[str, str]], pattern: str) -> list[int]:
    """Which of the (name, kind) match a pattern by the one or the other.

    Raises:
        NormError: none does.
    """
    found = [i for i, names in enumerate(layers) if any(fnmatchcase(name, pattern) for name in names)]
    if not found:
        names = list(dict.fromkeys(name for name, _ in layers))
        some = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise NormError(f"no layer matches {pattern!r}; there are {some}")
    return found


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
        ords: which norms: 1 and ``math.inf`` exact, 2 as an interval, pairs (p, q).
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
    wanted = interval_settings(relative_width, failure_probability)
    check_interval(**wanted)
    model = unwrap(model)
    calls = every = trace(model, example)
    if only != "*":
        calls = [every[i] for i in matching([(v.name, _kind(v.layer)) for v in every], only)]
    rows = _rows(calls, ords, wanted, progress)
    return NormTable(tuple(rows), tuple(ords), _uncalled(model, every) if only == "*" else ())


def _rows(
    calls: Sequence[LayerCall], ords: Sequence[Order], wanted: dict[str, Any], progress: bool
) -> list[LayerNorms]:
    owners: dict[int, str] = {}  # parameter -> the first layer that has it
    known: dict[tuple[nn.Module, Shape, str], tuple[dict[Order, Norm], dict[Order, float], str]] = {}
    rows: list[LayerNorms] = []
    with _bar(progress, calls) as advance:
        for call in calls:
            advance(call, 0)
            name, layer, in_shape, out_shape, note = call
            if (layer, in_shape, note) not in known:
                found = ({}, {}, note) if note else layer_norms(layer, in_shape, ords, wanted)
                known[layer, in_shape, note] = found
            norms, constants, note = known[layer, in_shape, note]
            tags = _tags(call, owners, repeated=any(r.layer == name for r in rows))
            size = sum(p.numel() for p in layer.parameters() if not is_lazy(p))
            kind = _kind(layer)
            rows.append(LayerNorms(name, kind, in_shape, out_shape, size, norms, note, constants, tags))
            advance(call, 1)
    return rows


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
    layer: nn.Module, shape: Shape, ords: Sequence[Order], wanted: dict[str, Any] | None = None
) -> tuple[dict[Order, Norm], dict[Order, float], str]:
    """The norms of one layer, its Lipschitz constants where it is not linear, and why some are missing."""
    norms: dict[Order, Norm] = {}
    constants: dict[Order, float] = {}
    reasons: list[str] = []
    try:
        check_weights(layer)
    except NormError as e:
        return {}, {}, str(e)
    double = Double(layer)
    for ord in ords:
        try:
            if is_nonlinear(layer) and not isinstance(ord, tuple):
                constants[ord] = lipschitz(layer, ord, shape)
            else:
                norms[ord] = norm_of(layer, ord, shape, double, wanted or {})
        except NormError as e:
            reasons.append(str(e))
        except Exception as e:  # noqa: BLE001 - a row that failed must not hide the others
            reasons.append(first_line(e))
    if is_nonlinear(layer) and not reasons:
        reasons.append("not linear; the figure after ≤ is its Lipschitz constant")
    return norms, constants, "; ".join(dict.fromkeys(reasons))


def _kind(layer: nn.Module) -> str:
    kind = type(layer)
    return (kind.__mro__[1] if "parametrizations" in layer._modules else kind).__name__


def _tags(call: LayerCall, names: dict[int, str], repeated: bool) -> tuple[str, ...]:
    """What the reader should know of a row beside its norms."""
    layer, tags = call.layer, []
    parameters = [p for p in layer.parameters() if not is_lazy(p)]
    if repeated:
        tags.append("called again")
    shared = {names.setdefault(id(p), call.name) for p in parameters} - {call.name}
    if shared:
        tags.append(f"weights shared with {', '.join(sorted(shared))}")
    if parameters and not any(p.requires_grad for p in parameters):
        tags.append("frozen")
    if "parametrizations" in layer._modules:
        tags.append("parametrized")
    if (
        isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.training
        and layer.running_var is not None
    ):
        tags.append("in train mode, where it is not linear; this is its norm in eval mode")
    if layer._forward_hooks:
        tags.append("has a forward hook, which is not in the norm")
    return tuple(tags)


@contextmanager
def _bar(wanted: bool, calls: Sequence[LayerCall]) -> Iterator[Callable[[LayerCall, int], None]]:
    """A progress bar: the function is called before (0) and after (1) each call."""
    if not wanted:
        yield lambda call, done: None
        return
    from opnorm._core.progress_bar import progress_bar

    def work(call: LayerCall) -> int:  # the cost of an ℓ2 interval grows about with the number of channels
        weight = call.layer._parameters.get("weight")
        return 1 + (math.isqrt(weight.numel()) if weight is not None and not is_lazy(weight) else 0)

    with progress_bar() as bar:
        task = bar.add_task("layers", total=sum(work(c) for c in calls), note="")

        def advance(call: LayerCall, done: int) -> None:
            bar.update(task, description=call.name or "(model)", advance=done * work(call))

        yield advance
