"""What training minimizes: the loss of a batch, clean or attacked.

The settings of an attack are those of :func:`opnorm.attacks.pgd`: ``eps`` and ``norm`` of the ball, ``steps`` and their
length ``step`` (2.5 ε / steps when None), the ``start`` ("uniform" in the ball, the "point" itself, or "gaussian": the point
with noise of standard deviation 0.001) and ``mode``, that of the model during the attack: "eval", "train" or "as is". One
that makes no sense raises AttackError, another setting SpecError.

Attacks inside training leave the gradients of the weights, the batch-norm statistics and the global random state alone, and
check pixels and labels in the first batch only. Under the caller's ``torch.autocast`` an objective and its attack compute
under autocast, too.

An objective that compares clean and attacked logits takes so many forward ``passes``: 2, of the clean and of the attacked
inputs, each normalized by its own batch statistics; 1, of both together, which share them; or 3, in which the clean inputs
follow once more, so that the running statistics of batch norm, moved by each pass, are closer to theirs.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.attack_settings import MIXED_LOSSES, check_ascent, check_mixture, check_settings
from opnorm._core.max_mahalanobis import centers, last_linear
from opnorm._core.modes import Mode, default_modes, ordinary
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_choice, check_number
from opnorm._core.surrogate import training_surrogate
from opnorm._core.training_numbers import check_smoothing
from opnorm.attacks._checks import check_classes, check_inputs, explained
from opnorm.attacks._gradients import GradientMonitor
from opnorm.attacks._pgd import PGD, Start
from opnorm.attacks.losses import AGAINST_CLEAN, wide
from opnorm.errors import ModelError
from opnorm.spec import factory

__all__ = ["alp", "fgsm_at", "mixed", "mmc", "pgd_at", "plain", "trades"]


class Outcome(NamedTuple):
    """The loss of a batch (scalar) and the logits (B, K) of its inputs: of the attacked ones, if there are any."""

    loss: Tensor
    logits: Tensor


@runtime_checkable
class Objective(Protocol):
    """(model, x, y) -> Outcome, for pixels (B, ...) in [0, 1] and labels (B,)."""

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        """The loss to descend."""


# ---------------------------------------------------------------- one kind of input


@factory("objective")
def plain(smoothing: float = 0.0) -> Objective:
    """Softmax cross-entropy: mean_b -log softmax(f(x_b))_{y_b}.

    A share ``smoothing`` of each target, in [0, 1), is spread evenly over all K classes.
    """
    check_smoothing(smoothing)
    loss = partial(F.cross_entropy, label_smoothing=smoothing)

    @explained
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = _logits(model, x)
        return Outcome(loss(logits, y), logits)

    return objective


@factory("objective")
def fgsm_at(
    eps: float = 8 / 255,
    norm: float = math.inf,
    start: Start = "point",
    mode: Mode = "eval",
    smoothing: float = 0.0,
) -> Objective:
    """Adversarial training on FGSM: cross-entropy, with ``smoothing`` as in :func:`plain`, at x* = FGSM(x).

    Source: Goodfellow et al. 2015; Wen et al. 2020 and Liu et al. 2020 train with it.
    """
    check_settings(any_norm=True, norm=norm, eps=eps)
    check_smoothing(smoothing)
    attack = PGD(norm, eps, 1, eps, start=start, mode=mode)
    return _on_attacked(attack, partial(F.cross_entropy, label_smoothing=smoothing))


@factory("objective")
def pgd_at(
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    start: Start = "uniform",
    mode: Mode = "eval",
    smoothing: float = 0.0,
) -> Objective:
    """Adversarial training on PGD: cross-entropy, with ``smoothing`` as in :func:`plain`, at x* = PGD(x).

    It descends the inner maximum of min_θ E max_{x*} ℓ(f(x*), y).

    Source: Madry et al. 2018.
    """
    check_settings(any_norm=True, norm=norm, eps=eps, steps=steps, step=step)
    check_smoothing(smoothing)
    attack = PGD(norm, eps, steps, step, start=start, mode=mode)
    return _on_attacked(attack, partial(F.cross_entropy, label_smoothing=smoothing))


@factory("objective")
def mmc(
    radius: float = 10.0,
    eps: float = 0.0,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    start: Start = "uniform",
    mode: Mode = "eval",
    *,
    on: str = "logits",
) -> Objective:
    """Max-Mahalanobis center loss: mean_b ½ ‖z_b - μ_{y_b}‖_2², with fixed centers μ_c.

    The centers are the corners of a simplex around the origin: of norm C and with equal inner products -C² / (K - 1), the
    smallest there can be. As published they are in the space of the last hidden features z, on="features", of a network with
    the centers as its last layer: ``max_mahalanobis(vgg16())``, with the same radius. With on="logits" z are the logits of
    any network, and

        μ_c = C sqrt(K / (K - 1)) (e_c - 1 / K).

    Either way the nearest center is that of the largest logit, and everything that works on logits works here as ever. With
    ``eps`` above 0 the inputs are attacked first, as in :func:`pgd_at`, on the log-odds of the largest logit.

    The norm C is ``radius``, 10 as published. SGD learns at rates up to about 0.2 / C; above, as ``sgd()`` does with C = 10,
    it usually ends in dead ReLUs. A single logit, or no such last layer, is a ModelError in the first batch.

    Source: Pang et al. 2020, Eq. 8; Liu et al. 2020, Table 4, train with it.
    """
    check_number("radius", radius, "the norm of the centers, above 0", above=0)
    check_choice("on", on, ("logits", "features"))
    check_settings(any_norm=True, norm=norm, eps=eps, steps=steps, step=step)
    adversary = _adversary(PGD(norm, eps, steps, step, start=start, mode=mode))
    layers: WeakKeyDictionary[nn.Module, nn.Linear] = WeakKeyDictionary()  # checked once a model

    @explained
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        points = adversary(model, x, y)
        if on == "features":
            layer = layers.get(model) or layers.setdefault(model, _layer_of_centers(model, radius))
            logits, z = _features(model, points, layer)
            mu = layer.weight
        else:
            z = logits = _logits(model, points)
            mu = centers(logits.shape[1], radius).to(logits.device)
        return Outcome((wide(z) - mu[y]).square().sum(1).mean() / 2, logits)

    vars(objective)["gradient_scale"] = radius  # of its first gradients
    return objective


def _logits(model: nn.Module, x: Tensor) -> Tensor:
    """The logits (B, K); AttackError where they are not of two classes at least, whose loss would be 0."""
    logits = output_of(model, x)
    check_classes(logits, len(x))
    return logits


def _features(model: nn.Module, x: Tensor, layer: nn.Linear) -> tuple[Tensor, Tensor]:
    """The logits, and what this layer was given."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    try:
        logits = _logits(model, x)
    finally:
        handle.remove()
    return logits, inputs[0]


def _layer_of_centers(model: nn.Module, radius: float) -> nn.Linear:
    """The last linear layer, or ModelError where its weight is not the fixed centers of this radius."""
    found = last_linear(model)
    if found is not None and not (weight := found[1].weight).requires_grad and found[1].bias is None:
        mu = centers(len(weight), radius, weight.shape[1]).to(weight)
        if torch.allclose(weight, mu, atol=1e-2 * radius):
            return found[1]
    raise ModelError(
        f"mmc(radius={radius:g}, on='features'): the last linear layer of {type(model).__name__} does not hold these "
        f"centers, fixed and without a bias; expected max_mahalanobis(NETWORK, radius={radius:g})"
    )


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
    *,
    passes: int = 3,
) -> Objective:
    """TRADES: mean_b CE(f(x), y) + β KL(softmax f(x) ‖ softmax f(x*)), where x* ascends that divergence.

    ``beta`` is the weight β of robustness, the paper's 1/λ. Start, mode and the three passes are those of its authors'
    program, the third for the divergence; that of Liang & Huang 2021 takes β = 1 and two passes. The attack adds steps + 1.

    Source: Zhang et al. 2019, Eq. 5 and Algorithm 1.
    """
    check_number("beta", beta, "a weight of at least 0", least=0)
    check_ascent(loss="kl", start=start, norm=norm, eps=eps, steps=steps, step=step)
    check_choice("passes", passes, (1, 2, 3))
    attack = PGD(norm, eps, steps, step, start=start, loss="kl", mode=mode)
    return _on_both(attack, _clean_plus(1, beta, attack), passes)


@factory("objective")
def mixed(
    lam: float = 1.0,
    eps: float = 8 / 255,
    norm: float = math.inf,
    loss: str = "l2",
    steps: int = 10,
    step: float | None = None,
    mode: Mode = "eval",
    *,
    clean: float = 1.0,
    start: Start = "uniform",
    passes: int = 2,
) -> Objective:
    """Clean plus adversarial loss: mean_b c ℓ(y, f(x)) + λ max_{x*} ℓ_adv(x, x*), with ℓ the cross-entropy.

    ``lam`` is λ and ``clean`` is c, 1 in the paper's equation; lam=1, clean=0 and loss="ce" is :func:`pgd_at`, and
    lam=a, clean=1-a a share a of attacked points. x* is what projected gradient ascent on ℓ_adv finds. The ``loss`` ℓ_adv is
    "l1", "l2", "linf" for ‖f(x) - f(x*)‖_q on logits, "kl" for KL(f(x) ‖ f(x*)), or "ce" for the cross-entropy at x*.

    Source: Roth et al. 2020, Eq. 14 and Theorem 1.
    """
    check_choice("loss", loss, MIXED_LOSSES)
    check_mixture(lam=lam, clean=clean)
    check_ascent(loss=loss, start=start, norm=norm, eps=eps, steps=steps, step=step)
    check_choice("passes", passes, (1, 2))
    attack = PGD(norm, eps, steps, step, start=start, loss=loss, mode=mode)
    if not clean and loss not in AGAINST_CLEAN:
        return _on_attacked(attack, lambda logits, y: lam * F.cross_entropy(logits, y))
    return _on_both(attack, _clean_plus(clean, lam, attack), passes)


@factory("objective")
def alp(
    beta: float = 1.0,
    eps: float = 8 / 255,
    norm: float = math.inf,
    steps: int = 10,
    step: float | None = None,
    start: Start = "uniform",
    mode: Mode = "eval",
    *,
    passes: int = 2,
) -> Objective:
    """Adversarial logit pairing: ½ CE(f(x), y) + ½ CE(f(x*), y) + β mean_{b,i} (f(x) - f(x*))²_{b,i}, x* = PGD(x).

    ``beta`` is β. Two passes are those of the program of Liang & Huang, which starts the attack with start="gaussian";
    that of Kannan et al. takes one.

    Source: Kannan, Kurakin & Goodfellow 2018; Liang & Huang 2021 train with it.
    """
    check_number("beta", beta, "a weight of at least 0", least=0)
    check_settings(any_norm=True, norm=norm, eps=eps, steps=steps, step=step)
    check_choice("passes", passes, (1, 2))

    def loss(clean: Tensor, attacked: Tensor, again: Tensor, y: Tensor) -> Tensor:
        both = F.cross_entropy(clean, y) + F.cross_entropy(attacked, y)
        return both / 2 + beta * F.mse_loss(clean, attacked)

    return _on_both(PGD(norm, eps, steps, step, start=start, mode=mode), loss, passes)


PairLoss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(clean logits, attacked logits, clean logits of the third pass or the same, labels) -> loss."""


def _clean_plus(clean_weight: float, weight: float, attack: PGD) -> PairLoss:
    """Weighted cross-entropy on clean inputs plus ``weight`` times the loss that the attack climbs."""

    def loss(clean: Tensor, attacked: Tensor, again: Tensor, y: Tensor) -> Tensor:
        compare = AGAINST_CLEAN.get(attack.loss)
        climbed = compare(attacked, again).mean() if compare else F.cross_entropy(attacked, y)
        return clean_weight * F.cross_entropy(clean, y) + weight * climbed

    return loss


def _on_attacked(attack: PGD, loss: Callable[[Tensor, Tensor], Tensor]) -> Objective:
    """The objective loss(f(x*), y)."""
    adversary = _adversary(attack)

    @explained
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        logits = _logits(model, adversary(model, x, y))
        return Outcome(loss(logits, y), logits)

    return objective


def _on_both(attack: PGD, loss: PairLoss, passes: int) -> Objective:
    """The objective loss(f(x), f(x*), f(x), y), from so many passes."""
    adversary = _adversary(attack)

    @explained
    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Outcome:
        points = adversary(model, x, y)
        if passes == 1:
            clean, attacked = wide(_logits(model, torch.cat([x, points]))).chunk(2)
        else:
            clean, attacked = wide(_logits(model, x)), wide(_logits(model, points))
        again = wide(_logits(model, x)) if passes == 3 else clean
        return Outcome(loss(clean, attacked, again, y), attacked)

    return objective


def _adversary(attack: PGD) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    """(model, x, y) -> x*, from another start each time, by the run's own random state."""
    checked = False

    def adversary(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        nonlocal checked
        with default_modes(keep_autocast=True):
            x, y, monitor = ordinary(x), ordinary(y), None
            if not checked:  # once: on a GPU each check costs a wait
                check_inputs(x, y)
                monitor, checked = GradientMonitor.of(y), True
            seed = int(torch.randint(2**62, ()))
            return attack.ascend(training_surrogate(model, x, attack.mode), x, y, seed, monitor)

    return adversary
