"""The Gram matrix of a convolution as a block tridiagonal matrix, of which one factorization proves an upper bound.

The Gram matrix couples only positions nearby, so that it is block tridiagonal along one axis, and whether θ² I - G is
positive definite is known from one factorization of a band matrix: O(n b²) for n rows and a width of b. It is a sum of
Kronecker products,

    G = Σ_{κ, κ'} N_{κ κ'} ⊗ K_κᵀ K_κ',    N_{κ κ'} = ⊗_axes N_{κ κ'}(axis),

with N_{κ κ'}(p, q) of an axis the number of output positions at which κ reads p and κ' reads q; or, for M Mᵀ, whether κ at
output p reads what κ' reads at output q.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opnorm._core.layers import Shape
from opnorm._core.rounding import unit_roundoff

__all__ = ["BlockGram"]

UNIT = unit_roundoff(torch.float64)
ENTRIES = 1e8  # of the sums over the other axes and of a band, at most
HELD = 2e6  # entries of the bands that are made at once, if a group has no more


Pairs = dict[tuple[int, int], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""N of one axis: for (κ, κ'), the positions p and q of its entries and their values."""


@dataclass(frozen=True)
class BlockGram:
    """MᵀM or M Mᵀ of a convolution as a block tridiagonal matrix along one axis, for each of its groups.

    Attributes:
        taps: the kernel, (groups, channels summed over, channels, *kernel), this axis first.
        along: N of this axis, its positions in an order that keeps neighbors together.
        across: N of each other axis.
        sizes: positions of this axis and of the others.
        reach: the largest distance of positions that are coupled; at least 1.
        copies: at how many outputs an entry of the kernel reads the same input, at most.
    """

    taps: Tensor
    along: Pairs
    across: tuple[Pairs, ...]
    sizes: Shape
    reach: int
    copies: int

    @classmethod
    def cheapest(cls, K: Tensor, reads: Sequence[np.ndarray], in_size: Shape) -> "BlockGram":
        """The axis and the side with the least work.

        Args:
            K: the kernel, (groups, c_out, c_in, *kernel), of each group.
            reads: of each axis, the position that each kernel entry reads for each output, (kernel, out); -1 for none.
            in_size: positions of each axis.
        """
        axes, out_size = range(len(in_size)), tuple(r.shape[1] for r in reads)
        copies = math.prod(max(np.bincount(row[row >= 0]).max(initial=0) for row in r) for r in reads)
        found = []
        for of_inputs in (True, False):
            taps, size = (K, in_size) if of_inputs else (K.transpose(1, 2), out_size)
            each = [_pairs(r, n, of_inputs) for r, n in zip(reads, in_size, strict=True)]
            for first in axes:
                others = tuple(each[axis] for axis in axes if axis != first)
                sizes = (size[first], *(size[axis] for axis in axes if axis != first))
                for place in _places(size[first]):
                    along = {taps: (place[p], place[q], v) for taps, (p, q, v) in each[first].items()}
                    reach = max(int(np.abs(p - q).max(initial=1)) for p, q, _ in along.values())
                    found.append(cls(taps.movedim(3 + first, 3), along, others, sizes, reach, copies))
        return min(found, key=lambda gram: gram.work)

    @property
    def rows(self) -> int:
        """Of one position, in one group."""
        return self.taps.shape[2] * math.prod(self.sizes[1:])

    @property
    def work(self) -> float:
        """Rows times rows of a block squared, over the groups."""
        return (
            len(self.taps)
            * self.sizes[0]
            * self.rows
            * float(min(self.reach, self.sizes[0]) * self.rows) ** 2
        )

    @property
    def side(self) -> float:
        """The side of a full matrix whose factorization takes about as long; infinite where there is no room."""
        most = max(self.taps.shape[3] ** 2 * self.rows, self._width * self.sizes[0]) * self.rows
        return (4 * self.work) ** (1 / 3) if most <= ENTRIES else math.inf

    def first_upper_bound(self, candidates: list[float]) -> float:
        """The first of some numbers θ, in rising order, with ‖M‖_2 ≤ θ by a factorization; infinite if there is none."""
        left = list(candidates)
        for some in self._parts():
            while left and some.exceeding(left[0]).any():
                left.pop(0)
        return left[0] if left else math.inf

    def exceeding(self, theta: float) -> np.ndarray:
        """Whether a factorization does not show that the norm is at most θ, for each group."""
        return np.concatenate([part._exceeding(theta) for part in self._parts()])

    def _parts(self) -> Iterator["BlockGram"]:
        """Some groups at a time."""
        step = max(1, int(HELD / (self._width * self.rows * self.sizes[0])))
        for taps in self.taps.split(step):
            yield replace(self, taps=taps)

    def _exceeding(self, theta: float) -> np.ndarray:
        from scipy.linalg.lapack import dpbtrf

        largest = float(self.taps.abs().max())
        if largest == 0:
            return np.zeros(len(self.taps), dtype=bool)
        scale = math.ldexp(1.0, math.frexp(largest)[1])
        scaled = replace(self, taps=self.taps / scale)
        square = (theta / scale) ** 2
        # |L| |L|ᵀ has a norm of at most twice the width times the largest diagonal entry (Higham 2002, Thm 10.3)
        error = scaled._error() + 8 * (self._width + 2) ** 2 * UNIT * square
        if not 0 < error < square < math.inf:
            return np.full(len(self.taps), not error < square)
        bands, bad = scaled._negative_bands(), []
        bands[..., 0] += square - error
        width = min(self._width, self.reach * self.rows + self._reach_across)
        for band in bands[..., : width + 1].cpu().numpy():
            factor, info = dpbtrf(band.T, lower=1, overwrite_ab=1)
            bad.append(info != 0 or not (factor[0] > 0).all())
        return np.array(bad)

    @property
    def _width(self) -> int:
        """Entries of a column from the diagonal down to the last one that is not zero, or more."""
        return (min(self.reach, self.sizes[0]) + 1) * self.rows

    @property
    def _reach_across(self) -> int:
        """The largest distance of two coupled rows of one position."""
        places = 0
        for N, n in zip(self.across, self.sizes[1:], strict=True):
            places = places * n + max(int(np.abs(p - q).max(initial=0)) for p, q, _ in N.values())
        return (places + 1) * self.taps.shape[2] - 1

    def _error(self) -> float:
        """Of the entries: as many units as products are summed, times at least ‖|M|‖_2² ≤ ‖|M|‖_1 ‖|M|‖_∞."""
        absolute = self.taps.abs().flatten(3).sum(3)
        square = float(absolute.sum(1).max() * absolute.sum(2).max()) * self.copies
        places = math.prod(self.taps.shape[3:])
        return 4 * UNIT * (self.taps.shape[1] + 2 * places**2 + 8) * square

    def _sums(self) -> Tensor:
        """Σ over the kernel on the other axes of N ⊗ K_κᵀ K_κ': (kernel, kernel, groups, rows, rows)."""
        from scipy.sparse import csr_array

        flat = self.taps.flatten(4) if self.across else self.taps[..., None]
        groups, _, c, k, entries = flat.shape
        rest, columns, rows, values = math.prod(self.sizes[1:]), [], [], []
        for i, j in itertools.product(range(entries), repeat=2):
            p, q, value = np.zeros(1, int), np.zeros(1, int), np.ones(1)
            taps = np.unravel_index([i, j], self.taps.shape[4:]) if self.across else ()
            for N, n, (a, b) in zip(self.across, self.sizes[1:], taps, strict=True):
                row, column, more = N[int(a), int(b)]
                p, q = ((each[:, None] * n + new).ravel() for each, new in ((p, row), (q, column)))
                value = (value[:, None] * more).ravel()
            rows.append(p * rest + q)
            columns.append(np.full(len(p), i * entries + j))
            values.append(value)
        places = np.concatenate(rows), np.concatenate(columns)
        weights = csr_array((np.concatenate(values), places), (rest**2, entries**2))
        products = torch.einsum("goaui,gobvj->ijuvgab", flat, flat).reshape(entries**2, -1)
        sums = torch.from_numpy(weights @ products.cpu().numpy()).to(flat.device)
        sums = sums.view(rest, rest, k, k, groups, c, c).permute(2, 3, 4, 0, 5, 1, 6)
        return sums.reshape(k, k, groups, rest * c, rest * c)

    def _bands(self) -> Tensor:
        """N along this axis: (kernel, kernel, positions, 2 reach + 1)."""
        k = self.taps.shape[3]
        bands = self.taps.new_zeros(k, k, self.sizes[0], 2 * self.reach + 1)
        for taps, (p, q, values) in self.along.items():
            bands[taps][p, q - p + self.reach] = torch.from_numpy(values).to(bands)
        return bands

    def _negative_bands(self) -> Tensor:
        """-G's columns from the diagonal down, (groups, columns, width + 1), as LAPACK keeps symmetric band matrices."""
        groups, n, rows, width = len(self.taps), self.sizes[0], self.rows, self._width
        weights = self._bands()[..., self.reach :][..., : width // rows]
        found = self.taps.new_zeros(groups, n * rows, width + 1)
        # column j and row i lie at j (width + 1) + i - j
        strides = n * rows * (width + 1), rows * (width + 1), width, rows, 1
        entries = found.as_strided((groups, n, rows, width // rows, rows), strides)
        sums, step = self._sums().neg_().flatten(0, 1).flatten(1), max(1, int(HELD / (groups * rows * width)))
        for start in range(0, n, step):
            some = weights[:, :, start : start + step].flatten(0, 1).movedim(0, 2)
            distinct, which = some.unique(dim=0, return_inverse=True)
            blocks = (distinct @ sums).view(*distinct.shape[:2], groups, rows, rows)
            blocks[:, 0].triu_()  # above the diagonal begins the column before
            entries[:, start : start + step] = blocks.permute(2, 0, 3, 1, 4)[:, which]
        return found


def _pairs(reads: np.ndarray, n: int, of_inputs: bool) -> Pairs:
    """N of one axis from what each kernel entry reads at each output, (kernel, out); -1 for a zero."""
    from scipy.sparse import csr_array

    entry, out = np.nonzero(reads >= 0)
    at = reads[entry, out]
    m = reads.shape[1]
    size, row, column, columns = (n, at, out, m) if of_inputs else (m, out, at, n)
    S = csr_array((np.ones(len(at)), (entry * size + row, column)), (len(reads) * size, columns))
    N = (S @ S.T).tocoo()
    (u, p), (v, q) = np.divmod(N.row, size), np.divmod(N.col, size)
    pair = u.astype(np.int64) * len(reads) + v
    order = np.argsort(pair, kind="stable")
    ends = np.searchsorted(pair[order], np.arange(len(reads) ** 2 + 1))
    found = {}
    for i in range(len(reads) ** 2):
        some = order[ends[i] : ends[i + 1]]
        found[divmod(i, len(reads))] = p[some], q[some], N.data[some]
    return found


def _places(n: int) -> list[np.ndarray]:
    """Orders of an axis: from end to end; and for circles from one place on in both directions, turn by turn."""
    line = np.arange(n)
    return [line, np.where(line < (n + 1) // 2, 2 * line, 2 * (n - line) - 1)]
