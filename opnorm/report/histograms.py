"""Histograms of many methods in the same bins, as points of curves."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from opnorm.report.curves import Point

__all__ = ["Sample", "histogram_points"]


class Sample(NamedTuple):
    """The values of one method and seed, such as one per image.

    Attributes:
        method: the method's label.
        panel: the key of the panel.
        values: those that are not known count to no bin.
        note: a text for the tooltip.
    """

    method: str
    panel: str
    values: Sequence[float]
    note: str = ""


def histogram_points(
    samples: Sequence[Sample],
    *,
    ends: tuple[float, float] | None = None,
    log: bool = False,
    edge: float | None = None,
) -> list[Point]:
    """The share of each sample's values in every bin, at the bin's middle. All samples have the same bins.

    The number of bins follows Rice's rule, 2 n^(1/3) for the largest sample, between 8 and 60. They lie between the ends or,
    where none are given, between the 0.5 % and 99.5 % quantiles; values beyond count to the first and the last bin.

    Args:
        samples: of one panel or several.
        ends: of the bins.
        log: bins of equal width in log10; a value of 0 counts as the smallest positive one.
        edge: shift the bins so that this value is an edge between two of them.
    """
    arrays = [np.asarray(sample.values, float) for sample in samples]
    pooled = np.concatenate([a[np.isfinite(a)] for a in arrays]) if arrays else np.empty(0)
    if not pooled.size:
        return []
    least = pooled[pooled > 0].min(initial=np.inf)
    least = least if np.isfinite(least) else 1.0

    def scaled(values: np.ndarray) -> np.ndarray:
        return np.log10(np.maximum(values, least)) if log else values

    low, high = ends or np.quantile(scaled(pooled), (0.005, 0.995))
    bins = int(np.clip(round(2 * max(map(len, arrays)) ** (1 / 3)), 8, 60))
    origin = low if edge is None else edge
    low, high = min(low, origin), max(high, origin)
    width = (high - low) / bins or 1.0
    first = int(np.floor((low - origin) / width))  # bins are counted from the origin, where one begins
    bins = max(int(np.ceil((high - origin) / width)) - first, 1)
    middles = origin + (first + np.arange(bins) + 0.5) * width
    places = (10**middles if log else middles).tolist()
    points = []
    for sample, values in zip(samples, arrays, strict=True):
        own = np.floor((scaled(values[np.isfinite(values)]) - origin) / width).astype(int) - first
        shares = np.bincount(np.clip(own, 0, bins - 1), minlength=bins) / max(len(values), 1)
        for x, share in zip(places, shares.tolist(), strict=True):
            points.append(Point(sample.method, sample.panel, x, share, note=sample.note))
    return points
