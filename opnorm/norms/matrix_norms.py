"""All norms of one matrix of weights that is read in panels, as files of weights have them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from opnorm._core.lp import lp_norm
from opnorm.norms import display
from opnorm.norms._operator_norm import Order
from opnorm.norms.norm import Norm, rms_norm
from opnorm.norms.spectral.large_matrix import PanelMatrix, extreme_singular_values, largest_singular_value

__all__ = ["WeightNorms", "diagonal_norms", "ends", "matrix_norms", "relative"]


@dataclass(frozen=True)
class WeightNorms:
    """The norms of one weight of a file.

    Attributes:
        name: in the file.
        kind: "matrix", "kernel" (as a matrix of one row for each output channel), "embedding" or "diagonal".
        shape: in the file.
        dtype: in the file, such as "bfloat16".
        norms: by order: 1, 2, ``math.inf``, "rms"; empty where none is known.
        frobenius: sqrt(Σ W_ij²); None where not known.
        stable_rank: ‖W‖_F² / ‖W‖_2² as an interval.
        condition: the largest over the smallest singular value as an interval; infinite above where rounding hides the
            smallest. None where it was not asked for.
        note: why something is missing, or what else there is to know.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    norms: dict[Order, Norm] = field(default_factory=dict)
    frobenius: float | None = None
    stable_rank: tuple[float, float] | None = None
    condition: tuple[float, float] | None = None
    note: str = ""

    @property
    def layer(self) -> str:
        """The name, as rows of a :class:`NormTable` have it."""
        return self.name

    @property
    def lipschitz(self) -> dict[Order, float]:
        """Empty, as a weight is linear."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is not known or not finite is null."""
        norms = {
            display.key(p): {**ends(n.lower, n.upper), "exact": n.exact, "method": n.method}
            for p, n in self.norms.items()
        }
        pairs = {
            name: None if pair is None else ends(*pair)
            for name, pair in (("stable_rank", self.stable_rank), ("condition", self.condition))
        }
        return {**vars(self), "shape": list(self.shape), "norms": norms, **pairs}


def ends(lower: float | Tensor, upper: float | Tensor) -> dict[str, float | None]:
    """An interval for JSON."""
    values = {"lower": float(lower), "upper": float(upper)}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def relative(a: Norm, b: Norm) -> tuple[float, float]:
    """The interval of a / b; 0 where a is 0."""
    low = float(a.lower / b.upper) if b.upper > 0 else 0.0 if a.upper == 0 else math.inf
    high = 0.0 if a.upper == 0 else float(a.upper / b.lower) if b.lower > 0 else math.inf
    return low, high


@torch.no_grad()
def matrix_norms(
    row: WeightNorms,
    W: PanelMatrix,
    ords: Sequence[Order],
    relative_width: float = 5e-3,
    failure_probability: float = 1e-9,
    condition: bool = False,
) -> WeightNorms:
    """The row of a weight with the norms of its matrix W (n_out, n_in); ℓ1 and ℓ∞ up to the rounding of sums in float64.

    Args:
        row: what is known of it.
        W: its matrix; of an embedding the transposed one is meant.
        ords: some of 1, 2, ``math.inf`` and "rms".
        relative_width: of the ℓ2 interval.
        failure_probability: with which its upper end may be wrong.
        condition: also find the condition, by all singular values.
    """
    outputs, inputs = W.shape
    columns, sums = torch.zeros(inputs, dtype=torch.float64), [torch.zeros(1, dtype=torch.float64)]
    largest, length, bad = 0.0, 0.0, 0
    for P in W.panels():
        A = P.abs()
        if not math.isfinite(top := float(A.amax())):
            bad += int((~A.isfinite()).sum())
        columns += A.sum(0)
        sums.append(A.sum(1))
        largest, length = max(largest, top), math.hypot(length, float(lp_norm(A.reshape(1, -1), 2)))
    if bad:
        return replace(
            row, note=f"{bad} of {outputs * inputs} entries are NaN or infinite; diverged training?"
        )
    one, infinity = (float(s.max()) if s.numel() else 0.0 for s in (columns, torch.cat(sums)))
    if row.kind == "embedding":
        one, infinity, inputs, outputs = infinity, one, outputs, inputs
    exact: dict[Order, float] = {1: one, math.inf: infinity}
    norms = {p: Norm.of(exact[p], exact[p], "exact") for p in ords if p in exact}
    found: dict[str, Any] = {"frobenius": length}
    values: tuple[Norm, Norm] | None = None
    if condition and W.core is None:
        values = extreme_singular_values(W, largest)
        found["condition"] = relative(*values) if values[0].upper > 0 else None
    if {2, "rms"} & set(ords):
        l2 = values[0] if values else largest_singular_value(W, largest, relative_width, failure_probability)
        norms |= {p: l2 if p == 2 else rms_norm(l2, inputs, outputs) for p in ords if p in (2, "rms")}
        found["stable_rank"] = _stable_rank(length, l2)
    return replace(row, norms={p: norms[p] for p in ords if p in norms}, **found)


def _stable_rank(frobenius: float, l2: Norm) -> tuple[float, float] | None:
    if not l2.lower > 0:
        return None
    rounding = 1e-12
    low, high = (frobenius / float(end) for end in (l2.upper, l2.lower))
    return low**2 * (1 - rounding), high**2 * (1 + rounding)


def diagonal_norms(row: WeightNorms, w: Tensor, ords: Sequence[Order]) -> WeightNorms:
    """The row of a gain w (n), as LayerNorm and RMSNorm have it: all operator norms of diag(w) are max |w|."""
    size = w.to(torch.float64).abs()
    if bad := int((~size.isfinite()).sum()):
        return replace(row, note=f"{bad} of {w.numel()} entries are NaN or infinite; diverged training?")
    top = size.max() if w.numel() else torch.tensor(0.0)
    norm = Norm.of(top, top, "exact: a diagonal map")
    length = float(lp_norm(size[None], 2)) if w.numel() else 0.0
    rank = _stable_rank(length, norm) if {2, "rms"} & set(ords) else None
    return replace(row, norms=dict.fromkeys(ords, norm), frobenius=length, stable_rank=rank)
