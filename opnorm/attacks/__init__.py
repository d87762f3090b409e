"""Attacks: plain callables (model, x, y) -> x_adv, in the ball and in [0, 1] exactly."""

from opnorm.attacks.pgd import Attack as Attack
from opnorm.attacks.pgd import fgsm, pgd

__all__ = ["fgsm", "pgd"]
