"""Grids of frequencies on a circle, a torus, ..."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["between", "half_grid"]


def half_grid(sizes: Sequence[int], phase: Sequence[float] | float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies ω = 2π (j + phase) / size, one of each pair ±ω, (F, axes); and how often each counts, 1 or 2, (F,).

    A real kernel has A(-ω) = conj A(ω), so norms and singular values are the same at both.

    Args:
        sizes: points per axis.
        phase: 0 or ½, per axis or for all.
    """
    shift, size = np.broadcast_to(phase, len(sizes)), np.array(sizes)
    places = np.indices(sizes).reshape(len(sizes), -1).T
    mirrored = (-places - np.round(2 * shift).astype(int)) % size
    rank, of_mirror = (np.ravel_multi_index(tuple(p.T), tuple(sizes)) for p in (places, mirrored))
    first = rank <= of_mirror
    omega = (places[first] + shift) * 2 * math.pi / size
    return omega, np.where(rank < of_mirror, 2, 1)[first]


def between(degree: Sequence[float], size: Sequence[int]) -> float:
    """The symbol's norm between the points of a grid over that on it, at most: 1 / ∏ cos(π degree / size).

    Infinite where the grid is too coarse.

    Source: M. Riesz's inequality for trigonometric polynomials, applied to uᴴ A(ω) v.
    """
    rises = [math.cos(math.pi * d / n) if 2 * d < n else 0.0 for d, n in zip(degree, size, strict=True)]
    return 1 / product if (product := math.prod(rises)) else math.inf
