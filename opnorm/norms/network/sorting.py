"""Values side by side that are entries of other values, sorted or not: MaxMin, GroupSort by max and min, CReLU, a split.

Sorting the entries of a group is no steeper than 1 in any ℓp: Σ |x_(i) - y_(i)|^p <= Σ |x_i - y_i|^p, where x_(i) is the
i-th largest entry. So max(G) and min(G) = -max(-G) side by side change by no more than the entries of G. Entries of one
value side by side, each at most c times, have c^(1/p) times its bound.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx

from opnorm._core.layers import Shape
from opnorm.norms.network.pointwise import SAME
from opnorm.norms.network.rules import p_norm
from opnorm.norms.network.trace import map_tensors

__all__ = ["JOINED", "READ", "Made", "side_by_side"]

JOINED = frozenset(("cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack"))
MOVES = frozenset((
    "getitem", "index_select", "view", "reshape", "flatten", "unflatten", "ravel", "transpose", "permute", "t", "swapaxes",
    "swapdims", "movedim", "moveaxis", "squeeze", "unsqueeze", "narrow", "select", "chunk", "split", "tensor_split",
    "unbind", "hsplit", "vsplit", "flip", "fliplr", "flipud", "roll", "rot90", "pixel_shuffle", "pixel_unshuffle",
    "diagonal", "getattr",
))  # fmt: skip
"""Functions and methods that move entries of their first argument, by the others."""
NEGATIVE = frozenset(("neg", "negative"))
SIGNS = dict.fromkeys(("max", "maximum", "amax"), 1) | dict.fromkeys(("min", "minimum", "amin"), -1)

READ = MOVES | SAME | NEGATIVE | frozenset(SIGNS)
"""Operations whose settings count."""


class Made(NamedTuple):
    """How a node was made.

    Attributes:
        operation: the name of the function or method, "relu" for the layer, "" for what is none of these.
        settings: the values of its arguments after the first one.
        named: those of the named ones.
        shape: of the result, or of the first one of several.
        several: whether the result is a tuple.
        fixed: whether nothing but the first argument depends on the input.
    """

    operation: str
    settings: tuple[Any, ...]
    named: dict[str, Any]
    shape: Shape
    several: bool
    fixed: bool


def side_by_side(
    parts: Sequence[fx.Node],
    made: dict[fx.Node, Made],
    written: Collection[fx.Node],
    bound: Callable[[fx.Node], float],
    ord: float,
) -> float:
    """A bound of values side by side from those of the values that their entries are from.

    Args:
        parts: what is concatenated.
        made: how each node was made.
        written: nodes whose values were written to after they were made; they count as they are, not as what they were.
        bound: of a node; infinite where it is not known.
        ord: p.
    """
    entries = _Entries(made, written)
    numbers = torch.cat([entries.of(n).flatten() for n in parts]).abs()
    while (expanded := entries.without_pairs(numbers)) is not None:
        numbers = expanded
    counts = numbers.long().bincount(minlength=entries.size + 1)
    bounds = []
    for root, (first, groups) in entries.roots.items():
        times = max(counts[first : first + len(groups)].tolist(), default=0)
        if times:
            bounds.append(bound(root) * times ** (1 / ord))
    return p_norm(bounds, ord)


class _Entries:
    """Numbers for the entries of values: from 1 on, the negative ones for their negatives, 0 for the constant 0.

    Attributes:
        roots: values that are no entries of other ones: the number of the first entry, and for each the numbers of those
            that it is the largest of, up to its sign; a row without any where it is no maximum.
        size: how many entries the roots have.
    """

    def __init__(self, made: dict[fx.Node, Made], written: Collection[fx.Node]) -> None:
        self.made, self.written = made, written
        self.roots: dict[fx.Node, tuple[int, Tensor]] = {}
        self.size = 0
        self.found: dict[fx.Node, Any] = {}

    def of(self, n: fx.Node) -> Any:
        """The numbers of a value's entries, in its shape; of several values a tuple, None where there is none."""
        if n not in self.found:
            moved = self._moved(n)
            self.found[n] = self._root(n) if moved is None else moved
        return self.found[n]

    def without_pairs(self, numbers: Tensor) -> Tensor | None:
        """The numbers with max(G) and min(G) = -max(-G) replaced by those of G; None where there are none."""
        for width in {groups.shape[1] for _, groups in self.roots.values()} - {0, 1}:
            rows, at = [], []
            for first, groups in self.roots.values():
                if groups.shape[1] == width:
                    at.append(((first <= numbers) & (numbers < first + len(groups))).nonzero().flatten())
                    rows.append(groups[numbers[at[-1]].long() - first].sort(1).values)
            places, G = torch.cat(at), torch.cat(rows)
            key = _keys(torch.cat([G, G.neg().sort(1).values]))
            own, negative = key.view(2, -1)
            kind = torch.minimum(own, negative)
            larger, smaller = (
                (kind[mask].bincount(minlength=len(key))) for mask in (own <= negative, own > negative)
            )
            paired = (larger == smaller)[kind]
            if paired.any():
                left = torch.ones(len(numbers), dtype=torch.bool)
                left[places[paired]] = False
                return torch.cat([numbers[left], G[paired & (own <= negative)].flatten().abs()])
        return None

    def _source(self, n: fx.Node) -> Any:
        """The numbers of the first argument, if neither it nor the value was written to since."""
        source = n.args[0] if n.args else None
        if not isinstance(source, fx.Node) or n in self.written or source in self.written:
            return None
        return self.of(source)

    def _moved(self, n: fx.Node) -> Any:
        """The numbers of the entries of the first argument, where an operation only moves them."""
        operation, settings, named, shape, _, fixed = self.made[n]
        if operation not in MOVES | SAME | NEGATIVE or not fixed or (inner := self._source(n)) is None:
            return None
        settings, named = map_tensors((settings, named), Tensor.cpu)
        if operation in SAME:
            return inner
        if operation in NEGATIVE:
            return -inner
        if operation == "getattr" and settings[0] == "values" and isinstance(inner, tuple):
            return inner[0]
        if operation == "getattr" and settings[0] not in ("T", "mT"):
            return None
        if isinstance(n.target, str):
            moved = getattr(inner, n.target)(*settings, **named)
        else:
            moved = n.target(inner, *settings, **named)
        if isinstance(moved, Tensor) and (moved.shape != shape or moved.dtype != torch.float64):
            return None  # read as another type
        return moved

    def _root(self, n: fx.Node) -> Any:
        shape, several = self.made[n].shape, self.made[n].several
        groups = self._groups(n)
        if groups is None and several:
            return None
        count = torch.Size(shape).numel()
        numbers = torch.arange(self.size + 1, self.size + count + 1, dtype=torch.float64).view(shape)
        self.roots[n] = (self.size + 1, torch.zeros(count, 0) if groups is None else groups)
        self.size += count
        return (numbers, None) if several else numbers

    def _groups(self, n: fx.Node) -> Tensor | None:
        """The numbers (entries, g) of those that each entry of a maximum is of; negative ones for a minimum."""
        operation, settings, named, *_ = self.made[n]
        if operation not in SIGNS and operation != "relu":
            return None
        x = self._source(n)
        others = n.args[1:] or tuple(n.kwargs[k] for k in ("other",) if k in n.kwargs)
        if not isinstance(x, Tensor) or named.keys() - {"dim", "keepdim", "inplace", "other"}:
            return None
        if operation == "relu":
            return torch.stack([x.flatten(), torch.zeros(x.numel(), dtype=x.dtype)], 1)
        if others and isinstance(others[0], fx.Node):
            y = None if others[0] in self.written else self.of(others[0])
            if len(others) > 1 or not isinstance(y, Tensor):
                return None
            groups = torch.stack(torch.broadcast_tensors(x, y), -1).flatten(0, -2)
        else:
            axes = settings[0] if settings else named.get("dim", ())
            axes = {
                a % max(1, x.ndim) for a in (axes if isinstance(axes, tuple | list) else (axes,))
            } or range(x.ndim)
            kept = [a for a in range(x.ndim) if a not in axes]
            groups = x.permute(*kept, *axes).flatten(len(kept)).flatten(0, -2) if x.ndim else x.view(1, 1)
        return SIGNS[operation] * groups


def _keys(rows: Tensor) -> Tensor:
    """Whole numbers, the same for the same rows."""
    keys = torch.zeros(len(rows), dtype=torch.long)
    for column in rows.T:
        _, places = column.unique(return_inverse=True)
        _, keys = (keys * len(rows) + places).unique(return_inverse=True)
    return keys
