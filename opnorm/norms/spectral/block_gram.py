"""The Gram matrix of a convolution as a block tridiagonal matrix, of which one factorization proves an upper bound.

The Gram matrix couples only positions nearby, so that it is block tridiagonal along one axis, and whether θ² I - G is
positive definite is known from one block factorization: O(n b²) for n rows and blocks of b. It is a sum of Kronecker
products,

    G = Σ_{κ, κ'} N_{κ κ'} ⊗ K_κᵀ K_κ',    N_{κ κ'} = ⊗_axes N_{κ κ'}(axis),

with N_{κ κ'}(p, q) of an axis the number of output positions at which κ reads p and κ' reads q; or, for M Mᵀ, whether κ at
output p reads what κ' reads at output q.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from opnorm._core.layers import Shape
from opnorm._core.rounding import unit_roundoff

__all__ = ["BlockGram"]

UNIT = unit_roundoff(torch.float64)
ENTRIES = 1e8  # of the sums over the other axes and of a block, at most
BLOCK = 256  # rows of a block, at least, where the axis is that long


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
        most = max(self.taps.shape[3] ** 2, 4 * self.reach**2)
        return (4 * self.work) ** (1 / 3) if len(self.taps) * most * self.rows**2 <= ENTRIES else math.inf

    def first_upper_bound(self, candidates: list[float]) -> float:
        """The first of some numbers θ, in rising order, with ‖M‖_2 ≤ θ by a factorization; infinite if there is none."""
        scale = math.ldexp(1.0, math.frexp(float(self.taps.abs().max()))[1])
        scaled = replace(self, taps=self.taps / scale)
        sums, bands, error = scaled._sums(), scaled._bands(), scaled._error()
        width = 2 * self._step * self.rows
        for theta in candidates:
            square = (theta / scale) ** 2
            # |L| |L|ᵀ has a norm of at most width times the largest diagonal entry (Higham 2002, Thm 10.3)
            if scaled._definite(square - error - 4 * (width + 2) ** 2 * UNIT * square, sums, bands):
                return theta
        return math.inf

    @property
    def _step(self) -> int:
        """Positions of a block, as many as are coupled or more."""
        return max(self.reach, BLOCK // self.rows)

    def _error(self) -> float:
        """Of the entries: as many units as products are summed, times at least ‖|M|‖_2² ≤ ‖|M|‖_1 ‖|M|‖_∞."""
        absolute = self.taps.abs().flatten(3).sum(3)
        square = float(absolute.sum(1).max() * absolute.sum(2).max()) * self.copies
        places = math.prod(self.taps.shape[3:])
        return 4 * UNIT * (self.taps.shape[1] + 2 * places**2 + 8) * square

    def _sums(self) -> Tensor:
        """Σ over the kernel on the other axes of N ⊗ K_κᵀ K_κ': (kernel, kernel, groups, rows, rows)."""
        flat = self.taps.flatten(4) if self.across else self.taps[..., None]
        groups, _, c, k, entries = flat.shape
        rest = math.prod(self.sizes[1:])
        sums = flat.new_zeros(k, k, groups, rest, c, rest, c)
        by_places = sums.permute(3, 5, 0, 1, 2, 4, 6)
        for i, j in itertools.product(range(entries), repeat=2):
            p, q, values = np.zeros(1, int), np.zeros(1, int), np.ones(1)
            taps = np.unravel_index([i, j], self.taps.shape[4:]) if self.across else ()
            for N, n, (a, b) in zip(self.across, self.sizes[1:], taps, strict=True):
                row, column, value = N[int(a), int(b)]
                p, q = ((each[:, None] * n + more).ravel() for each, more in ((p, row), (q, column)))
                values = (values[:, None] * value).ravel()
            at = torch.from_numpy(p).to(sums.device), torch.from_numpy(q).to(sums.device)
            products = torch.einsum("goau,gobv->uvgab", flat[..., i], flat[..., j])
            weights = torch.from_numpy(values).to(sums)[:, None, None, None, None, None]
            by_places[at] += weights * products
        return sums.view(k, k, groups, rest * c, rest * c)

    def _bands(self) -> Tensor:
        """N along this axis: (kernel, kernel, positions, 2 reach + 1)."""
        k = self.taps.shape[3]
        bands = self.taps.new_zeros(k, k, self.sizes[0], 2 * self.reach + 1)
        for taps, (p, q, values) in self.along.items():
            bands[taps][p, q - p + self.reach] = torch.from_numpy(values).to(bands)
        return bands

    def _block(self, sums: Tensor, bands: Tensor, rows: range, columns: range) -> Tensor:
        """G between the positions of two ranges, (groups, ., .)."""
        p, q = torch.arange(rows.start, rows.stop), torch.arange(columns.start, columns.stop)
        distance = (q - p[:, None] + self.reach).to(bands.device)
        near = (distance >= 0) & (distance <= 2 * self.reach)
        weights = bands[:, :, p[:, None], distance.clamp(0, 2 * self.reach)] * near
        block = torch.einsum("uvpq,uvgab->gpaqb", weights, sums)
        return block.reshape(len(block), len(p) * self.rows, len(q) * self.rows)

    def _definite(self, square: float, sums: Tensor, bands: Tensor) -> bool:
        """Whether a factorization shows θ² I - G to be positive definite: block by block, of a band of blocks."""
        n, step = self.sizes[0], max(1, BLOCK // self.rows)
        spans = [range(start, min(start + step, n)) for start in range(0, n, step)]
        across = -(-self.reach // step)  # blocks that a block is coupled with
        rest: dict[tuple[int, int], Tensor] = {}  # of θ² I - G, less what is eliminated

        def block(i: int, j: int) -> Tensor:
            if (i, j) not in rest:
                rest[i, j] = self._block(sums, bands, spans[i], spans[j]).neg_()
                if i == j:
                    rest[i, j].diagonal(dim1=1, dim2=2).add_(square)
            return rest[i, j]

        for k in range(len(spans)):
            factor, info = torch.linalg.cholesky_ex(block(k, k))
            if bool(info.any()):
                return False
            below = range(k + 1, min(k + across + 1, len(spans)))
            W = {
                i: torch.linalg.solve_triangular(factor.mT, block(i, k), upper=True, left=False)
                for i in below
            }
            for i in below:
                for j in range(k + 1, i + 1):
                    block(i, j).baddbmm_(W[i], W[j].mT, alpha=-1)
            for i in (k, *below):
                del rest[i, k]
        return True


def _pairs(reads: np.ndarray, n: int, of_inputs: bool) -> Pairs:
    """N of one axis from what each kernel entry reads at each output, (kernel, out); -1 for a zero."""
    from scipy.sparse import csr_array

    each = []
    for row in reads:
        there = np.flatnonzero(row >= 0)
        S = csr_array((np.ones(len(there)), (there, row[there])), (len(row), n))
        each.append(S.T.tocsr() if of_inputs else S)
    found = {}
    for u, v in itertools.product(range(len(each)), repeat=2):
        N = (each[u] @ each[v].T).tocoo()
        found[u, v] = N.row, N.col, N.data
    return found


def _places(n: int) -> list[np.ndarray]:
    """Orders of an axis: from end to end; and for circles from one place on in both directions, turn by turn."""
    line = np.arange(n)
    return [line, np.where(line < (n + 1) // 2, 2 * line, 2 * (n - line) - 1)]
