"""Attacks: plain callables (model, x, y) -> x_adv, in the ball and in [0, 1] exactly."""

from opnorm.attacks.apgd import apgd
from opnorm.attacks.autoattack import AutoAttack as AutoAttack
from opnorm.attacks.autoattack import autoattack
from opnorm.attacks.pgd import Attack as Attack
from opnorm.attacks.pgd import fgsm, pgd

__all__ = ["apgd", "autoattack", "fgsm", "pgd"]
