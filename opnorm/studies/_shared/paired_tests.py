"""Two trainings compared on the same seeds and the same points, by tests that decide with few seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from opnorm.errors import RunError

__all__ = ["Comparison", "holm"]

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
        resolution: where the difference is one of counts, such as of layers: the smallest step of their share. The spread
            over seeds is taken to be no smaller. Without it, equal differences in all seeds decide nothing.
    """

    name: str
    by_seed: tuple[float, ...]
    by_point: tuple[NDArray[np.int8], ...] = ()
    resolution: float = 0.0

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
        return cls(name, tuple(float(d.mean()) for d in by_point), by_point, 1 / len(by_point[0]))

    @classmethod
    def of_values(cls, name: str, first: Sequence[float], second: Sequence[float]) -> "Comparison":
        """Of one number a seed, such as the norm of a layer."""
        return cls(name, tuple(a - b for a, b in zip(first, second, strict=True)))

    @classmethod
    def of_counts(cls, name: str, counted: Sequence[Sequence[bool]], share: float) -> "Comparison":
        """The share of the layers (or ranks) of each seed that count, less a share, such as one half for "most layers"."""
        if not all(len(seed) for seed in counted):
            raise RunError(f"{name}: there is nothing to count")
        by_seed = tuple(sum(seed) / len(seed) - share for seed in counted)
        return cls(name, by_seed, (), 1 / min(len(seed) for seed in counted))

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
        from scipy.special import stdtrit

        half = float(stdtrit(len(self.by_seed) - 1, 0.975)) * self._standard_error
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

    @cached_property
    def _spread(self) -> float:
        """The standard deviation over the seeds, at least one step of a count; 0 where they are equal to rounding."""
        equal = np.ptp(self.by_seed) <= 1e-9 * max(map(abs, self.by_seed))
        return self.resolution if equal else max(float(np.std(self.by_seed, ddof=1)), self.resolution)

    @property
    def _standard_error(self) -> float:
        return self._spread / math.sqrt(len(self.by_seed))

    def p_above(self, bound: float, seeds: int | None = None) -> float:
        """The p-value of "the effect is at most ``bound``", of other seeds and other points.

        That of Student's test over the seeds. Of shares it is the larger of two: the points are drawn by chance, too, so the
        second adds the variance of the mean over the points to that over the seeds, with the degrees of freedom of Welch. 1
        with one seed: nothing is known of the spread over seeds then.

        Args:
            bound: of the effect.
            seeds: what it would be with another number of seeds, of the same mean and spread.
        """
        return self._p(bound, 1, seeds)

    def p_below(self, bound: float, seeds: int | None = None) -> float:
        """The p-value of "the effect is at least ``bound``"; see :meth:`p_above`."""
        return self._p(bound, -1, seeds)

    def _p(self, bound: float, sign: int, seeds: int | None) -> float:
        n = len(self.by_seed) if seeds is None else seeds
        if len(self.by_seed) < 2 or self._spread == 0:
            return 1.0
        above, over_seeds = sign * (self.effect - bound), (self._spread**2 / n, n - 1)
        if not self.by_point:
            return _student(above, over_seeds)
        return max(_student(above, over_seeds), _student(above, over_seeds, self._variance_over_points))

    @cached_property
    def _variance_over_points(self) -> tuple[float, int]:
        """The variance of the mean over the points, each a mean over the seeds, and its degrees of freedom.

        With one point more in each direction than there is, so that no spread is not taken for certainty.
        """
        values = np.append(np.mean(self.by_point, axis=0), [1.0, -1.0])
        return float(values.var(ddof=1)) / len(values), len(values) - 1

    @cached_property
    def mcnemar(self) -> float | None:
        """The two-sided p-value of the exact test of McNemar, the largest of all seeds; None without points.

        It is about these trained networks only: of the points at which they differ, each wins at as many.
        """
        from scipy.special import bdtr  # the test of scipy.stats takes a second to load

        if not self.by_point:
            return None
        counts = [(int((d > 0).sum()), int((d < 0).sum())) for d in self.by_point]
        return max(min(1.0, 2 * float(bdtr(min(pair), sum(pair), 0.5))) for pair in counts)


def _student(mean: float, *parts: tuple[float, int]) -> float:
    """The one-sided p-value of "the mean is at most 0".

    Args:
        mean: that was found.
        parts: of its variance, which are independent, each with its degrees of freedom.

    Source: Student 1908; of several parts, Welch 1947.
    """
    from scipy.special import stdtr

    variance = math.fsum(part for part, _ in parts)
    freedom = variance**2 / math.fsum(part**2 / df for part, df in parts)
    return float(stdtr(freedom, -mean / math.sqrt(variance)))


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
