r"""Which taps of a kernel act together: everything that an exact ℓ1 or ℓ∞ norm needs to know of sizes and borders.

On one axis with stride s, dilation d and p pixels of padding before the input, tap κ of output o reads

    src(o, κ) = π(o s + κ d - p),

where π takes padded positions back to input positions: zeros are no position at all, and the other padding modes can
bring several taps of one output onto the same input. Then an entry of the layer's matrix is a signed sum of taps, and

    ‖conv‖_∞ = max_i max_o Σ_j Σ_h |Σ_{κ: src(o,κ) = h} K[i, j, κ]|        (a row of the matrix)
    ‖conv‖_1 = max_j max_h Σ_i Σ_o |Σ_{κ: src(o,κ) = h} K[i, j, κ]|        (a column of the matrix)

A *pattern* belongs to one o (or one h): a collection of tap groups, with how often each occurs. Only the patterns that
no other one dominates need a look, few in number whatever the image size: with zero padding the groups are single
taps and the patterns the inclusion-maximal tap sets, about s of them. Several axes combine as products.
"""

import functools
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from opnorm._core.convolution import check_padding, pad_index
from opnorm.errors import NormError

__all__ = ["Patterns", "tap_patterns"]

Pattern = Counter[int]  # tap groups as bit masks, with how often each occurs


class Patterns(NamedTuple):
    """The dominant patterns of one axis.

    Attributes:
        groups: the distinct groups of taps that are added before the absolute value is taken.
        counts: for every pattern, how often each group occurs in it.
    """

    groups: tuple[tuple[int, ...], ...]
    counts: tuple[tuple[int, ...], ...]

    @property
    def single(self) -> bool:
        """Whether every tap is a group of its own, so that the absolute value can be taken first."""
        return all(g == (i,) for i, g in enumerate(self.groups))


@functools.cache
def tap_patterns(
    kernel: int,
    size: int,
    stride: int = 1,
    before: int = 0,
    after: int = 0,
    dilation: int = 1,
    mode: str = "zeros",
    outputs: int | None = None,
) -> tuple[Patterns, Patterns]:
    """The dominant patterns of the columns (for ℓ1) and of the rows (for ℓ∞) on one axis, in O(kernel (kernel + pad)).

    Without ``outputs``, there are as many as fit.

    Raises:
        NormError: the output would be empty, or the padding is more than the mode allows.
    """
    reach = dilation * (kernel - 1) + 1
    fit = (size + before + after - reach) // stride + 1
    m = fit if outputs is None else outputs
    if size < 1 or m < 1 or m > fit:
        raise NormError(
            f"input of size {size} is smaller than the kernel {kernel} (dilation {dilation}, padding "
            f"{(before, after)}): the output would be empty"
        )
    check_padding(size, before, after, mode)
    # Far from both borders the patterns repeat with period s: a long axis has those of a shorter one.
    enough = 2 * (reach + max(before, after) + stride)
    spare = max(0, min((size - enough) // stride, m - 1 - enough // stride))
    size, m = size - spare * stride, m - spare
    if mode == "zeros":
        return _zero_patterns(kernel, size, stride, before, dilation, m)
    index = pad_index(size, before, after, mode)
    rows: set[frozenset[tuple[int, int]]] = set()
    columns: list[Pattern] = [Counter() for _ in range(size)]
    for o in range(m):
        groups: dict[int, int] = {}  # input position -> mask of the taps that read it
        for tap in range(kernel):
            h = index[o * stride + tap * dilation]
            if h >= 0:
                groups[h] = groups.get(h, 0) | 1 << tap
        rows.add(frozenset(Counter(groups.values()).items()))
        for h, mask in groups.items():
            columns[h][mask] += 1
    seen = {frozenset(c.items()) for c in columns}
    return _patterns(kernel, seen), _patterns(kernel, rows)


def _zero_patterns(
    kernel: int, size: int, stride: int, before: int, dilation: int, m: int
) -> tuple[Patterns, Patterns]:
    """With zero padding no two taps meet: a pattern is a set of taps, an interval of those of one residue."""

    def between(low: int, high: int) -> int:
        """The taps κ with low <= κ d <= high."""
        first, last = max(0, -(-low // dilation)), min(kernel - 1, high // dilation)
        return (1 << last + 1) - (1 << first) if first <= last else 0

    residue = [0] * stride
    for tap in range(kernel):
        residue[tap * dilation % stride] |= 1 << tap
    columns = {
        residue[(h + before) % stride] & between(h + before - (m - 1) * stride, h + before)
        for h in range(size)
    }
    rows = {between(before - o * stride, before - o * stride + size - 1) for o in range(m)}
    return _sets(kernel, columns), _sets(kernel, rows)


def _sets(kernel: int, seen: set[int]) -> Patterns:
    """The sets of taps that no other set covers."""
    kept: list[int] = []
    for taps in sorted(seen, key=lambda taps: (taps.bit_count(), taps), reverse=True):
        if all(taps & ~other for other in kept):
            kept.append(taps)
    singles = tuple((tap,) for tap in range(kernel))
    return Patterns(singles, tuple(tuple(taps >> tap & 1 for tap in range(kernel)) for taps in kept))


def _patterns(kernel: int, seen: Iterable[frozenset[tuple[int, int]]]) -> Patterns:
    kept: list[Pattern] = []
    # a pattern that covers another one has more taps, or as many in more groups
    for pattern in sorted((Counter(dict(p)) for p in seen), key=_weight, reverse=True):
        if not any(_covers(other, pattern) for other in kept):
            kept.append(pattern)
    masks = {mask for pattern in kept for mask in pattern}
    if all(mask.bit_count() == 1 for mask in masks):
        masks = {1 << tap for tap in range(kernel)}
    ordered = sorted(masks, key=lambda mask: (mask.bit_count() > 1, mask))
    groups = tuple(tuple(tap for tap in range(kernel) if mask >> tap & 1) for mask in ordered)
    return Patterns(groups, tuple(tuple(pattern[mask] for mask in ordered) for pattern in kept))


def _weight(pattern: Pattern) -> tuple[int, int, list[tuple[int, int]]]:
    return sum(n * mask.bit_count() for mask, n in pattern.items()), pattern.total(), sorted(pattern.items())


def _covers(big: Pattern, small: Pattern) -> bool:
    """Whether the sum of ``small`` never exceeds that of ``big``: what is left of it is made of single taps of ``big``.

    |Σ_{κ∈G} x_κ| <= Σ_{κ∈G} |x_κ|, so a group may be replaced by its taps, and more groups only add.
    """
    left: Counter[int] = Counter()
    for mask, n in small.items():
        n -= big[mask]
        if n > 0:
            while mask:
                left[mask & -mask] += n
                mask &= mask - 1
    return all(max(0, big[tap] - small[tap]) >= n for tap, n in left.items())
