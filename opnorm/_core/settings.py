"""Checks of settings: every message names the value and the expected form."""

import math
import re
from collections.abc import Sequence
from typing import Literal, TypeGuard, get_args

from opnorm.errors import OpnormError, SpecError

__all__ = [
    "MODES",
    "Mode",
    "check_amounts",
    "check_choice",
    "check_count",
    "check_number",
    "check_optional_amount",
    "check_positive",
    "check_range",
    "check_sample",
    "check_seed",
    "check_shares",
    "in_quotes",
    "is_number",
]

Mode = Literal["eval", "train", "as is"]
"""The mode in which a model is used; ``as is`` leaves every module in its own."""
MODES = get_args(Mode)

NUMBER = re.compile(r"\s*[-+]?(\d[\d.e+-]*(/\d[\d.]*)?|(math\.)?inf)\s*", re.IGNORECASE)
"""A number as text."""


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
        raise error(f"{name}={value!r}: expected {expected}{in_quotes(value)}")


def in_quotes(value: object) -> str:
    """The end of a message where a number is given as text, such as ``"inf"`` or ``"8/255"``; empty elsewhere."""
    if not isinstance(value, str) or not NUMBER.fullmatch(value):
        return ""
    infinite = ": inf in a call, math.inf in Python" if "inf" in value.lower() else ""
    return f"; a number has no quotes{infinite}"


def check_count(
    name: str,
    value: object,
    least: int = 1,
    unit: str = "",
    *,
    optional: bool = False,
    error: type[OpnormError] = SpecError,
) -> None:
    """Raise unless a setting is a whole number of at least ``least``; ``unit`` completes the message.

    With ``optional`` the value may be None.
    """
    if optional and value is None:
        return
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
        hint = in_quotes(value) if any(isinstance(choice, float | int) for choice in choices) else ""
        raise error(f"{name}={value!r}: expected {', '.join(map(str, first))} or {last}{hint}")


def check_positive(**numbers: object) -> None:
    """Raise unless each setting is above 0."""
    for name, value in numbers.items():
        check_number(name, value, "a finite number above 0", above=0)


def check_optional_amount(name: str, value: object, expected: str) -> None:
    """Raise unless a setting is None or a number from 0 on; ``expected`` is for the message."""
    if value is not None:
        check_number(name, value, expected, least=0)


def check_shares(**shares: object) -> None:
    """Raise unless each setting is a number in [0, 1)."""
    for name, share in shares.items():
        check_number(name, share, "a number in [0, 1)", least=0, below=1)


def check_sample(points: object, seed: object = 0) -> None:
    """Raise unless it is a number of points of at least 1, or None for all of them, and a seed."""
    check_count("points", points, optional=True)
    check_seed(seed)


def check_amounts(name: str, values: object, zero: bool = True) -> None:
    """Raise unless a setting is a number from 0 on (or above 0), or several of them."""
    many = list(values) if isinstance(values, Sequence) else [values]
    if not many or not all(is_number(v) and (v > 0 or (zero and v == 0)) for v in many):
        raise SpecError(
            f"{name}={values!r}: expected one or more numbers {'from 0 on' if zero else 'above 0'}"
        )


def check_range(name: str, value: object, most: float = math.inf) -> None:
    """Raise unless a setting is a pair (low, high) of numbers with 0 < low <= high <= most."""
    pair = value if isinstance(value, tuple | list) and len(value) == 2 else (0, 0)
    if not all(is_number(v) for v in pair) or not 0 < pair[0] <= pair[1] <= most:
        bound = f" <= {most:g}" if math.isfinite(most) else ""
        raise SpecError(f"{name}={value!r}: expected (low, high) with 0 < low <= high{bound}")
