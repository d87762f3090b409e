"""An upper bound of the ℓ2 norm of a convolution whose padding copies the input, from its parts at the borders and inside.

For any angles α_i of the inputs and β_o of the outputs with |α_i - β_o| ≤ η wherever output o reads input i,

    ‖A‖ cos η ≤ max(‖A on the inputs with cos α ≠ 0‖, ‖A on the inputs with sin α ≠ 0‖).

Proof: let x and u be unit vectors with <u, A x> = ‖A‖. s -> Re Σ u_o A_oi x_i exp(i s (α_i - β_o)) is a sum of waves with
frequencies up to η; it is at most ‖A‖ everywhere, as the factors are unitary, and ‖A‖ at s = 0; so at least ‖A‖ cos η at
s = 1 (M. Riesz; Duffin and Schaeffer). There it is at most ‖A e^(iα) x‖, whose square is ‖A cos(α) x‖² + ‖A sin(α) x‖²,
and the squares of cos(α) x and sin(α) x sum to 1.

Along each axis, α is 0 at the places that padding copies, and then rises to π/2 in some steps. So A is cut into corners,
which are small; edges, which are convolutions along the other axes with all places of the edge as channels; and the
inside, which is a convolution with zero padding. The wider the borders, the smaller η.
"""

import itertools
import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm._core.convolution import ConvGeometry, pad_index
from opnorm._core.frequencies import between, half_grid
from opnorm._core.rounding import PRODUCT
from opnorm.norms.spectral.block_gram import BlockGram
from opnorm.norms.spectral.convolution_matrix import ConvolutionMatrix
from opnorm.norms.spectral.frequency_response import Polyphase, gram, polyphase
from opnorm.norms.spectral.group_selection import exceeding as exceeding_on_points
from opnorm.norms.spectral.symbol_search import SymbolSearch
from opnorm.norms.spectral.upper_bound import bound_above

__all__ = ["Region", "exceeding", "region_bound", "regions"]

STEPS = (48, 32, 24, 20, 16, 14, 12, 10, 8, 6, 5, 4, 3, 2)  # of the angle, from 0 to π/2
FREQUENCIES = 20  # of an edge, about, at which complex matrices are factorized
CLOSE = 0.965  # product of cosines with which the cheapest cuts are taken, not the finest
LEAST_WIDTH = 0.05  # of a grid's cells, in units of the symbol's change
MARGINS = (0, 0.2, 1, 4, 16, 64, 256)  # of relative widths above the lower end, at which corners are tried


class Part(NamedTuple):
    """The places of an axis in a region: what each kernel entry reads there, (kernel, out), -1 for nothing; None inside."""

    reads: np.ndarray | None
    size: int


class Split(NamedTuple):
    """An axis cut into parts.

    Attributes:
        parts: at the borders; one for the inside, where there is one.
        eta: the largest difference of the angles of an output and an input that it reads.
    """

    parts: list[Part]
    eta: float


class Region(NamedTuple):
    """A part of each axis, and the product of cos η of the cuts that made it."""

    parts: tuple[Part, ...]
    factor: float

    @property
    def is_corner(self) -> bool:
        """Whether it is at the border of every axis."""
        return all(part.reads is not None for part in self.parts)


def region_bound(
    convolution: ConvolutionMatrix, lower: float, relative_width: float, effort: int
) -> tuple[float, str]:
    """The bound, and its name; infinite where no cut is cheap enough.

    Args:
        convolution: with padding that copies.
        lower: a lower bound of the norm.
        relative_width: of the interval to aim at.
        effort: the side of a matrix whose factorization takes as long as may be.
    """
    cut = regions(convolution, effort**3)
    if not cut:
        return math.inf, ""
    bound = lower * (1 + relative_width / 10) / min(r.factor for r in cut)
    for region in cut:
        least = bound * region.factor
        if region.is_corner:
            candidates = [least * (1 + relative_width * margin) for margin in MARGINS]
            found = _corner(convolution, region.parts).first_upper_bound(candidates)
        else:
            found = bound_above(_edge(convolution, region.parts), least, relative_width)
        bound = max(bound, found / region.factor)
    return bound * (1 + PRODUCT), "norms of corners, edges and inside"


def exceeding(convolution: ConvolutionMatrix, cut: list[Region], theta: float) -> np.ndarray:
    """Whether the norms of its regions do not show that the norm is at most θ, for each group."""
    K = convolution.K.unflatten(0, (convolution.geometry.groups, -1))
    left, found = np.arange(len(K)), np.ones(len(K), dtype=bool)
    for region in cut:
        if not len(left):
            break
        some, least = convolution.of_groups(K[left]), theta * region.factor * (1 - PRODUCT)
        if region.is_corner:
            bad = _corner(some, region.parts).exceeding(least)
        else:
            bad = _exceeding_on_grid(_edge(some, region.parts), least, region.factor)
        left = left[~bad]
    found[left] = False
    return found


def _exceeding_on_grid(t: Polyphase, theta: float, factor: float) -> np.ndarray:
    """Whether ‖A(ω)‖ ≤ θ is not proved, for each group: on a grid that costs less of θ than a cut with this factor."""
    largest = float(t.matrices.abs().max())
    if largest == 0:
        return np.zeros(len(t.matrices), dtype=bool)
    unit, half_width = math.ldexp(1.0, math.frexp(largest)[1]), max(math.acos(factor) / 2, LEAST_WIDTH)
    size = tuple(max(1, math.ceil(math.pi * d / half_width)) for d in t.degree)
    period = tuple(N if d else 1 for N, d in zip(t.period(), t.degree, strict=True))
    exact = math.prod(period) <= math.prod(size)
    points, rises = half_grid(period if exact else size)[0], 1.0 if exact else between(t.degree, size)
    scaled = replace(t, matrices=t.matrices / unit)
    s = SymbolSearch(scaled, gram(scaled), 0.0)
    return np.asarray(exceeding_on_points(s, np.arange(len(t.matrices)), points, theta / unit / rises).any(1))


def regions(convolution: ConvolutionMatrix, most: float) -> list[Region]:
    """The cheapest regions with small angles, or those with the smallest ones that take so many multiplications at most."""
    axes = range(len(convolution.in_size))
    splits = {(axis, n): _split(convolution, axis, n) for axis in axes for n in STEPS}
    whole = {axis: Split([Part(convolution.reads(axis, convolution.geometry.mode), n)], 0.0)
             for axis, n in zip(axes, convolution.in_size, strict=True)}  # fmt: skip
    best, score = [], (0.0, -math.inf)
    for first in axes:
        rest = [axis for axis in axes if axis != first]
        # the other axes are cut in one way inside of the first one, and in another way at its border
        others = [[whole[axis] for axis in rest], *([splits[axis, n] for axis in rest] for n in STEPS)]
        for n, inside, border in itertools.product(STEPS, others[1:], others if rest else others[:1]):
            cut = splits[first, n]
            factor = math.cos(cut.eta) * min(_factor(inside), _factor(border))
            if min(factor, CLOSE) < score[0] or all(part.reads is not None for part in cut.parts):
                continue
            found = []
            for part in cut.parts:
                chosen = inside if part.reads is None else border
                for parts in itertools.product(*(split.parts for split in chosen)):
                    parts = (*parts[:first], part, *parts[first:])
                    found.append(Region(parts, math.cos(cut.eta) * _factor(chosen)))
            work = sum(_work(convolution, r.parts) for r in found)
            if work <= most and (min(factor, CLOSE), -work) > score:
                best, score = found, (min(factor, CLOSE), -work)
    return sorted(best, key=lambda r: sum(part.reads is not None for part in r.parts))


def _factor(splits: list[Split]) -> float:
    return math.prod(math.cos(split.eta) for split in splits)


def _split(convolution: ConvolutionMatrix, axis: int, steps: int) -> Split:
    n, mode = convolution.in_size[axis], convolution.geometry.mode
    before, after = convolution.geometry.padding[axis]
    reads = convolution.reads(axis, mode)
    whole = Split([Part(reads, n)], 0.0)
    copied = np.array(pad_index(n, before, after, mode))
    copied = np.concatenate([copied[:before], copied[before + n :]])
    if not len(copied):
        return Split([Part(None, n)], 0.0)
    low = copied[copied < n / 2].max(initial=-1) + 1
    high = n - copied[copied >= n / 2].min(initial=n)
    place = np.arange(n)
    from_low, from_high = place - low + 1, n - high - place
    far = n + steps  # from an end without copies
    around = mode == "circular"
    distance = np.minimum(from_low if low or around else far, from_high if high or around else far)
    angle = distance.clip(0, steps) * (math.pi / 2 / steps)
    border = angle < math.pi / 2 * (1 - 1e-9)
    if border.all() or border.sum() > 0.8 * n:
        return whole
    first = int(np.flatnonzero(~border)[0])
    sides = [place[:first], place[n - int(border[first:].sum()) :]]
    if mode == "circular":
        sides = [np.concatenate(sides[::-1])]
    seen = [np.isin(reads, side).any(0) for side in sides]
    if len(seen) == 2 and (seen[0] & seen[1]).any():
        return whole
    at = np.where(reads >= 0, angle[reads], np.nan)
    used = (reads >= 0).any(0)
    eta = float((np.nanmax(at[:, used], 0) - np.nanmin(at[:, used], 0)).max()) / 2
    parts = [_part(reads, side, n) for side in sides if len(side)]
    return Split([*parts, Part(None, n)], eta) if math.cos(eta) > 0.5 else whole


def _part(reads: np.ndarray, side: np.ndarray, n: int) -> Part:
    """What is read of some places of n, which are numbered in their order."""
    number = np.full(n + 1, -1)  # the last one for what is read nowhere
    number[side] = np.arange(len(side))
    inside = number[reads]
    return Part(inside[:, (inside >= 0).any(0)], len(side))


def _work(convolution: ConvolutionMatrix, parts: tuple[Part, ...]) -> float:
    """About how many multiplications the factorizations of a region take."""
    geometry = convolution.geometry
    channels = min(convolution.K.shape[1], len(convolution.K) // geometry.groups)
    border = [part for part in parts if part.reads is not None]
    rows = channels * math.prod(part.size for part in border)
    if len(border) < len(parts):
        return geometry.groups * (FREQUENCIES * 2 * rows**3 if border else 0.0)
    axes = zip(parts, geometry.kernel, geometry.dilation, strict=True)
    blocks = (p.size * (rows / p.size) ** 3 * min(p.size, d * (k - 1) or 1) ** 2 for p, k, d in axes)
    return geometry.groups * 1.5 * min(blocks)


def _edge(convolution: ConvolutionMatrix, region: tuple[Part, ...]) -> Polyphase:
    """A convolution along the axes inside, with the places of the other axes as channels."""
    geometry = convolution.geometry
    inside = [axis for axis, part in enumerate(region) if part.reads is None]
    K = convolution.K.unflatten(0, (geometry.groups, -1))
    for axis in reversed(range(len(region))):
        if (reads := region[axis].reads) is not None:
            K = _placed(K, axis, reads, region[axis].size)
    K = K.flatten(0, 1)
    kernel, stride, dilation = (
        tuple(values[a] for a in inside) for values in (geometry.kernel, geometry.stride, geometry.dilation)
    )
    bare = ConvGeometry(kernel, stride, ((0, 0),) * len(inside), dilation, geometry.groups)
    size = tuple(convolution.in_size[a] + sum(geometry.padding[a]) for a in inside)
    return polyphase(K, bare, size)


def _placed(K: Tensor, axis: int, reads: np.ndarray, size: int) -> Tensor:
    """The kernel (groups, c_out, c_in, *kernel) with an axis turned into channels, outputs and inputs."""
    entries, outputs = (reads >= 0).nonzero()
    which = K.new_zeros(len(reads), reads.shape[1], size)
    which[torch.from_numpy(entries), torch.from_numpy(outputs), torch.from_numpy(reads[entries, outputs])] = 1
    moved = torch.tensordot(K.movedim(3 + axis, -1), which, 1)  # (groups, c_out, c_in, *rest, out, in)
    return moved.movedim(-2, 2).flatten(1, 2).movedim(-1, 3).flatten(2, 3)


def _corner(convolution: ConvolutionMatrix, region: tuple[Part, ...]) -> BlockGram:
    reads = [part.reads for part in region if part.reads is not None]
    K = convolution.K.unflatten(0, (convolution.geometry.groups, -1))
    return BlockGram.cheapest(K, reads, tuple(part.size for part in region))
