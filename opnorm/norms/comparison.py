"""Two checkpoints of one network, layer by layer: which norms grew, and by how much."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from opnorm._core.argument_checks import named
from opnorm._core.plain_text import csv_text
from opnorm.errors import NormError
from opnorm.norms import display
from opnorm.norms._operator_norm import Order
from opnorm.norms.norm import Norm
from opnorm.norms.number_text import interval
from opnorm.norms.table import LayerNorms, NormTable

__all__ = ["Change", "Comparison", "Summary", "compare"]


class Change(NamedTuple):
    """One norm of one layer in two models.

    Attributes:
        layer: its name.
        kind: its class.
        ord: which norm.
        before: in the first model.
        after: in the second one.
        ratio_lower: after / before is at least this;
        ratio_upper: and at most this. The two are equal where both norms are exact.
    """

    layer: str
    kind: str
    ord: Order
    before: Norm
    after: Norm
    ratio_lower: float
    ratio_upper: float

    @property
    def difference(self) -> float:
        """After minus before, between the middles of the intervals; 0 where the intervals overlap."""
        if self.after.lower <= self.before.upper and self.before.lower <= self.after.upper:
            return 0.0
        return _middle(self.after) - _middle(self.before)

    @property
    def ratio(self) -> float:
        """After / before, between the middles of the intervals."""
        return _divided(_middle(self.after), _middle(self.before))

    def finite_ends(self) -> dict[str, list[float | None]]:
        """The two norms and their ratio, each by its lower and upper end; None for what is not finite."""
        ends = {
            "before": [float(self.before.lower), float(self.before.upper)],
            "after": [float(self.after.lower), float(self.after.upper)],
            "ratio": [self.ratio_lower, self.ratio_upper],
        }
        return {name: [v if math.isfinite(v) else None for v in pair] for name, pair in ends.items()}


class Summary(NamedTuple):
    """What happened to one norm over all layers (Wen et al. 2020 sum up changes so).

    Attributes:
        increase: the sum of the differences of the layers that grew.
        decrease: the sum of the differences of the layers that shrank, as a positive number.
        grew: how many layers grew.
        shrank: how many shrank.
        log_ratio: the mean of log(after / before): its exponential is the typical ratio.
    """

    increase: float
    decrease: float
    grew: int
    shrank: int
    log_ratio: float

    @property
    def mean_increase(self) -> float:
        """Over the layers that grew; 0 when none did."""
        return self.increase / self.grew if self.grew else 0.0

    @property
    def mean_decrease(self) -> float:
        """Over the layers that shrank; 0 when none did."""
        return self.decrease / self.shrank if self.shrank else 0.0


@dataclass(frozen=True)
class Comparison(display.TextTable):
    """What :func:`compare` found; ``print`` it, or take ``.changes``, ``.summary(ord)``, ``.largest(ord)``.

    Attributes:
        changes: by layer, in the order of the first table, and by norm.
        ords: the norms that both tables have.
        missing: why some layers are in no change.
    """

    changes: tuple[Change, ...]
    ords: tuple[Order, ...]
    missing: tuple[str, ...] = ()

    def of(self, ord: Order) -> list[Change]:
        """The changes of one norm."""
        return [c for c in self.changes if c.ord == ord]

    def largest(self, ord: Order, count: int = 5) -> list[Change]:
        """The layers whose norm changed by the largest factor, up or down."""
        return sorted(self.of(ord), key=lambda c: -abs(_log(c.ratio)))[:count]

    def summary(self, ord: Order) -> Summary:
        """Sums and means over the layers."""
        changes = self.of(ord)
        up = [c.difference for c in changes if c.difference > 0]
        down = [-c.difference for c in changes if c.difference < 0]
        logs = [_log(c.ratio) for c in changes]
        finite = [x for x in logs if math.isfinite(x)]
        mean = math.fsum(finite) / len(finite) if finite else 0.0
        return Summary(math.fsum(up), math.fsum(down), len(up), len(down), mean)

    def to_json(self) -> str:
        """An object with ``layers`` and, for each norm, a ``summary``."""
        layers = [
            {"layer": c.layer, "kind": c.kind, "ord": display.key(c.ord), **c.finite_ends()}
            for c in self.changes
        ]
        sums = {display.key(p): self.summary(p) for p in self.ords}
        means = ("mean_increase", "mean_decrease")
        summary = {p: {**s._asdict(), **{mean: getattr(s, mean) for mean in means}} for p, s in sums.items()}
        return json.dumps({"layers": layers, "summary": summary, "missing": list(self.missing)}, indent=1)

    def to_csv(self) -> str:
        """One line a layer and norm; an end that is not known is empty."""
        ends = [f"{what}_{end}" for what in ("before", "after", "ratio") for end in ("lower", "upper")]
        lines: list[list[Any]] = [["layer", "kind", "ord", *ends]]
        for c in self.changes:
            values = [v for pair in c.finite_ends().values() for v in pair]
            lines.append([c.layer, c.kind, display.key(c.ord), *("" if v is None else v for v in values)])
        return csv_text(lines)

    def grid(self, width: int | None = None) -> display.Grid:
        """As text: the norms after and before with their ratio, or where the width is too small the ratios alone."""
        head = ["layer", "kind", *(text for p in self.ords for text in (display.label(p), "ratio"))]
        table: dict[tuple[str, int], list[str]] = {}
        calls: Counter[tuple[str, Order]] = Counter()
        for c in self.changes:
            calls[c.layer, c.ord] += 1
            names = [c.layer or "(model)", c.kind]
            row = table.setdefault((c.layer, calls[c.layer, c.ord]), names + ["-"] * (2 * len(self.ords)))
            at = 2 + 2 * self.ords.index(c.ord)
            row[at : at + 2] = display.cell(c.before), f"×{interval(c.ratio_lower, c.ratio_upper)}"
        rows = list(table.values())
        needed = sum(max(len(row[i]) for row in [head, *rows]) + 2 for i in range(len(head)))
        if width is not None and needed > width + 2:
            head = ["layer", "kind", *(f"{display.label(p)} ratio" for p in self.ords)]
            rows = [[*row[:2], *row[3::2]] for row in rows]
        return display.Grid(head, rows, 2, self.sentences())

    def sentences(self) -> list[str]:
        """The sums, the means and the largest changes, in words."""
        lines = []
        for p in self.ords:
            s, changes = self.summary(p), self.of(p)
            grew = f"{s.grew} of {len(changes)} layers grew, by {s.increase:.4g} in sum and {s.mean_increase:.4g} on average"
            shrank = f"{s.shrank} shrank, by {s.decrease:.4g} in sum and {s.mean_decrease:.4g} on average"
            lines.append(f"{display.label(p)}: {grew}; {shrank}; typical ratio ×{math.exp(s.log_ratio):.4g}")
            top = [c for c in self.largest(p, 3) if c.ratio != 1]
            if top:
                lines.append("  most: " + ", ".join(f"{c.layer or '(model)'} ×{c.ratio:.4g}" for c in top))
        return [*lines, *self.missing]


def compare(a: NormTable, b: NormTable) -> Comparison:
    """How the norms of every layer differ between two models of the same layers.

    Layers with parameters are matched by their names, and by which call of them it is. Those of one model only are named.

    Args:
        a: the first model's norms.
        b: the second model's.

    Raises:
        NormError: the tables have no norm of any layer in common.

    Source: Wen et al. 2020, appendix B.2 (sums and means of increases and decreases).

    Example:
        >>> import torch
        >>> from opnorm.norms import measure
        >>> layer = torch.nn.Linear(2, 2)
        >>> before = measure(layer, torch.zeros(1, 2), ords=(1,))
        >>> _ = layer.weight.data.mul_(2)
        >>> compare(before, measure(layer, torch.zeros(1, 2), ords=(1,))).changes[0].ratio_upper
        2.0
    """
    for table in (a, b):
        if not isinstance(table, NormTable):
            raise NormError(
                f"{named(table)} is no table of norms; expected what opnorm.measure(model, example) returns"
            )
    ords = tuple(p for p in a.ords if p in b.ords)
    left, right = _by_call(a.rows), _by_call(b.rows)
    changes, missing = [], []
    for call, row in left.items():
        other = right.get(call)
        if other is None or not (row.parameters or other.parameters):
            continue
        if row.kind != other.kind:
            missing.append(
                f"{row.layer or '(model)'} is {row.kind} in the first model, {other.kind} in the second"
            )
            continue
        for p in ords:
            if p in row.norms and p in other.norms:
                before, after = row.norms[p], other.norms[p]
                low = _divided(float(after.lower), float(before.upper))
                high = _divided(float(after.upper), float(before.lower))
                changes.append(Change(row.layer, row.kind, p, before, after, low, high))
        if row.in_shape != other.in_shape:
            shapes = f"{display.shape(row.in_shape)} and {display.shape(other.in_shape)}"
            missing.append(f"{row.layer or '(model)'} takes inputs of different shapes: {shapes}")
    for name, only, rest in (("first", left, right), ("second", right, left)):
        lost = [row.layer or "(model)" for call, row in only.items() if call not in rest and row.parameters]
        if lost:
            missing.append(f"only in the {name} model: {display.first_few(lost)}")
    if not changes:
        raise NormError("the two tables have no norm of any layer in common; are they of the same network?")
    return Comparison(tuple(changes), ords, tuple(missing))


def _by_call(rows: Sequence[LayerNorms]) -> dict[tuple[str, int], LayerNorms]:
    calls: Counter[str] = Counter()
    found = {}
    for row in rows:
        calls[row.layer] += 1
        found[row.layer, calls[row.layer]] = row
    return found


def _middle(norm: Norm) -> float:
    """Of an interval; its lower end where nothing is known from above."""
    low, high = float(norm.lower), float(norm.upper)
    return (low + high) / 2 if math.isfinite(high) else low


def _divided(a: float, b: float) -> float:
    """The ratio a / b, where 0 / 0 is no change."""
    if b == 0:
        return 1.0 if a == 0 else math.inf
    return 0.0 if math.isinf(b) else a / b


def _log(ratio: float) -> float:
    return math.log(ratio) if 0 < ratio < math.inf else math.copysign(math.inf, ratio - 1)
