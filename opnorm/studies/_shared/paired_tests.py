"""Two trainings compared on the same seeds and the same points, by tests that decide with few seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opnorm.errors import RunError

__all__ = ["ALL_SEEDS", "Comparison", "holm"]

ALL_SEEDS = 30
"""The largest number of seeds that is proposed to decide a comparison."""

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Comparison:
    """The difference of two trainings: the first minus the second, of the same seed at the same points.

    Two kinds of chance are told apart. Over points: which test points were drawn, for these trained networks. Over seeds:
    which networks a training gives.

    Attributes:
        name: of the two, as text: "norm decay against plain, vgg11()".
        by_seed: the difference in each seed.
        by_point: where the difference is one of shares: of each seed, the difference at each point, -1, 0 or 1.
    """

    name: str
    by_seed: tuple[float, ...]
    by_point: tuple[NDArray[np.int8], ...] = ()

    def __post_init__(self) -> None:
        if not self.by_seed or not all(math.isfinite(effect) for effect in self.by_seed):
            raise RunError(f"{self.name}: differences {self.by_seed}; expected a finite number for each seed")

    @classmethod
    def of_shares(
        cls, name: str, first: Sequence[NDArray[np.bool_]], second: Sequence[NDArray[np.bool_]]
    ) -> "Comparison":
        """Of two shares, from each seed's points: whether each counts, in the same order in both."""
        pairs = list(zip(first, second, strict=True))
        if any(a.shape != b.shape for a, b in pairs):
            raise RunError(f"{name}: expected the same points in both")
        by_point = tuple(a.astype(np.int8) - b.astype(np.int8) for a, b in pairs)
        return cls(name, tuple(float(d.mean()) for d in by_point), by_point)

    @classmethod
    def of_values(cls, name: str, first: Sequence[float], second: Sequence[float]) -> "Comparison":
        """Of one number a seed, such as the norm of a layer."""
        return cls(name, tuple(a - b for a, b in zip(first, second, strict=True)))

    @property
    def effect(self) -> float:
        """The mean over the seeds."""
        return math.fsum(self.by_seed) / len(self.by_seed)

    @property
    def points(self) -> int | None:
        """How many points each seed has; None where the difference is not one of shares."""
        return len(self.by_point[0]) if self.by_point else None

    @cached_property
    def over_seeds(self) -> Interval | None:
        """Student's 95 % interval of the effect over other seeds; None with one seed."""
        if len(self.by_seed) < 2:
            return None
        from scipy.stats import t

        half = float(t.ppf(0.975, len(self.by_seed) - 1)) * self._standard_error
        return self.effect - half, self.effect + half

    @cached_property
    def over_points(self) -> Interval | None:
        """The paired bootstrap's 95 % interval of the effect over other points, for these networks; None without points."""
        if not self.by_point:
            return None
        from scipy.stats import bootstrap

        at_points = np.mean(self.by_point, axis=0)  # all seeds have the same points
        if np.ptp(at_points) == 0:
            return float(at_points[0]), float(at_points[0])
        found = bootstrap(
            (at_points,), np.mean, method="percentile", n_resamples=2000, batch=100, random_state=np.random.default_rng(0)
        )  # fmt: skip
        return float(found.confidence_interval.low), float(found.confidence_interval.high)

    @property
    def _standard_error(self) -> float:
        return float(np.std(self.by_seed, ddof=1)) / math.sqrt(len(self.by_seed))

    def p_above(self, bound: float) -> float:
        """The p-value of "the effect is at most ``bound``".

        The smaller of two tests', doubled (Bonferroni): Student's over the seeds, and one over the points that must reject
        in every seed. With one seed, the one over points alone, so that it holds for these two networks only.
        """
        return self._p(bound, 1)

    def p_below(self, bound: float) -> float:
        """The p-value of "the effect is at least ``bound``"; see :meth:`p_above`."""
        return self._p(bound, -1)

    def _p(self, bound: float, sign: int) -> float:
        found = []
        if len(self.by_seed) > 1:
            found.append(_student([sign * (effect - bound) for effect in self.by_seed]))
        if self.by_point:
            found.append(max(_paired(sign * d, sign * bound) for d in self.by_point))
        return min(1.0, len(found) * min(found)) if found else 1.0

    def seeds_needed(self, bound: float) -> int | None:
        """With how many seeds Student's interval would leave ``bound`` out, at this effect and spread; None above 30."""
        from scipy.stats import t

        if len(self.by_seed) < 2 or self.effect == bound:
            return None
        spread, distance = float(np.std(self.by_seed, ddof=1)), abs(self.effect - bound)
        counts = range(len(self.by_seed) + 1, ALL_SEEDS + 1)
        return next((n for n in counts if t.ppf(0.975, n - 1) * spread / math.sqrt(n) < distance), None)


def _student(values: Sequence[float]) -> float:
    """The one-sided p-value of "the mean is at most 0"; equal values decide by their sign."""
    from scipy.stats import ttest_1samp

    if np.ptp(values) == 0:
        return 0.0 if values[0] > 0 else 1.0
    return float(ttest_1samp(values, 0.0, alternative="greater").pvalue)


def _paired(at_points: NDArray[np.int8], bound: float) -> float:
    """The one-sided p-value of "the mean is at most ``bound``", of differences -1, 0 and 1 at points.

    For 0, exact McNemar: of the points that differ, as many are above as below. For another bound the normal approximation,
    with one point more in each direction than there is, so that no spread is taken for none.
    """
    from scipy.stats import binomtest, norm

    above, below, n = int((at_points > 0).sum()), int((at_points < 0).sum()), len(at_points)
    if bound == 0:
        return float(binomtest(above, above + below, 0.5, "greater").pvalue) if above + below else 1.0
    mean = (above - below) / n
    deviation = math.sqrt(max((above + below + 2) / n - mean**2, 0.0) / n)
    return float(norm.sf((mean - bound) / deviation))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in their order.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
