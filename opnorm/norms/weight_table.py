"""The norms of every weight of a file as a table, and how far each weight moved from one file to another."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from opnorm._core.files import to_json
from opnorm._core.plain_text import csv_text
from opnorm.norms import display
from opnorm.norms._operator_norm import Order
from opnorm.norms.matrix_norms import WeightNorms, ends, relative
from opnorm.norms.norm import Norm
from opnorm.norms.number_text import interval, nearest

__all__ = ["Move", "MoveTable", "WeightTable"]

KERNEL = (
    "A kernel is measured as the matrix (out, in · k · k): stride, padding and input size, on which the norms of its "
    "convolution depend, are not in the file"
)
EMBEDDING = (
    "An embedding (vocabulary, width) is measured as the map from one-hot vectors: the transposed matrix"
)
MARGIN = 2  # characters between two columns


class _Column(NamedTuple):
    """A column of numbers: its head, its cells, and whether a narrow terminal may do without it."""

    head: str
    cells: list[str]
    optional: bool = False


def _pair(pair: tuple[float, float] | None) -> str:
    if pair is None:
        return "-"
    return "not known" if pair[0] == 0 and math.isinf(pair[1]) else interval(*pair)


def _grid(rows: Sequence[Any], columns: list[_Column], totals: list[str], width: int | None) -> display.Grid:
    """The names, kinds and shapes with the columns that the width has room for."""
    names = [[row.name, row.kind, display.shape(row.shape)] for row in rows]
    kept = [c for c in columns if any(cell != "-" for cell in c.cells)] or columns[:1]
    room = math.inf if width is None else width - 20 - 2 * (9 + MARGIN)
    for column in [c for c in reversed(kept) if c.optional]:
        if sum(max(map(len, [c.head, *c.cells])) + MARGIN for c in kept) > room:
            kept = [c for c in kept if c is not column]
    cells = [[*name, *(c.cells[i] for c in kept)] for i, name in enumerate(names)]
    notes = [[row.note] if row.note else [] for row in rows]
    return display.Grid(["weight", "kind", "shape", *(c.head for c in kept)], cells, 3, totals, notes)


def _left_out(left_out: dict[str, str]) -> list[str]:
    reasons = Counter(left_out.values())
    return [
        f"Left out, {reason}: {display.first_few([n for n, why in left_out.items() if why == reason], 3)}"
        for reason in reasons
    ]


def _how(norms: Sequence[dict[Order, Norm]]) -> list[str]:
    """What kind of certificate the ℓ2 norms have."""
    methods = Counter(n[p].method.partition("steps: ")[2] for n in norms for p in [_second(n)] if p)
    return [
        f"ℓ2 of {count} large matrices by Lanczos iteration, each {method}"
        for method, count in methods.items()
        if method
    ]


def _second(norms: dict[Order, Norm]) -> Order | None:
    return next((p for p in (2, "rms") if p in norms), None)


@dataclass(frozen=True)
class WeightTable(display.TextTable):
    """What :func:`opnorm.measure_checkpoint` found; ``print`` it, or take ``.rows``, ``.to_json()``, ``.to_csv()``.

    Attributes:
        rows: one for each weight, in the order of the file.
        ords: which norms.
        left_out: tensors without a norm, by name, and why.
        remarks: what else there is to know of the file.
    """

    rows: tuple[WeightNorms, ...]
    ords: tuple[Order, ...]
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    def to_json(self) -> str:
        """An object with ``weights``, ``left_out`` and ``remarks``."""
        rows = [row.as_dict() for row in self.rows]
        return to_json({"weights": rows, "left_out": self.left_out, "remarks": self.remarks})

    def to_csv(self) -> str:
        """One line a weight; an end that is not known is empty."""
        keys = [display.key(p) for p in self.ords]
        intervals = [*(f"norm_{k}" for k in keys), "stable_rank", "condition"]
        head = [
            "weight",
            "kind",
            "shape",
            "dtype",
            *(f"{i}_{e}" for i in intervals for e in ("lower", "upper")),
        ]
        lines: list[list[Any]] = [[*head, "frobenius", "note"]]
        for row in self.rows:
            pairs = [(n.lower, n.upper) if (n := row.norms.get(p)) else None for p in self.ords]
            cells: list[Any] = []
            for pair in (*pairs, row.stable_rank, row.condition):
                cells += ["" if v is None else v for v in ends(*pair).values()] if pair else ["", ""]
            lines.append(
                [row.name, row.kind, display.shape(row.shape), row.dtype, *cells, row.frobenius, row.note]
            )
        return csv_text([["" if cell is None else cell for cell in line] for line in lines])

    def grid(self, width: int | None = None) -> display.Grid:
        """As text: the norms, and below them what was left out and how far to trust them."""
        columns = [
            _Column(display.label(p), [display.cell(row.norms.get(p)) for row in self.rows], p == "rms")
            for p in self.ords
        ]
        lengths = ["-" if row.frobenius is None else nearest(row.frobenius) for row in self.rows]
        columns += [
            _Column("stable rank", [_pair(row.stable_rank) for row in self.rows], optional=True),
            _Column("Frobenius", lengths, optional=True),
            _Column("condition", [_pair(row.condition) for row in self.rows]),
        ]
        return _grid(self.rows, columns, self.sentences(), width)

    def sentences(self) -> list[str]:
        """What holds for all weights."""
        lines = _how([row.norms for row in self.rows])
        kinds = {row.kind for row in self.rows}
        lines += [text for kind, text in (("kernel", KERNEL), ("embedding", EMBEDDING)) if kind in kinds]
        return [*lines, *_left_out(self.left_out), *self.remarks]


class Move(NamedTuple):
    """How far one weight moved.

    Attributes:
        name: of the weight in the first file.
        kind: as in :class:`WeightNorms`.
        shape: in the first file.
        before: its norms in the first file.
        moved: the norms of the difference, second minus first.
        note: why something is missing.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    before: WeightNorms
    moved: WeightNorms
    note: str = ""

    def share(self, ord: Order) -> tuple[float, float] | None:
        """‖W2 - W1‖ / ‖W1‖ as an interval; None where one of the norms is not known."""
        if ord not in self.before.norms or ord not in self.moved.norms:
            return None
        return relative(self.moved.norms[ord], self.before.norms[ord])

    @property
    def frobenius_share(self) -> float | None:
        """‖W2 - W1‖_F / ‖W1‖_F."""
        before, moved = self.before.frobenius, self.moved.frobenius
        if before is None or moved is None:
            return None
        return moved / before if before else 0.0 if moved == 0 else math.inf

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shares = {display.key(p): self.share(p) for p in self.moved.norms}
        return {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "before": self.before.as_dict(),
            "moved": self.moved.as_dict(),
            "relative": {p: None if pair is None else ends(*pair) for p, pair in shares.items()},
            "frobenius_relative": self.frobenius_share,
            "note": self.note,
        }


@dataclass(frozen=True)
class MoveTable(display.TextTable):
    """What :func:`opnorm.measure_checkpoint` found with ``against``: how far each weight moved.

    Attributes:
        rows: one for each weight that both files have.
        ords: which norms.
        missing: what only one of them has, in sentences.
        left_out: tensors without a norm, by name, and why.
    """

    rows: tuple[Move, ...]
    ords: tuple[Order, ...]
    missing: tuple[str, ...] = ()
    left_out: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """An object with ``weights``, ``missing`` and ``left_out``."""
        rows = [row.as_dict() for row in self.rows]
        return to_json({"weights": rows, "missing": self.missing, "left_out": self.left_out})

    def to_csv(self) -> str:
        """One line a weight and norm; an end that is not known is empty."""
        parts = ("before", "moved", "relative")
        lines: list[list[Any]] = [["weight", "ord", *(f"{p}_{e}" for p in parts for e in ("lower", "upper"))]]
        for row in self.rows:
            for p, moved in row.moved.norms.items():
                before = row.before.norms.get(p)
                pairs = [(n.lower, n.upper) if n else None for n in (before, moved)]
                cells: list[Any] = []
                for pair in (*pairs, row.share(p)):
                    cells += ["" if v is None else v for v in ends(*pair).values()] if pair else ["", ""]
                lines.append([row.name, display.key(p), *cells])
        return csv_text(lines)

    def grid(self, width: int | None = None) -> display.Grid:
        """As text: the norms of the difference, and these over the norms before."""
        columns = []
        for p in self.ords:
            label, narrow = display.label(p), p == "rms"
            shares = [_pair(row.share(p)) for row in self.rows]
            columns.append(_Column(f"{label} relative", shares, narrow))
            moved = [display.cell(row.moved.norms.get(p)) for row in self.rows]
            columns.append(_Column(f"{label} of change", moved, optional=True))
        ranks = [_pair(row.moved.stable_rank) for row in self.rows]
        columns.append(_Column("stable rank", ranks, optional=True))
        return _grid(self.rows, columns, self.sentences(), width)

    def sentences(self) -> list[str]:
        """What moved most, and what is missing."""
        lines = ["Relative: the norm of the change over the norm before; stable rank: of the change"]
        for p in self.ords:
            known = [(s[0], row.name) for row in self.rows if (s := row.share(p)) is not None and s[0] > 0]
            most = sorted(known, reverse=True)[:3]
            if most:
                named = ", ".join(f"{name} {share:.3g}" for share, name in most)
                lines.append(f"{display.label(p)} moved most: {named}")
        lines += _how([row.moved.norms for row in self.rows])
        kinds = {row.kind for row in self.rows}
        lines += [text for kind, text in (("kernel", KERNEL), ("embedding", EMBEDDING)) if kind in kinds]
        return [*lines, *self.missing, *_left_out(self.left_out)]
