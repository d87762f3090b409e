"""The confidence interval of a share."""

__all__ = ["confidence_interval"]


def confidence_interval(successes: int, trials: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share; (0, 1) without trials.

    Source: Wilson 1927.
    """
    from scipy.stats import binomtest  # takes 0.5 s to import

    if trials == 0:
        return 0.0, 1.0
    low, high = binomtest(successes, trials).proportion_ci(0.95, "wilson")
    return float(low), float(high)
