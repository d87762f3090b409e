"""Attacks: plain callables (model, x, y) -> x_adv, in the ball and in [0, 1] exactly."""

from opnorm.attacks._apgd import apgd
from opnorm.attacks._autoattack import AutoAttack as AutoAttack
from opnorm.attacks._autoattack import autoattack
from opnorm.attacks._fab import fab
from opnorm.attacks._pgd import Attack as Attack
from opnorm.attacks._pgd import fgsm, pgd
from opnorm.attacks._square import square
from opnorm.attacks.minimum_norm import Closest as Closest
from opnorm.attacks.minimum_norm import accuracy_curve as accuracy_curve
from opnorm.attacks.minimum_norm import minimal_eps as minimal_eps

__all__ = ["apgd", "autoattack", "fab", "fgsm", "pgd", "square"]
