"""The settings of attacks, which can be checked before anything of them is loaded."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

from opnorm._core.settings import (
    Mode,
    check_amounts,
    check_choice,
    check_count,
    check_number,
    in_quotes,
    is_number,
)
from opnorm.errors import AttackError, SpecError

__all__ = [
    "CLEAN_LOSSES",
    "GRADIENT_ATTACKS",
    "LABEL_LOSSES",
    "MIXED_LOSSES",
    "STANDARD",
    "VERSIONS",
    "Ascent",
    "Start",
    "StepRule",
    "check_ascent",
    "check_autoattack",
    "check_evaluation",
    "check_mixture",
    "check_radii",
    "check_settings",
    "is_amount",
]

Start = Literal["point", "uniform", "gaussian"]
"""The start: the point itself, uniform in the ball, or the point with Gaussian noise of standard deviation 0.001."""
Ascent = Literal["box", "roth"]
"""The direction of a step: Roth's Eq. 17, "roth", or in ℓ1 the best step that stays in [0, 1], "box"."""
StepRule = Literal["constant", "linear", "cosine"]
"""The factor of the length of step k = 0, 1, ... of K: 1, 1 - k / K, or (1 + cos(π k / K)) / 2."""

LABEL_LOSSES = ("ce", "cw", "dlr")
CLEAN_LOSSES = ("kl", "l1", "l2", "linf")
"""Losses that compare with the model's own logits at the point, where their gradient is zero."""
MIXED_LOSSES = (*CLEAN_LOSSES, "ce")
"""Losses that training can add to that of the point."""


class Version(NamedTuple):
    """What a version of AutoAttack runs; the other settings are those of :func:`opnorm.attacks.autoattack`.

    Attributes:
        attacks: cheapest first; the order does not change which points are misclassified.
        rescale: the schedule of Square is that of 10,000 queries, shrunk to its 5,000.
    """

    attacks: tuple[str, ...]
    restarts: int
    patience: float = math.inf
    bf16: bool = False
    rescale: bool = False


GRADIENT_ATTACKS = ("apgd-ce", "apgd-t")
STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
VERSIONS = {
    "standard": Version(STANDARD, restarts=1),
    "plus": Version(("apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square", "fab"), restarts=5),
    "rand": Version(("apgd-ce", "apgd-dlr"), restarts=1),
    "fast": Version(STANDARD, restarts=3, patience=3, bf16=True, rescale=True),
}

COUNTS = {"steps": 0, "queries": 0, "targets": 0, "restarts": 1, "batch": 1}  # and the least of each
CHOICES = {"mode": Mode, "start": Start, "ascent": Ascent, "step_rule": StepRule}


def is_amount(value: object) -> bool:
    """A finite number from 0 on."""
    return is_number(value) and value >= 0


RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "eps": (is_amount, "a radius of at least 0 in pixel values of [0, 1], such as 8/255"),
    "step": (lambda value: value is None or is_amount(value), "a length of at least 0 in pixel values"),
    "seed": (
        lambda value: isinstance(value, int) and abs(value) < 2**63 and is_number(value),
        "a whole number of at most 63 bits",
    ),
    "patience": (
        lambda value: value == math.inf or (is_number(value) and value > 0),
        "a factor above 0, such as 3, or inf",
    ),
}


def check_settings(*, any_norm: bool = False, **settings: object) -> None:
    """Check settings by their names: norm, those of ``COUNTS``, ``CHOICES`` and ``RANGES``; others are not checked.

    The norm is 1, 2 or inf, or any number from 1 on with ``any_norm``.

    Raises:
        AttackError: with the value, what was expected, and where possible the likely cause.
    """
    for name, value in settings.items():
        if name in COUNTS:
            check_count(name, value, COUNTS[name], error=AttackError)
        elif name in CHOICES:
            check_choice(name, value, get_args(CHOICES[name]), AttackError)
        elif name == "norm":
            _check_norm(value, any_norm)
        elif name in RANGES and not RANGES[name][0](value):
            raise AttackError(f"{name}={value!r}: expected {RANGES[name][1]}{in_quotes(value)}")
    norm, eps = settings.get("norm"), settings.get("eps")
    if norm == math.inf and isinstance(eps, int | float) and eps > 1:
        raise AttackError(
            f"eps={eps!r} is larger than the whole range [0, 1] of a pixel; did you mean {eps:g}/255?"
        )


def _check_norm(value: object, any_norm: bool) -> None:
    from_one_on = not isinstance(value, bool) and (value == math.inf or (is_number(value) and value >= 1))
    if not from_one_on and any_norm:
        raise AttackError(
            f"norm={value!r}: expected a number from 1 on, such as 1, 2 or inf{in_quotes(value)}"
        )
    if not any_norm and (not from_one_on or value not in (1, 2, math.inf)):
        others = "; pgd and fgsm, and training on them, take any norm from 1 on" if from_one_on else ""
        raise AttackError(f"norm={value!r}: expected 1, 2 or inf{others}{in_quotes(value)}")


def check_ascent(
    *,
    loss: str = "ce",
    targets: int = 0,
    start: str = "uniform",
    random_start: bool = True,
    **settings: object,
) -> None:
    """:func:`check_settings` of projected gradient ascent, in any norm.

    Args:
        loss: what it climbs; "ce", "cw" or "dlr" with target classes, none of the others from the point itself.
        targets: their number.
        start: where it begins.
        random_start: False: at the point itself.
        settings: the others.
    """
    check_settings(any_norm=True, start=start, targets=targets, **settings)
    check_choice("loss", loss, (*LABEL_LOSSES, *CLEAN_LOSSES), AttackError)
    if loss in CLEAN_LOSSES and targets:
        raise AttackError(f"loss={loss!r} has no target classes; expected one of {', '.join(LABEL_LOSSES)}")
    if loss in CLEAN_LOSSES and (start == "point" or not random_start):
        raise AttackError(
            f"loss={loss!r} compares with the logits of the point itself, where its gradient is zero: "
            "expected a random start"
        )


def check_autoattack(
    *,
    version: str = "standard",
    attacks: tuple[str, ...] | None = None,
    certify: object = None,
    mode: str = "eval",
    **settings: object,
) -> None:
    """:func:`check_settings` of AutoAttack; of other settings, None is the version's own.

    Args:
        version: a key of ``VERSIONS``.
        attacks: some of the version's.
        certify: a certificate, in mode "eval" only.
        mode: of the model.
        settings: the others.
    """
    given: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    check_settings(mode=mode, **given)
    check_choice("version", version, tuple(VERSIONS), AttackError)
    known = VERSIONS[version].attacks
    if attacks is not None and (isinstance(attacks, str) or not attacks or not set(attacks) <= set(known)):
        raise AttackError(
            f"attacks={attacks!r}: expected some of {known}, the attacks of version {version!r}"
        )
    if certify is not None and mode != "eval":
        raise AttackError(f"mode={mode!r}: certificates are for mode 'eval'; leave certify out")


def check_mixture(**weights: float) -> None:
    """SpecError unless the weights of two losses are numbers from 0 on, and one of them is above 0."""
    for name, weight in weights.items():
        check_number(name, weight, "a weight of at least 0", least=0)
    if not any(weights.values()):
        none = " and ".join(f"{name}=0" for name in weights)
        raise SpecError(f"{none}: expected a weight above 0 for one of them")


def check_radii(name: str, radii: object, norm: float, *, zero: bool = True, all_zero: bool = True) -> None:
    """Raise unless there are one or more radii of balls in a norm from 1 on.

    Args:
        name: of the setting.
        radii: one or several.
        norm: of the balls.
        zero: whether some may be 0.
        all_zero: whether all may be 0.
    """
    check_amounts(name, radii, zero)
    many = radii if isinstance(radii, Sequence) else (radii,)
    for radius in many:
        check_settings(any_norm=True, norm=norm, eps=radius)
    if not all_zero and not any(many):
        raise SpecError(f"{name}={radii!r}: expected a radius above 0")


def check_evaluation(
    attack: str, norm: float, radii: object, steps: int, restarts: int | None, version: str
) -> None:
    """Raise unless PGD, APGD or AutoAttack can attack at these radii: PGD in any norm from 1 on, the others in 1, 2, inf."""
    check_choice("attack", attack, ("pgd", "apgd", "autoattack"))
    check_radii("eps", radii, norm)
    if attack == "pgd":
        check_settings(steps=steps, restarts=1 if restarts is None else restarts)
        check_autoattack(version=version)
    else:
        check_autoattack(norm=norm, version=version, restarts=restarts)
        if attack == "apgd":
            check_autoattack(version=version, attacks=GRADIENT_ATTACKS)
