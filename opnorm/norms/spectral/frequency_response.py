"""A convolution as a matrix-valued trigonometric polynomial.

Every convolution, whatever its stride, dilation and groups, is brought to stride 1 first (its polyphase form): a strided
one reads ∏ s interleaved phases of its input, which are stacked as channels, and a dilated one is a sum over fewer offsets.
The result is y(o) = Σ_τ A_τ x(o + τ), with its symbol  A(ω) = Σ_τ A_τ exp(i ω·τ)  and the Gram symbol

    G(ω) = A(ω)ᴴ A(ω)  or  A(ω) A(ω)ᴴ  =  Σ_δ H_δ exp(i ω·δ),     H_{-δ} = H_δᵀ,

on the side with fewer channels. Norms of the convolution are norms of these small matrices (see ``upper_bound.py``).
"""

import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnorm._core.convolution import ConvGeometry
from opnorm._core.frequencies import half_grid
from opnorm._core.layers import Shape
from opnorm._core.linear_map import LinearMap, convolution_map
from opnorm.norms.spectral.block_gram import BlockGram

__all__ = ["Gram", "Polyphase", "gram", "polyphase"]

FEWER = 6  # of real products, that take less time than one frequency of the grid
GATHERED = 5e4  # coefficients that are copied in the time in which one more group begins
CHUNK_BYTES = 4e6  # of the symbols from which the Gram symbol is made at once


@dataclass(frozen=True)
class Polyphase:
    """A zero-padded convolution of stride 1, for each of its groups.

    Attributes:
        offsets: (T, axes) whole numbers τ, relative to the output position, in lexicographic order.
        matrices: (groups, T, c_out, c_in) float64, A_τ for each offset.
        whole: number of input positions that every phase has, per axis; lower bounds use these.
        reach: number of input positions of the longest phase; upper bounds allow for these.
        out_size: output positions per axis.
        short: (c_in, axes), whether a column's phase has no last place on an axis, as some have not where a stride does not
            divide the input; None where all have.
    """

    offsets: np.ndarray
    matrices: Tensor
    whole: Shape
    reach: Shape
    out_size: Shape
    short: np.ndarray | None = None

    @property
    def degree(self) -> tuple[float, ...]:
        """Half the spread of the offsets per axis: the degree of the symbol once it is centered."""
        return tuple((self.offsets.max(0) - self.offsets.min(0)) / 2)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix of one group, all phases as long as the longest."""
        c_out, c_in = self.matrices.shape[-2:]
        return math.prod(self.out_size) * c_out, math.prod(self.reach) * c_in

    def period(self) -> Shape:
        """The smallest circulant that holds the convolution, per axis.

        On the circle, a tap that reads padding must not come round to a real input, so the circle needs room for the
        inputs and for the longer of the two overhangs; and as many places as there are outputs.
        """
        low, high = self.offsets.min(0), self.offsets.max(0)
        sizes = []
        for n, m, a, b in zip(self.reach, self.out_size, low, high, strict=True):
            before, after = max(0, -int(a)), max(0, m - 1 + int(b) - (n - 1))
            sizes.append(max(n + max(before, after), m))
        return tuple(sizes)

    def symbol(self, omega: np.ndarray) -> Tensor:
        """A(ω) at frequencies (F, axes): (groups, F, c_out, c_in) complex128."""
        phase = torch.from_numpy(np.exp(1j * (omega @ self.offsets.T))).to(self.matrices.device)
        flat = self.matrices.flatten(2).to(phase.dtype)
        return (phase @ flat).unflatten(2, self.matrices.shape[2:])

    def kernel(self, matrices: Tensor) -> tuple[Tensor, Shape]:
        """Matrices (groups, T, ...) at their offsets, (groups, ..., *kernel), and the distance of its entries per axis."""
        low, high = self.offsets.min(0), self.offsets.max(0)
        steps = [_step(self.offsets[:, axis]) for axis in range(len(low))]
        K = matrices.new_zeros(len(matrices), *matrices.shape[2:], *((high - low) // steps + 1))
        where: tuple[Any, ...] = (..., *(torch.from_numpy(p) for p in ((self.offsets - low) // steps).T))
        K[where] = matrices.movedim(1, -1)
        return K, tuple(steps)

    def block_gram(self) -> BlockGram:
        """The Gram matrix with the blocks that are the least work; short phases count as long ones."""
        (K, steps), reads = self.kernel(self.matrices), []
        each = zip(self.offsets.min(0), steps, K.shape[3:], self.reach, self.out_size, strict=True)
        for first, step, entries, n, m in each:
            at = first + step * np.arange(entries)[:, None] + np.arange(m)
            reads.append(np.where((at >= 0) & (at < n), at, -1))
        return BlockGram.cheapest(K, reads, self.reach)

    def as_map(self, group: int | None = None, dtype: torch.dtype = torch.float64) -> LinearMap:
        """X -> y(o) = Σ_τ A_τ x(o + τ) of one group or of all side by side, (B, c_in, *whole) -> (B, c_out, *out_size)."""
        low, high = self.offsets.min(0), self.offsets.max(0)
        A = self.matrices if group is None else self.matrices[group : group + 1]
        K, steps = self.kernel(A.to(dtype))
        K = K.flatten(0, 1)
        sizes = zip(self.whole, self.out_size, low.tolist(), high.tolist(), strict=True)
        # negative ones cut off inputs that no output depends on
        pads = tuple((-first, m - 1 + last - (n - 1)) for n, m, first, last in sizes)
        geometry = ConvGeometry(tuple(K.shape[2:]), (1,) * len(low), pads, steps, len(A))
        return convolution_map(K, geometry, self.whole)


def polyphase(K: Tensor, geometry: ConvGeometry, in_size: Shape, out_size: Shape | None = None) -> Polyphase:
    """The polyphase form of a convolution with kernel (c_out, c_in / groups, *kernel).

    Args:
        K: the kernel.
        geometry: everything else about the convolution.
        in_size: input size per axis.
        out_size: output size per axis; by default that of the convolution (the adjoint of a transposed convolution can
            have fewer).

    Raises:
        NormError: the output would be empty.
    """
    out_size = out_size or geometry.out_size(in_size)
    g, c_out, c_in = geometry.groups, K.shape[0] // geometry.groups, K.shape[1]
    stride = geometry.stride
    phases = math.prod(stride)
    placed: dict[tuple[int, ...], Tensor] = {}
    kernel = (
        K.detach().flatten(2).permute(2, 0, 1).contiguous().double()
    )  # entry by entry of the kernel's box
    kernel = kernel.view(*geometry.kernel, g, c_out, c_in)
    each = zip(geometry.kernel, geometry.dilation, geometry.padding, in_size, out_size, stride, strict=True)
    for reads in itertools.product(*(_reads(*axis) for axis in each)):
        entry, offset, places = zip(*reads, strict=True)
        phase = int(np.ravel_multi_index(places, stride))
        if phases == 1:
            placed[offset] = kernel[entry][:, :, None]
            continue
        if offset not in placed:
            placed[offset] = K.new_zeros(g, c_out, phases, c_in, dtype=torch.float64)
        placed[offset][:, :, phase] += kernel[entry]
    if not placed:
        placed[(0,) * len(stride)] = K.new_zeros(g, c_out, phases, c_in, dtype=torch.float64)
    offsets = np.array(sorted(placed), dtype=np.int64)
    matrices = torch.stack([placed[tuple(o)].flatten(2) for o in offsets.tolist()], 1)
    phase_of = np.array(list(itertools.product(*map(range, stride))))
    rest = np.array(in_size) % np.array(stride)
    short = ((rest > 0) & (phase_of >= rest)).repeat(c_in, axis=0)
    used = _used_columns(matrices)
    if not bool(used.all()) and bool(used.any()):
        matrices, short = matrices[..., used], short[used.cpu().numpy()]
    whole = tuple(n // s for n, s in zip(in_size, stride, strict=True))
    reach = tuple(-(-n // s) for n, s in zip(in_size, stride, strict=True))
    return Polyphase(offsets, matrices, whole, reach, out_size, short if short.any() else None)


def _reads(
    kernel: int, dilation: int, padding: tuple[int, int], n: int, m: int, s: int
) -> list[tuple[int, int, int]]:
    """On one axis, each kernel entry that reads more than padding: its index, its offset and the phase it reads."""
    found = []
    for entry in range(kernel):
        at = entry * dilation - padding[0]
        first = max(0, -(at // s))  # the first o with o s + at >= 0
        if first < m and first * s + at < n:
            found.append((entry, at // s, at % s))
    return found


def _used_columns(matrices: Tensor) -> Tensor:
    """Whether each column has an entry that is not zero; phases that the kernel skips (a large stride) have none."""
    used = (matrices[:, 0] != 0).any(1).any(0)
    return used if bool(used.all()) else (matrices != 0).any(2).any(1).any(0)


@dataclass(frozen=True)
class Gram:
    """The Gram symbol by its coefficients, G(ω) = Σ_δ even_δ cos(ω·δ) + i odd_δ sin(ω·δ), one δ of each pair ±δ.

    Attributes:
        offsets: (D, axes), δ, the first of them 0.
        even: (groups, D, n, n), symmetric: H_0, then H_δ + H_δᵀ.
        odd: (groups, D, n, n), antisymmetric: H_δ - H_δᵀ.
    """

    offsets: np.ndarray
    even: Tensor
    odd: Tensor

    @property
    def n(self) -> int:
        """Channels on the smaller side."""
        return self.even.shape[-1]

    def at(self, omega: np.ndarray, groups: np.ndarray | int = 0) -> Tensor:
        """G at frequencies (F, axes) of one group or of one each: (F, n, n), complex, of the coefficients' precision."""
        angles = torch.from_numpy(omega @ self.offsets.T).to(self.even.device)
        cos, sin = angles.cos().to(self.even.dtype), angles.sin().to(self.even.dtype)
        if isinstance(groups, int) or len(self.even) == 1:
            group = groups if isinstance(groups, int) else 0
            return torch.complex(
                torch.tensordot(cos, self.even[group], 1), torch.tensordot(sin, self.odd[group], 1)
            )
        order = np.argsort(groups, kind="stable")
        starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
        if len(starts) * GATHERED < len(groups) * self.even[0].numel():
            parts = [self.at(omega[some], int(groups[some[0]])) for some in np.split(order, starts[1:])]
            return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(self.even.device)]
        which = torch.from_numpy(groups).to(self.even.device)
        real, imag = (
            torch.bmm(waves[:, None], H[which].flatten(2)).view(-1, self.n, self.n)
            for waves, H in ((cos, self.even), (sin, self.odd))
        )
        return torch.complex(real, imag)

    def form(self, v: Tensor, group: int) -> tuple[np.ndarray, np.ndarray]:
        """P and q (D,) with vᴴ G(ω) v = Σ_δ p_δ cos(ω·δ) - q_δ sin(ω·δ), for one channel vector (n,)."""
        weights = (v.conj()[:, None] * v).to(torch.promote_types(self.even.dtype, torch.complex64))
        p = torch.tensordot(self.even[group], weights.real, 2)
        q = torch.tensordot(self.odd[group], weights.imag, 2)
        return p.cpu().numpy(), q.cpu().numpy()

    def single(self) -> "Gram":
        """The same with its coefficients rounded to float32."""
        return Gram(self.offsets, self.even.float(), self.odd.float())


def gram(t: Polyphase) -> Gram:
    """The Gram symbol on the side with fewer channels, in float64.

    The products Σ A_τᵀ A_{τ+δ} are summed pair by pair where there are few. For more of them, which are T² / 2, through the
    symbol's values on a grid of 2 k - 1 frequencies an axis, which determine G and cost less.
    """
    steps = np.array([_step(offsets) for offsets in t.offsets.T])
    sizes = 2 * (np.ptp(t.offsets, 0) // steps) + 1
    grid, counts = half_grid(sizes.tolist())
    deltas = np.array(list(itertools.product(*(range(-(s // 2), s // 2 + 1) for s in sizes))))
    deltas = deltas[len(deltas) // 2 :]  # 0, and one of each pair
    angles = torch.from_numpy(deltas @ grid.T).to(t.matrices.device)
    weights = torch.from_numpy(2 * counts / math.prod(sizes)).to(angles)
    # the transposes give the conjugate of A(ω) A(ω)ᴴ, of the same norm
    A = t.matrices if t.matrices.shape[-1] <= t.matrices.shape[-2] else t.matrices.mT
    if len(grid) == 1:  # real, as for Linear layers: a quarter of the work
        even = A.mT @ A
        return Gram(deltas, even, torch.zeros_like(even))
    even = A.new_zeros(len(A), len(deltas), A.shape[-1], A.shape[-1])
    if len(t.offsets) * (len(t.offsets) + 1) <= FEWER * len(grid):
        return _by_pairs(t.offsets, A, deltas * steps, even)
    at_once = max(1, int(CHUNK_BYTES / (16 * len(grid) * A[0, 0].numel())))
    if len(A) > at_once:
        parts = [gram(replace(t, matrices=some)) for some in t.matrices.split(at_once)]
        return Gram(deltas * steps, torch.cat([p.even for p in parts]), torch.cat([p.odd for p in parts]))
    odd = torch.zeros_like(even)
    step = max(1, int(CHUNK_BYTES / (16 * A[:, 0].numel())))
    for i in range(0, len(grid), step):
        some = slice(i, i + step)
        values = replace(t, matrices=A).symbol(grid[some] / steps)
        G = values.mH @ values
        even += torch.einsum("df,gfab->gdab", weights[some] * angles[:, some].cos(), G.real)
        odd += torch.einsum("df,gfab->gdab", weights[some] * angles[:, some].sin(), G.imag)
    even[:, 0] /= 2
    return Gram(deltas * steps, even, odd)


def _by_pairs(offsets: np.ndarray, A: Tensor, deltas: np.ndarray, H: Tensor) -> Gram:
    """The coefficients from the products of all pairs of matrices; H are zeros, in which they are summed."""
    place = {tuple(delta): i for i, delta in enumerate(deltas.tolist())}
    for (i, tau), (j, sigma) in itertools.combinations_with_replacement(enumerate(offsets), 2):
        H[:, place[tuple((sigma - tau).tolist())]] += A[:, i].mT @ A[:, j]
    even, odd = H + H.mT, H - H.mT
    even[:, 0] /= 2
    return Gram(deltas, even, odd)


def _step(offsets: np.ndarray) -> int:
    """The spacing of the offsets on one axis, which is the dilation or a part of it."""
    return max(1, int(np.gcd.reduce(offsets - offsets.min())))
