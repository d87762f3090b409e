"""How far away the closest misclassified input must be, by a bound on the Lipschitz constant."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks.losses import wide
from opnorm.certificates.layer_bounds import Affine, Step, Unknown, line_of, steps_of
from opnorm.certificates.linear_bounds import Balls, intervals
from opnorm.errors import AttackError
from opnorm.norms.network.lipschitz import lipschitz_bound

__all__ = ["lipschitz_radius"]

BATCH = 64
SLACK = 1e-3  # of the largest logit, where the rounding of a network is not followed


def lipschitz_radius(model: nn.Module, x: Tensor, y: Tensor, norm: float = math.inf) -> Tensor:
    """No input closer than this is misclassified.

        min_j (z_y - z_j - s_yj) / L_yj,   L_yj = min(‖e_y - e_j‖_{p*} L,  ‖w_y - w_j‖_{p*} L'),

    with z the logits, L an upper bound on the Lipschitz constant of the network from ℓp to ℓp, w the rows of a last linear
    layer and L' the bound of what comes before it. s is for the rounding of the logits at both ends: proved for the
    sequential networks that have bounds, for inputs in [0, 1]; 0.1 % of the largest logit for all others.

    Args:
        model: gives logits (B, K); taken in eval mode and left as it was.
        x: (B, C, H, W) in [0, 1].
        y: labels (B,).
        norm: p: 1, 2 or inf.

    Returns:
        (B,) in pixel values, float64; 0 where the model is wrong, and everywhere if no bound is known.

    Raises:
        AttackError: a setting, an input or a model that makes no sense.

    Source: Tsuzuku, Sato & Sugiyama 2018, Eq. 4 and Proposition 1.
    """
    if isinstance(norm, bool) or norm not in (1, 2, math.inf):
        raise AttackError(f"norm={norm!r} is not known here; expected 1, 2 or inf")
    check_inputs(x, y)
    if not len(x):
        return torch.zeros_like(y, dtype=torch.float64)
    with evaluating(model):
        found = []
        for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True):
            found.append(model(part))
            check_logits(found[-1], labels)
        logits = torch.cat([wide(z) for z in found]).double()
        stretch = _stretch(model, x[:1], norm, logits.shape[1]).to(logits.device)
        try:
            off = _rounding(steps_of(model, tuple(x.shape[1:])), x)
        except Unknown:
            off = SLACK / 2 * logits.abs().amax(1, keepdim=True).expand_as(logits)
    off = off.expand_as(logits)
    right, right_off = (t.gather(1, y[:, None]) for t in (logits, off))
    radius = ((right - logits - 2 * (right_off + off)) / stretch[y]).nan_to_num(0.0, posinf=math.inf)
    return radius.scatter(1, y[:, None], math.inf).amin(1).clamp(min=0)


def _stretch(model: nn.Module, example: Tensor, norm: float, classes: int) -> Tensor:
    """L_yj (K, K); infinite where nothing is known."""
    dual = {1: math.inf, 2: 2, math.inf: 1}[norm]

    def apart(rows: Tensor) -> Tensor:
        return torch.linalg.vector_norm(rows[:, None] - rows, ord=dual, dim=2)

    whole = lipschitz_bound(model, example, norm).value
    found = apart(torch.eye(classes, dtype=torch.float64)) * (math.inf if whole is None else whole)
    try:
        layers = [layer for _, layer in line_of(model)]
    except Unknown:
        return found
    if len(layers) > 1 and type(layers[-1]) is nn.Linear:
        body = lipschitz_bound(nn.Sequential(*layers[:-1]), example, norm).value
        if body is not None:
            found = torch.minimum(found, body * apart(layers[-1].weight.double()).cpu())
    return found * (1 + 1e-9)


def _rounding(steps: Sequence[Step], x: Tensor) -> Tensor:
    """How far the computed logits can be from the formula, for any input in [0, 1]: (1, K)."""
    balls = Balls(torch.full_like(x[:1], 0.5, dtype=torch.float64), 0.5, math.inf)
    off = torch.zeros_like(balls.x)
    for step, box in zip(steps, intervals(steps, balls), strict=False):
        if isinstance(step, Affine):
            off = step.size @ off
            off = off + step.rounding(*box)
        else:  # max(x, 0), and the largest of a window, move by no more than their inputs
            off = step.interval(off, off)[1]
    return off
