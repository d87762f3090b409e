"""Input-gradient regularization, also known as double backpropagation (Drucker & LeCun 1992)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.layers import check_initialized
from opnorm._core.modes import Mode, in_default_modes
from opnorm._core.settings import MODES, check_choice, check_number
from opnorm.attacks._checks import check_classes
from opnorm.jacobian import linearized, lp_norm
from opnorm.jacobian.products import check_points
from opnorm.regularizers.batch_statistics import point_by_point
from opnorm.regularizers.hooks import Hooks, Regularizer, bound
from opnorm.spec import factory

__all__ = ["input_gradient"]


@factory("regularizer")
def input_gradient(lam: float = 1e-2, q: float = 2, power: float = 2, *, mode: Mode = "as is") -> Regularizer:
    """λ E‖∇_x ℓ(y, f(x))‖_q^r, ℓ the cross-entropy of each point by itself.

    ``lam`` is λ, in which Drucker & LeCun's factor 1/2 is; ``power`` is r, at least 1; q is 1, 2 or inf. The ``mode`` of
    batch norm, and dropout, are as in :func:`opnorm.regularizers.dd_onr`.

    Source: Drucker & LeCun 1992; Ross & Doshi-Velez 2018, q = power = 2.
    """
    check_number("lam", lam, "a strength of at least 0", least=0)
    check_choice("q", q, (1, 2, math.inf))
    check_choice("mode", mode, MODES)
    check_number("power", power, "an exponent of at least 1", least=1)

    @in_default_modes
    def bind(model: nn.Module, example: Tensor) -> Hooks:
        check_initialized(model, "input_gradient")
        check_points(example)
        with linearized(model, example[:1]):  # errors come before training
            pass

        def penalty(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
            with point_by_point(model, x, mode) as f:
                inputs = x.detach().clone().requires_grad_()
                logits = f(inputs)
                check_classes(logits, len(x))
                loss = F.cross_entropy(logits, y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, inputs, create_graph=True)
            return lam * lp_norm(gradient, q).pow(power).mean()

        return bound(Hooks(penalty=penalty), (), "input_gradient")

    return bind
