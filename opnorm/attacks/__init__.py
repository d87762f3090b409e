"""Attacks: callables (model, x, y) -> adversarial points, exactly in the ball and in [0, 1]."""

from opnorm.attacks._apgd import apgd
from opnorm.attacks._autoattack import AutoAttack, Certificate, autoattack
from opnorm.attacks._fab import fab
from opnorm.attacks._pgd import Attack, fgsm, pgd
from opnorm.attacks._square import square
from opnorm.attacks.minimum_norm import Closest, accuracy_curve, minimal_eps

__all__ = [
    "Attack",
    "AutoAttack",
    "Certificate",
    "Closest",
    "accuracy_curve",
    "apgd",
    "autoattack",
    "fab",
    "fgsm",
    "minimal_eps",
    "pgd",
    "square",
]
