"""Attacks: plain callables (model, x, y) -> x_adv, in the ball and in [0, 1] exactly."""

from opnorm.attacks.apgd import apgd
from opnorm.attacks.autoattack import AutoAttack as AutoAttack
from opnorm.attacks.autoattack import autoattack
from opnorm.attacks.fab import fab
from opnorm.attacks.minimal import Closest as Closest
from opnorm.attacks.minimal import accuracy_curve as accuracy_curve
from opnorm.attacks.minimal import minimal_eps as minimal_eps
from opnorm.attacks.pgd import Attack as Attack
from opnorm.attacks.pgd import fgsm, pgd
from opnorm.attacks.square import square

__all__ = ["apgd", "autoattack", "fab", "fgsm", "pgd", "square"]
