"""Attacks: callables (model, x, y) -> adversarial points, exactly in the ball and in [0, 1].

Inputs x are batches (B, ...) of any shape: vectors, sequences, images, volumes. Their values are called pixels here.

Settings that attacks share:

- ``norm``, ``eps``: of the ball, 1, 2 or inf (PGD and FGSM: any number from 1 on), and its radius in pixel values of [0, 1],
  such as ``8/255``.
- ``steps``: gradient steps of each search.
- ``restarts``: searches from random starts for each point (and target).
- ``targets``: 0, or the number of wrong classes to go to, one after another, those with the largest clean logits first; a
  point is misclassified in any wrong class.
- ``stop_at_success``: a point is done as soon as it is misclassified, also without an attack: for evaluation.
- ``mode``: of the model during the attack: "eval", "train" or "as is".
- ``seed``: of all random numbers; they depend on the point, not on its batch.
"""

from opnorm.attacks._apgd import apgd
from opnorm.attacks._autoattack import AutoAttack, Certificate, autoattack
from opnorm.attacks._fab import fab
from opnorm.attacks._pgd import Attack, fgsm, pgd
from opnorm.attacks._square import square
from opnorm.attacks.minimum_norm import MinimumNormPoints, accuracy_curve, minimal_eps
from opnorm.attacks.other_packages import as_foolbox, as_torchattacks, external

__all__ = [
    "Attack",
    "AutoAttack",
    "Certificate",
    "MinimumNormPoints",
    "accuracy_curve",
    "apgd",
    "as_foolbox",
    "as_torchattacks",
    "autoattack",
    "external",
    "fab",
    "fgsm",
    "minimal_eps",
    "pgd",
    "square",
]
