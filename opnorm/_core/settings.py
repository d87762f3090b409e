"""Checks of settings: every message names the value and the expected form."""

import math
from collections.abc import Sequence
from typing import TypeGuard

from opnorm.errors import OpnormError, SpecError

__all__ = ["check_choice", "check_count", "check_number", "check_seed", "is_number"]


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is an int or a float, neither a bool nor NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_number(
    name: str,
    value: object,
    expected: str,
    *,
    least: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    most: float = math.inf,
    error: type[OpnormError] = SpecError,
) -> None:
    """Raise unless least ≤ value ≤ most and above < value < below; ``expected`` is that range in words, for the message."""
    if not is_number(value) or not (least <= value <= most and above < value < below):
        raise error(f"{name}={value!r}: expected {expected}")


def check_count(
    name: str, value: object, least: int = 1, unit: str = "", error: type[OpnormError] = SpecError
) -> None:
    """Raise unless a setting is a whole number of at least ``least``; ``unit`` completes the message."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        of = f" of {unit}" if unit else ""
        raise error(f"{name}={value!r}: expected a whole number{of}, at least {least}")
    if value >= 2**63:
        raise error(f"{name}={value!r:.60}: expected a whole number from {least} to 2**63 - 1")


def check_seed(seed: object, error: type[OpnormError] = SpecError) -> None:
    """Raise unless a seed is a whole number, which may be negative, that fits the generators of torch."""
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 2**63:
        raise error(f"seed={seed!r:.60}: expected a whole number of at most 63 bits")


def check_choice(
    name: str, value: object, choices: Sequence[object], error: type[OpnormError] = SpecError
) -> None:
    """Raise unless a setting is one of the choices; True is not 1 here."""
    if isinstance(value, bool) or value not in choices:
        *first, last = (choice if isinstance(choice, float | int) else repr(choice) for choice in choices)
        raise error(f"{name}={value!r}: expected {', '.join(map(str, first))} or {last}")
