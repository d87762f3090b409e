"""The confidence interval of a share."""

import math

__all__ = ["confidence_interval", "like_guessing"]

Z = 1.959963984540054  # of the standard normal distribution, 97.5 % lie below it


BARELY = 0.1  # of the way from guessing to all points


def like_guessing(correct: int, points: int, chance: float) -> bool:
    """Whether an accuracy may be that of guessing, or is less than twice that and a tenth of the way from it to all points.

    Weights that were never trained often classify somewhat better than by chance, since classes differ in brightness.

    Example:
        >>> like_guessing(75, 500, 0.1), like_guessing(100, 500, 0.1), like_guessing(270, 500, 0.5)
        (True, False, True)
    """
    share = correct / points
    barely = share < 2 * chance and share - chance < BARELY * (1 - chance)
    return barely or confidence_interval(correct, points)[0] <= chance


def confidence_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without trials.

    The ends are (2 k + z² ± z √(z² + 4 k (n - k) / n)) / (2 (n + z²)), for k successes of n trials.

    Raises:
        ValueError: more successes than trials, or fewer than none.

    Source: Wilson 1927.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: expected at least 0 and at most all")
    if trials == 0:
        return 0.0, 1.0
    center = 2 * successes + Z**2
    delta = Z * math.sqrt(Z**2 + 4 * successes * (trials - successes) / trials)
    low, high = ((center + end) / (2 * (trials + Z**2)) for end in (-delta, delta))
    return low if successes > 0 else 0.0, high if successes < trials else 1.0
