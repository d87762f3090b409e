"""Roth's protocol of a fair comparison: strengths of equal clean accuracy.

The radius of adversarial training in that protocol is the analysis ``attack_radius`` of a network trained without attacks.

Source: Roth et al. 2020, section 5.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opnorm._core.settings import check_count, check_number
from opnorm.errors import RunError, TrainError
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training

__all__ = ["Match", "Trial", "match_accuracy", "next_strength"]


def next_strength(
    trials: Sequence[tuple[float, float]],
    target: float,
    *,
    low: float,
    high: float,
    tolerance: float = 0.005,
    most: int = 8,
) -> float | None:
    """The strength that a search tries next: the ends first, then bisection on a logarithmic scale.

    Accuracy is taken to fall as the strength grows.

    Args:
        trials: the strengths that were tried, each with its accuracy, in any order.
        target: the accuracy to reach.
        low: a strength, more than 0, at which the accuracy is above the target.
        high: a strength at which it is below.
        tolerance: the search ends when an accuracy is this close.
        most: the most trials after the two at the ends.

    Returns:
        A strength; None where the search has ended, because the target is reached, or not between the ends' accuracies, or
        after ``most`` trials.

    Raises:
        RunError: a setting makes no sense.

    Example:
        >>> next_strength([(0.01, 0.98), (1.0, 0.6)], 0.9, low=0.01, high=1.0)
        0.1
    """
    check_number("target", target, "an accuracy between 0 and 1", least=0, most=1, error=RunError)
    check_count("trials", most, 0, error=RunError)
    if not 0 < low < high:
        raise RunError(f"low={low!r}, high={high!r}: expected 0 < low < high")
    known = dict(trials)
    for end in (low, high):
        if end not in known:
            return end
    if not known[low] > target > known[high]:
        return None
    for _ in range(most):
        if min(abs(accuracy - target) for accuracy in known.values()) <= tolerance:
            return None
        middle = math.sqrt(low * high)
        if middle not in known:
            return middle
        low, high = (middle, high) if known[middle] > target else (low, middle)
    return None


@dataclass(frozen=True)
class Trial:
    """One run of a search: a strength, and the clean test accuracy with it, 0 where training diverged."""

    strength: float
    accuracy: float
    run: Run


@dataclass(frozen=True)
class Match:
    """The result of a search: the trial whose accuracy is closest to the one asked for, and all trials in their order."""

    target: float
    best: Trial
    trials: tuple[Trial, ...]


def match_accuracy(
    run_of: Callable[[float], Run],
    target: float,
    store: Store,
    *,
    low: float,
    high: float,
    tolerance: float = 0.005,
    trials: int = 8,
    device: str = "cpu",
) -> Match:
    """The strength of a regularizer at which the clean test accuracy is that of another network.

    Bisection on a logarithmic scale; accuracy is taken to fall as the strength grows. Every trial is a run of the store, so
    that a stopped search goes on where it was.

    Args:
        run_of: the run with a strength, such as ``lambda lam: Run(model, data, regularizers=(f"dd_snr(lam={lam!r})",))``.
        target: accuracy, a fraction, such as that of the adversarially trained network.
        store: of the runs.
        low: a strength, more than 0, at which the accuracy is above the target.
        high: a strength at which it is below.
        tolerance: the search ends when the accuracy is this close.
        trials: the most runs after the two at the ends.
        device: where to train.

    Returns:
        The closest trial, and all of them. It is one of the ends if the target is not between their accuracies.

    Raises:
        RunError: a setting makes no sense.
        OpnormError: whatever is wrong with a run.

    Source: Roth et al. 2020, section 5.1.
    """
    done: list[Trial] = []

    def trial_at(strength: float) -> Trial:
        run = replace(run_of(strength), analyses=("accuracy()",))
        try:
            found = float(run_training(run, store, device=device).find("accuracy")[0]["accuracy"])
        except TrainError:
            found = 0.0  # too strong: the training diverged
        return Trial(strength, found, run)

    while True:
        known = [(trial.strength, trial.accuracy) for trial in done]
        strength = next_strength(known, target, low=low, high=high, tolerance=tolerance, most=trials)
        if strength is None:
            break
        done.append(trial_at(strength))
    return Match(target, min(done, key=lambda t: abs(t.accuracy - target)), tuple(done))
