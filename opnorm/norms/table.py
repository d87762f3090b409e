"""The norms of every layer of a network, as a table."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from opnorm._core.layers import WEIGHTED, Shape
from opnorm._core.plain_text import csv_text
from opnorm.errors import NormError
from opnorm.norms import display
from opnorm.norms._operator_norm import Order
from opnorm.norms.norm import Norm, Product, product

__all__ = ["LayerNorms", "NormTable", "matching"]


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
            **vars(self),
            "in_shape": list(self.in_shape),
            "out_shape": list(self.out_shape),
            "norms": norms,
            "lipschitz": {display.key(p): c for p, c in self.lipschitz.items()},
            "tags": list(self.tags),
        }

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> "LayerNorms":
        """The row that :meth:`as_dict` wrote."""
        read: dict[str, Any] = {name: tuple(value[name]) for name in ("in_shape", "out_shape")}
        read["norms"] = {
            display.order(p): Norm.of(n["lower"], math.inf if n["upper"] is None else n["upper"], n["method"])
            for p, n in value["norms"].items()
        }
        read["lipschitz"] = {display.order(p): float(c) for p, c in value.get("lipschitz", {}).items()}
        read["tags"] = tuple(value.get("tags", ()))
        return LayerNorms(**{**value, **read})


_WEIGHT_KINDS = {kind.__name__ for kind in WEIGHTED}


@dataclass(frozen=True)
class NormTable(display.TextTable):
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
        norms = [row.norms[2] if 2 in row.norms else Norm.of(0.0, math.inf, "not known") for row in rows]
        missing = [row.layer or "(model)" for row, n in zip(rows, norms, strict=True) if math.isinf(n.upper)]
        reason = f"no upper bound of {display.first_few(missing)}" if missing else ""
        return product([n for n in norms if math.isfinite(n.upper)], reason)

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
            # an object is from `opnorm norms --json`
            listed = value["layers"] if isinstance(value, dict) else value
            rows = tuple(LayerNorms.from_dict(row) for row in listed)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            raise NormError(
                f"{text[:30]!r}...: expected a table of norms, as opnorm norms --json and NormTable.to_json write it"
            ) from e
        ords = dict.fromkeys(p for row in rows for p in (*row.norms, *row.lipschitz))
        return NormTable(rows, tuple(ords))

    def to_csv(self) -> str:
        """One line a layer; each norm as its lower end, its upper end (empty where not known) and its method."""
        ends = [f"norm_{display.key(p)}_{end}" for p in self.ords for end in ("lower", "upper", "method")]
        constants = [f"lipschitz_{display.key(p)}" for p in self.ords]
        lines: list[list[Any]] = [
            ["layer", "kind", "in_shape", "out_shape", "parameters", *ends, *constants, "tags", "note"]
        ]
        for row in self.rows:
            shapes = display.shape(row.in_shape), display.shape(row.out_shape)
            cells: list[Any] = [row.layer, row.kind, *shapes, row.parameters]
            for p in self.ords:
                n = row.norms.get(p)
                high = float(n.upper) if n and math.isfinite(n.upper) else ""
                cells += [float(n.lower), high, n.method] if n else ["", "", ""]
            cells += [row.lipschitz.get(p, "") for p in self.ords]
            lines.append([*cells, "; ".join(row.tags), row.note])
        return csv_text(lines)

    def grid(self, width: int | None = None) -> display.Grid:
        """As text: the layers, their inputs and norms, what else there is to know of them, and the totals."""
        head = ["layer", "kind", "input", *map(display.label, self.ords)]
        rows = [
            [row.layer or "(model)", row.kind, display.shape(row.in_shape)]
            + [display.cell(row.norms.get(p), row.lipschitz.get(p)) for p in self.ords]
            for row in self.rows
        ]
        notes = [[*row.tags, *filter(None, [row.note])] for row in self.rows]
        return display.Grid(head, rows, 3, self.totals(), notes)

    def plot(self, path: str | Path) -> Path:
        """Write the norms of the layers as a bar plot; the name's end says how: .svg, .pdf, .png or .html (offline).

        Raises:
            NormError: another ending, or nothing to draw.
        """
        from opnorm.norms.plot import write_plot

        if not isinstance(path, str | Path):
            raise NormError(f"path={path!r:.60}: expected the name of a file, such as 'norms.svg'")
        return write_plot(self.rows, Path(path))

    def totals(self) -> list[str]:
        """What holds for the whole network, in sentences."""
        lines = []
        complexity = self.spectral_complexity
        if complexity is not None and complexity.layers:
            what = f"Product of the ℓ2 norms of {complexity.layers} linear and convolutional layers (spectral complexity)"
            lines.append(f"{what}: {display.product(complexity)}")
        if any("Conv" in row.kind and row.norms for row in self.rows):
            lines.append(
                "A convolution is measured as the map of its whole input, with stride and padding; its kernel as a matrix, "
                "as in a file of weights without a network, has other norms"
            )
        if self.uncalled:
            lines.append(f"Not reached by this forward pass: {display.first_few(self.uncalled)}")
        return lines


def matching(layers: Sequence[tuple[str, str]], pattern: str) -> list[int]:
    """Which of the (name, kind) match a pattern by the one or the other.

    Raises:
        NormError: none does.
    """
    if not isinstance(pattern, str):
        raise NormError(f"pattern {pattern!r:.60}: expected text such as 'layer1.*' or '*conv*'")
    found = [i for i, names in enumerate(layers) if any(fnmatchcase(name, pattern) for name in names)]
    if not found:
        names = list(dict.fromkeys(name for name, _ in layers))
        raise NormError(f"no layer matches {pattern!r}; there are {display.first_few(names, 6)}")
    return found
