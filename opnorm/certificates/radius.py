"""A lower bound of the distance to the closest misclassified input, by a bound on the Lipschitz constant."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.layers import hooks_of_all_modules, is_standard
from opnorm._core.lp import lp_norm
from opnorm._core.modes import evaluating, in_default_modes
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_choice
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks.losses import wide
from opnorm.certificates.linear_bounds import DUAL, Balls, intervals, propagated_rounding
from opnorm.certificates.network_bounds import Step, has_bounds, network_bounds
from opnorm.errors import AttackError, BoundError
from opnorm.norms.network.lipschitz import lipschitz_bound

__all__ = ["lipschitz_radius"]

BATCH = 64
SLACK = 1e-3  # of the largest logit, where the rounding of a network is not bounded


@in_default_modes
def lipschitz_radius(model: nn.Module, x: Tensor, y: Tensor, norm: float = math.inf) -> Tensor:
    """The radius within which no input is misclassified.

        min_j (z_y - z_j - s_yj) / L_yj,   L_yj = min(‖e_y - e_j‖_{p*} L,  ‖w_y - w_j‖_{p*} L'),

    with z the logits, L an upper bound on the Lipschitz constant of the network from ℓp to ℓp, w the rows of a last linear
    layer and L' the bound of the layers before it. s bounds the rounding of the logits at both points: proved for sequential
    networks with bounds, for inputs in [0, 1]; for all others 0.1 % of the largest logit, or what is proved if that is less.

    Args:
        model: gives logits (B, K); taken in eval mode, unchanged afterwards.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        norm: p: 1, 2 or inf.

    Returns:
        (B,) in pixel values, float64; 0 where the model is wrong, and everywhere if no bound is known.

    Raises:
        AttackError: a setting, an input or a model that makes no sense.

    Source: Tsuzuku, Sato & Sugiyama 2018, Eq. 4 and Proposition 1.
    """
    check_choice("norm", norm, (1, 2, math.inf), AttackError)
    check_inputs(x, y)
    if not len(x):
        return torch.zeros_like(y, dtype=torch.float64)
    with evaluating(model):
        batches = []
        for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            batches.append(output_of(model, part))
            check_logits(batches[-1], labels)
        logits = torch.cat([wide(z) for z in batches]).double()
        lipschitz = _lipschitz_of_gaps(model, x[:1], norm, logits.shape[1]).to(logits.device)
        off = SLACK / 2 * logits.abs().amax(1, keepdim=True).expand_as(logits)
        try:
            proved = _logit_rounding(network_bounds(model, tuple(x.shape[1:])), x).expand_as(logits)
            off = proved if _is_sequential(model) else torch.minimum(proved, off)
        except BoundError:
            pass
    right, right_off = (t.gather(1, y[:, None]) for t in (logits, off))
    radius = ((right - logits - 2 * (right_off + off)) / lipschitz[y]).nan_to_num(0.0, posinf=math.inf)
    return radius.scatter(1, y[:, None], math.inf).amin(1).clamp(min=0)


def _lipschitz_of_gaps(model: nn.Module, example: Tensor, norm: float, classes: int) -> Tensor:
    """L_yj (K, K); infinite where no bound is known."""

    def distances(rows: Tensor) -> Tensor:
        return lp_norm(rows[:, None] - rows, DUAL[norm], 2)

    whole = lipschitz_bound(model, example, norm).value
    bound = distances(torch.eye(classes, dtype=torch.float64)) * (math.inf if whole is None else whole)
    try:
        layers = _layers_in_a_row(model)
    except BoundError:
        return bound
    if len(layers) > 1 and type(layers[-1]) is nn.Linear:
        body = lipschitz_bound(nn.Sequential(*layers[:-1]), example, norm).value
        if body is not None:
            bound = torch.minimum(bound, body * distances(layers[-1].weight.double()).cpu())
    return bound * (1 + 1e-9)


def _layers_in_a_row(model: nn.Module) -> list[nn.Module]:
    """The layers of nested ``nn.Sequential`` in order; any other model is one layer.

    Raises:
        BoundError: a module has hooks.
    """
    if hooks_of_all_modules() or model._forward_hooks or model._forward_pre_hooks:
        raise BoundError("hooks may change what a module computes")
    if not is_standard(model, nn.Sequential):
        return [model]
    return [layer for child in model.children() for layer in _layers_in_a_row(child)]


def _is_sequential(model: nn.Module) -> bool:
    """Whether a model is layers with bounds, one after the other."""
    try:
        return all(map(has_bounds, _layers_in_a_row(model)))
    except BoundError:
        return False


def _logit_rounding(steps: Sequence[Step], x: Tensor) -> Tensor:
    """The largest error of the computed logits for any input in [0, 1]: (1, K)."""
    balls = Balls(torch.full_like(x[:1], 0.5, dtype=torch.float64), 0.5, math.inf)
    boxes, off = intervals(steps, balls), [torch.zeros_like(balls.x)]
    for step in steps:
        off.append(propagated_rounding(step, off, step.box(boxes)))
    return off[-1]
