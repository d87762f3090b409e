"""Optimizers by name: torch's, with torch's defaults, but for SGD's rate and momentum.

A learning rate that is not above 0, or a setting outside of its range, is a SpecError. Weight decay is a regularizer
(``weight_decay(lam, decoupled=...)``), and an option of AdamW alone, whose definition includes it.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from opnorm._core.settings import check_number, check_shares
from opnorm._core.training_numbers import check_momentum, check_rate
from opnorm.spec import factory

__all__ = ["adam", "adamw", "rmsprop", "sgd"]

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@factory("optimizer")
def sgd(lr: float = 0.05, momentum: float = 0.9, nesterov: bool = False) -> MakeOptimizer:
    """Stochastic gradient descent: v ← momentum v + g, W ← W - lr v."""
    check_rate(lr)
    check_momentum(momentum, nesterov)
    return lambda parameters: _light(torch.optim.SGD)(parameters, lr=lr, momentum=momentum, nesterov=nesterov)


@factory("optimizer")
def adam(lr: float = 1e-3, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> MakeOptimizer:
    """Adam: m ← β₁ m + (1 - β₁) g, v ← β₂ v + (1 - β₂) g², W ← W - lr m̂ / (√v̂ + eps), m̂ and v̂ without their bias.

    Source: Kingma & Ba 2015, Algorithm 1.
    """
    check_rate(lr)
    check_shares(beta1=beta1, beta2=beta2)
    check_number("eps", eps, "a number above 0", above=0)
    return lambda parameters: _light(torch.optim.Adam)(parameters, lr=lr, betas=(beta1, beta2), eps=eps)


@factory("optimizer")
def adamw(
    lr: float = 1e-3, weight_decay: float = 0.01, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8
) -> MakeOptimizer:
    """Adam after W ← (1 - lr weight_decay) W, of all weights that are trained.

    Source: Loshchilov & Hutter 2019, Algorithm 2.
    """
    check_rate(lr)
    check_shares(beta1=beta1, beta2=beta2)
    check_number("weight_decay", weight_decay, "a strength of at least 0", least=0)
    check_number("eps", eps, "a number above 0", above=0)
    return lambda parameters: _light(torch.optim.AdamW)(
        parameters, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay
    )


@factory("optimizer")
def rmsprop(lr: float = 1e-2, alpha: float = 0.99, momentum: float = 0.0, eps: float = 1e-8) -> MakeOptimizer:
    """RMSprop: v ← alpha v + (1 - alpha) g², b ← momentum b + g / (√v + eps), W ← W - lr b.

    Source: Tieleman & Hinton 2012, lecture 6.5.
    """
    check_rate(lr)
    check_shares(alpha=alpha, momentum=momentum)
    check_number("eps", eps, "a number above 0", above=0)
    return lambda parameters: _light(torch.optim.RMSprop)(
        parameters, lr=lr, alpha=alpha, momentum=momentum, eps=eps
    )


@functools.cache
def _light(optimizer: type[torch.optim.Optimizer]) -> Any:
    """The optimizer without the wrappers that load torch's compiler, to tell it to leave these methods out: 1.5 s."""
    wrapped = ("add_param_group", "zero_grad", "state_dict", "load_state_dict", "step")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in wrapped}
    methods["step"] = torch.no_grad()(methods["step"])  # which its wrapper does, too
    return type(optimizer.__name__, (optimizer,), methods)
