"""Sentences about means over seeds, for the findings of studies."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from statistics import correlation

from opnorm.report import Cell, Stat

__all__ = ["mean", "percent", "rank_correlation"]


def mean(cell: Cell) -> float:
    """The mean of a cell; NaN where it is not known."""
    return cell.mean if isinstance(cell, Stat) else math.nan


def percent(cell: Cell) -> str:
    """A fraction as a percentage with its standard deviation."""
    if not isinstance(cell, Stat):
        return "not known"
    return f"{cell.mean:.1%}" + (f" ± {100 * cell.std:.1f}" if cell.n > 1 else "")


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation over the pairs that are known; None for fewer than 3, and where one side is constant.

    Example:
        >>> rank_correlation([1, 2, 3], [10, 30, 20])
        0.5
        >>> rank_correlation([1, 1, 1], [1, 2, 3]) is None
        True
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    if len(pairs) < 3 or any(len(set(side)) == 1 for side in zip(*pairs, strict=True)):
        return None
    return correlation(*(_ranks(side) for side in zip(*pairs, strict=True)))


def _ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in their order, from 1; equal values have the mean of their places."""
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + 1 + bisect_right(ordered, value)) / 2 for value in values]
