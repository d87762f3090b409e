"""What training minimizes: the loss of a batch, clean or attacked.

The settings of an attack are those of :func:`opnorm.attacks.pgd`: ``eps`` and ``norm`` of the ball, ``steps`` and their
length ``step`` (2.5 ε / steps when None), ``random_start`` (uniform in the ball) and ``mode``, that of the model during the
attack: "eval", "train" or "as is". One that makes no sense raises AttackError, another setting SpecError.

Attacks inside training leave the gradients of the weights, the batch-norm statistics and the global random state alone, and
check pixels and labels in the first batch only. An objective that compares clean and attacked logits gets both from one
forward pass over the two halves: both come from the same f, and batch norm updates its statistics once a step, over both.
(TRADES as published passes clean inputs twice and attacked ones once, each normalized by itself.)
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.modes import Mode
from opnorm._core.settings import check_number
from opnorm._core.surrogate import training_surrogate
from opnorm.attacks._checks import check_inputs
from opnorm.attacks._gradients import GradientMonitor
from opnorm.attacks._pgd import PGD, Start
from opnorm.attacks.losses import AGAINST_CLEAN, wide
from opnorm.errors import ModelError, SpecError
from opnorm.spec import factory

__all__ = ["alp", "fgsm_at", "mixed", "mmc", "pgd_at", "plain", "trades"]


class Outcome(NamedTuple):
    """The loss of a batch (scalar) and the logits (B, K) of its inputs: of the attacked ones, if there are any."""

    loss: Tensor
    logits: Tensor


@runtime_checkable
class Objective(Protocol):
    """(model, x, y) -> Outcome, for pixels (B, C, H, W) in [0, 1] and labels (B,)."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        """The loss to descend."""


# ---------------------------------------------------------------- one kind of input


@factory("objective")
def plain(smoothing: float = 0.0) -> Objective:
    """Softmax cross-entropy: mean_b -log softmax(f(x_b))_{y_b}.

    A share ``smoothing`` of each target, in [0, 1), is spread evenly over all K classes.
    """
    loss = _cross_entropy(smoothing)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = model(x)
        return Outcome(loss(logits, y), logits)

    return objective


@factory("objective")
def fgsm_at(
    eps: float = 8 / 255,
    norm: float = math.inf,
    random_start: bool = False,
    mode: Mode = "eval",
    smoothing: float = 0.0,
) -> Objective:
    """Adversarial training on FGSM: cross-entropy, with ``smoothing`` as in :func:`plain`, at x* = FGSM(x).

    Source: Goodfellow et al. 2015; Wen et al. 2020 and Liu et al. 2020 train with it.
    """
    attack = PGD(norm, eps, 1, eps, start=_start(random_start), mode=mode)
    return _on_attacked(attack, _cross_entropy(smoothing))


@factory("objective")
def pgd_at(
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    random_start: bool = True,
    mode: Mode = "eval",
    smoothing: float = 0.0,
) -> Objective:
    """Adversarial training on PGD: cross-entropy, with ``smoothing`` as in :func:`plain`, at x* = PGD(x).

    It descends the inner maximum of min_θ E max_{x*} ℓ(f(x*), y).

    Source: Madry et al. 2018.
    """
    attack = PGD(norm, eps, steps, step, start=_start(random_start), mode=mode)
    return _on_attacked(attack, _cross_entropy(smoothing))


@factory("objective")
def mmc(
    radius: float = 10.0,
    eps: float = 0.0,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    random_start: bool = True,
    mode: Mode = "eval",
) -> Objective:
    """Max-Mahalanobis center loss: mean_b ½ ‖f(x_b) - μ_{y_b}‖_2², with fixed centers μ_c.

    The centers are the corners of a simplex around the origin of R^K, of the logits themselves: of norm C and with equal
    inner products -C² / (K - 1), the smallest there can be,

        μ_c = C sqrt(K / (K - 1)) (e_c - 1 / K).

    So the nearest center is that of the largest logit, and everything that works on logits works here as ever. With
    ``eps`` above 0 the inputs are attacked first, as in :func:`pgd_at`, on the log-odds of the largest logit.

    The norm C is ``radius``; the first gradients grow with it, so it may ask for a smaller learning rate. A model with a
    single logit is a ModelError in the first batch.

    Source: Pang et al. 2020, Eq. 8; Liu et al. 2020, Table 4, train with it.
    """
    check_number("radius", radius, "the norm of the centers, above 0", above=0)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return (wide(logits) - centers(y, logits.shape[1], radius)).square().sum(1).mean() / 2

    return _on_attacked(PGD(norm, eps, steps, step, start=_start(random_start), mode=mode), loss)


def centers(y: Tensor, classes: int, radius: float) -> Tensor:
    """Max-Mahalanobis centers (B, K) of the labels (B,), in float32: see :func:`mmc`."""
    if classes < 2:
        raise ModelError(f"the model has {classes} output; expected a logit for each of at least 2 classes")
    return radius * math.sqrt(classes / (classes - 1)) * (F.one_hot(y, classes).float() - 1 / classes)


# ---------------------------------------------------------------- clean and attacked inputs together


@factory("objective")
def trades(
    beta: float = 6.0,
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    start: Start = "gaussian",
    mode: Mode = "eval",
) -> Objective:
    """TRADES: mean_b CE(f(x), y) + β KL(softmax f(x) ‖ softmax f(x*)), where x* ascends that divergence.

    ``beta`` is the weight β of robustness, the paper's 1/λ; Liang & Huang 2021 use 1. The attack starts at x with noise of
    standard deviation 0.001, start="gaussian", in eval mode, both as published; or at a "uniform" point of the ball. A batch
    takes steps + 3 forward passes.

    Source: Zhang et al. 2019, Eq. 5 and Algorithm 1.
    """
    return _clean_plus("beta", beta, PGD(norm, eps, steps, step, start=start, loss="kl", mode=mode))


@factory("objective")
def mixed(
    lam: float = 1.0,
    eps: float = 8 / 255,
    norm: float = math.inf,
    loss: str = "l2",
    steps: int = 10,
    step: float | None = None,
    mode: Mode = "eval",
) -> Objective:
    """Clean plus adversarial loss: mean_b ℓ(y, f(x)) + λ max_{x*} ℓ_adv(x, x*), with ℓ the cross-entropy.

    x* is what projected gradient ascent on ℓ_adv finds from a uniform start in the ball; ``lam`` is λ. The ``loss`` ℓ_adv is
    "l1", "l2", "linf" for ‖f(x) - f(x*)‖_q on logits, "kl" for KL(f(x) ‖ f(x*)), or "ce" for the cross-entropy at x*.

    Source: Roth et al. 2020, Eq. 14 and Theorem 1.
    """
    if loss not in (known := (*AGAINST_CLEAN, "ce")):
        raise SpecError(f"loss={loss!r} is not known; expected one of {', '.join(known)}")
    return _clean_plus("lam", lam, PGD(norm, eps, steps, step, loss=loss, mode=mode))


@factory("objective")
def alp(
    beta: float = 1.0,
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    random_start: bool = True,
    mode: Mode = "eval",
) -> Objective:
    """Adversarial logit pairing: ½ CE(f(x), y) + ½ CE(f(x*), y) + β mean_{b,i} (f(x) - f(x*))²_{b,i}, x* = PGD(x).

    Source: Kannan, Kurakin & Goodfellow 2018; Liang & Huang 2021 train with it.
    """
    check_number("beta", beta, "a weight of at least 0", least=0)

    def loss(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        both = (F.cross_entropy(clean, y) + F.cross_entropy(attacked, y)) / 2
        return both + beta * F.mse_loss(clean, attacked)

    return _on_both(PGD(norm, eps, steps, step, start=_start(random_start), mode=mode), loss)


def _clean_plus(name: str, weight: float, attack: PGD) -> Objective:
    """Cross-entropy on clean inputs plus ``weight`` times the loss that the attack climbs."""
    check_number(name, weight, "a weight of at least 0", least=0)

    def loss(clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        if attack.loss in AGAINST_CLEAN:
            climbed = AGAINST_CLEAN[attack.loss](attacked, clean).mean()
        else:
            climbed = F.cross_entropy(attacked, y)
        return F.cross_entropy(clean, y) + weight * climbed

    return _on_both(attack, loss)


def _on_attacked(attack: PGD, loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The objective loss(f(x*), y)."""
    adversary = _adversary(attack)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = model(adversary(model, x, y))
        return Outcome(loss(logits, y), logits)

    return objective


def _on_both(attack: PGD, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Objective:
    """The objective loss(f(x), f(x*), y), from one pass over both."""
    adversary = _adversary(attack)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        clean, attacked = wide(model(torch.cat([x, adversary(model, x, y)]))).chunk(2)
        return Outcome(loss(clean, attacked, y), attacked)

    return objective


def _adversary(attack: PGD) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """(model, x, y) -> x*, from another start each time, by the run's own random state."""
    checked = False

    def adversary(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal checked
        monitor = None
        if not checked:  # once: on a GPU each check costs a wait
            check_inputs(x, y)
            monitor, checked = GradientMonitor.of(y), True
        seed = int(torch.randint(2**62, ()))
        return attack.ascend(training_surrogate(model, x, attack.mode), x, y, seed, monitor)

    return adversary


def _start(random_start: bool) -> Start:
    return "uniform" if random_start else "point"


def _cross_entropy(smoothing: float) -> Callable[[Tensor, Tensor], Tensor]:
    check_number("smoothing", smoothing, "a share in [0, 1)", least=0, below=1)
    return partial(F.cross_entropy, label_smoothing=smoothing)
