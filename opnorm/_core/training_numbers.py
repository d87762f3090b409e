"""The numbers of a training, which can be checked before anything of it is loaded."""

import math
from typing import Literal

from opnorm._core.settings import check_count, check_number, check_shares
from opnorm.errors import SpecError, TrainError

__all__ = [
    "PRECISIONS",
    "Precision",
    "check_milestones",
    "check_momentum",
    "check_numbers",
    "check_rate",
    "check_smoothing",
    "check_warmup",
]

Precision = Literal["fp32", "bf16", "auto"]
PRECISIONS = ("fp32", "bf16", "auto")


def check_numbers(epochs: int, batch: int, precision: str = "fp32", seed: int = 0, ema: float = 0.0) -> None:
    """TrainError for numbers that make no sense."""
    check_count("epochs", epochs, 0, error=TrainError)
    check_count("batch", batch, 1, "points", error=TrainError)
    check_count("seed", seed, 0, error=TrainError)
    if precision not in PRECISIONS:
        raise TrainError(f"precision={precision!r}: expected {', '.join(PRECISIONS)}")
    expected = "a decay a step in [0, 1), such as 0.995; 0 for no average"
    check_number("ema", ema, expected, least=0, below=1, error=TrainError)


def check_rate(lr: object) -> None:
    """SpecError unless a learning rate is above 0."""
    check_number("lr", lr, "a learning rate above 0", above=0)


def check_momentum(momentum: float, nesterov: bool) -> None:
    """SpecError unless a momentum is in [0, 1), and above 0 for Nesterov's."""
    check_shares(momentum=momentum)
    if nesterov and momentum == 0:
        raise SpecError(
            f"momentum={momentum!r}, nesterov={nesterov!r}: expected a momentum above 0 for nesterov"
        )


def check_smoothing(smoothing: object) -> None:
    """SpecError unless it is a share of the targets in [0, 1)."""
    check_number("smoothing", smoothing, "a share in [0, 1)", least=0, below=1)


def check_warmup(warmup: object) -> None:
    """SpecError unless it is a number of epochs."""
    check_number("warmup", warmup, "a number of epochs of at least 0", least=0)


def check_milestones(milestones: object, gamma: float) -> None:
    """SpecError unless whole epochs rise, and the factor is above 0."""
    epochs = milestones if isinstance(milestones, tuple | list) else (None,)
    whole = all(isinstance(m, int) for m in epochs)
    if not whole or list(epochs) != sorted(set(epochs)) or not 0 < gamma < math.inf:
        raise SpecError(
            f"milestones={milestones!r}, gamma={gamma!r}: expected rising whole epochs and a factor above 0"
        )
