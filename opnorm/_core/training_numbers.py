"""The numbers of a training, which can be checked before anything of it is loaded."""

from typing import Literal

from opnorm._core.settings import check_count, check_number
from opnorm.errors import TrainError

__all__ = ["PRECISIONS", "Precision", "check_numbers"]

Precision = Literal["fp32", "bf16", "auto"]
PRECISIONS = ("fp32", "bf16", "auto")


def check_numbers(epochs: int, batch: int, precision: str, seed: int, ema: float) -> None:
    """TrainError for numbers that make no sense."""
    check_count("epochs", epochs, 0, error=TrainError)
    check_count("batch", batch, 1, "points", error=TrainError)
    check_count("seed", seed, 0, error=TrainError)
    if precision not in PRECISIONS:
        raise TrainError(f"precision={precision!r}: expected {', '.join(PRECISIONS)}")
    expected = "a decay a step in [0, 1), such as 0.995; 0 for no average"
    check_number("ema", ema, expected, least=0, below=1, error=TrainError)
