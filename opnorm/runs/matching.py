"""Roth's protocol of a fair comparison: the radius of adversarial training, and strengths of equal clean accuracy.

Source: Roth et al. 2020, section 5.1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_count, check_number
from opnorm.attacks import pgd
from opnorm.data.dataset import Dataset, as_pixels
from opnorm.errors import RunError, TrainError
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training

__all__ = ["Match", "Trial", "match_accuracy", "training_eps"]


def training_eps(
    model: nn.Module,
    data: Dataset,
    *,
    norm: float = 2,
    share: float = 0.99,
    steps: int = 10,
    points: int = 500,
    precision: float = 0.05,
    seed: int = 0,
) -> float:
    """The smallest radius at which an attack succeeds on almost all inputs of a model trained without attacks.

    The attack is projected gradient ascent, at points that are correct without it.

    Args:
        model: gives logits (B, K); its state is preserved.
        data: its first ``points`` test images are attacked.
        norm: of the ball: 1, 2, inf, or any other p from 1 on.
        share: what "almost all" means; the paper gives no number.
        steps: of the attack.
        points: number of test images.
        precision: of the radius, relative, of a bisection.
        seed: of the attack.

    Returns:
        ε in pixel values of [0, 1], at which the share is reached.

    Raises:
        RunError: no point is correct, or the share is not reached where the ball holds all images.

    Source: Roth et al. 2020, section 5.1.
    """
    check_number("share", share, "a fraction above 0, at most 1", above=0, most=1, error=RunError)
    x, y = as_pixels(data.test.images[:points]), data.test.labels[:points]
    with model_state_preserved(model, "eval"), torch.no_grad():
        correct = output_of(model, x).argmax(1) == y
    x, y = x[correct], y[correct]
    if not len(x):
        raise RunError(f"none of {len(correct)} test points is correct: expected a trained model")

    def succeeds(eps: float) -> bool:
        points = pgd(norm=norm, eps=eps, steps=steps, seed=seed)(model, x, y)
        with model_state_preserved(model, "eval"), torch.no_grad():
            return float((output_of(model, points).argmax(1) != y).double().mean()) >= share

    largest = float(x[0].numel()) ** (0 if math.isinf(norm) else 1 / norm)  # this ball holds [0, 1]
    high = min(1 / 255, largest)
    while not succeeds(high):
        if high == largest:
            raise RunError(
                f"the attack succeeds on less than {share:.0%} of the points at any radius up to {largest:.4g}"
            )
        high = min(2 * high, largest)
    low = high / 2
    while high > low * (1 + precision):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if succeeds(middle) else (middle, high)
    return high


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
    check_number("target", target, "an accuracy between 0 and 1", least=0, most=1, error=RunError)
    check_count("trials", trials, error=RunError)
    if not 0 < low < high:
        raise RunError(f"low={low!r}, high={high!r}: expected 0 < low < high")
    done: list[Trial] = []

    def accuracy(strength: float) -> float:
        run = replace(run_of(strength), analyses=("accuracy()",))
        try:
            found = float(run_training(run, store, device=device).find("accuracy")[0]["accuracy"])
        except TrainError:
            found = 0.0  # too strong: the training diverged
        done.append(Trial(strength, found, run))
        return found

    ends = accuracy(low), accuracy(high)
    if ends[0] > target > ends[1]:
        while len(done) < trials + 2 and min(abs(t.accuracy - target) for t in done) > tolerance:
            middle = math.sqrt(low * high)
            low, high = (middle, high) if accuracy(middle) > target else (low, middle)
    return Match(target, min(done, key=lambda t: abs(t.accuracy - target)), tuple(done))
