"""What training minimizes: the loss of a batch, clean or attacked."""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm.attacks import Attack
from opnorm.attacks import fgsm as fgsm_attack
from opnorm.attacks import pgd as pgd_attack
from opnorm.modes import Mode
from opnorm.spec import factory

__all__ = ["fgsm_at", "pgd_at", "plain"]


class Outcome(NamedTuple):
    """The loss of a batch (scalar) and the logits (B, K) that it came from: of the attacked inputs, if any."""

    loss: Tensor
    logits: Tensor


@runtime_checkable
class Objective(Protocol):
    """(model, x, y) -> Outcome, for pixels (B, C, H, W) in [0, 1] and labels (B,)."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        """The loss to descend."""


@factory
def plain() -> Objective:
    """Softmax cross-entropy: mean_b -log softmax(f(x_b))_{y_b}."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = model(x)
        return Outcome(F.cross_entropy(logits, y), logits)

    return objective


@factory
def fgsm_at(
    eps: float = 8 / 255, norm: float = math.inf, random_start: bool = False, mode: Mode = "eval"
) -> Objective:
    """Adversarial training on FGSM: cross-entropy at x* = FGSM(x).

    Args:
        eps: radius, in pixel values of [0, 1].
        norm: of the ball: 2 or inf.
        random_start: begin the attack at a random point of the ball.
        mode: of the model during the attack: "eval", "train" or "as is".

    Raises:
        AttackError: a setting that makes no sense.

    Source: Goodfellow et al. 2015; Wen et al. 2020 and Liu et al. 2020 train with it.
    """
    return _on_attacked(fgsm_attack(eps, norm, random_start, mode))


@factory
def pgd_at(
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    random_start: bool = True,
    mode: Mode = "eval",
) -> Objective:
    """Adversarial training on PGD: cross-entropy at x* = PGD(x), the inner maximum of min_θ E max_{x*} ℓ.

    Args:
        eps: radius, in pixel values of [0, 1].
        norm: of the ball: 2 or inf.
        steps: of the attack.
        step: their length; 2.5 ε / steps when None.
        random_start: begin uniformly in the ball.
        mode: of the model during the attack: "eval", "train" or "as is".

    Raises:
        AttackError: a setting that makes no sense.

    Source: Madry et al. 2018.
    """
    return _on_attacked(pgd_attack(norm, eps, steps, step, 1, random_start, mode=mode))


def _on_attacked(attack: Attack) -> Objective:
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        # a new start each time, from the run's own random state: the same image must not always start alike
        seed = int(torch.randint(2**62, ()))
        logits = model(attack(model, x, y, seed=seed))
        return Outcome(F.cross_entropy(logits, y), logits)

    return objective
