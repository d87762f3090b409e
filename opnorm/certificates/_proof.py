"""Certificates from cheap to expensive, each for the points that the ones before left open.

- "lipschitz": the margin to each other class against the radius times a bound on the Lipschitz constant;
- "ibp": intervals from layer to layer;
- "crown-ibp": linear bounds propagated backward to the inputs, with the intervals to bound each ReLU;
- "crown": linear bounds for these, too.

All but the first walk the graph of the forward: layers and functions with bounds, sums and concatenations, see
:mod:`opnorm.certificates.network_bounds`. They hold for the values that the model computes in float32 (or in float64, or in
TF32 on a GPU), for sums in any order. Fast convolutions with other products (Winograd, FFT), which some GPU libraries
choose, are outside of the proof.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from opnorm._core.attack_settings import is_amount
from opnorm._core.modes import in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.settings import check_choice
from opnorm.attacks._autoattack import Certificate
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.certificates.linear_bounds import Balls, crown_work, intervals, lower_bound, tightened
from opnorm.certificates.network_bounds import Box, Step, network_bounds
from opnorm.certificates.radius import lipschitz_radius
from opnorm.errors import AttackError, BoundError
from opnorm.spec import factory

__all__ = ["certified", "proof"]

METHODS = ("auto", "lipschitz", "ibp", "crown-ibp", "crown")
BATCH = 64
PATIENCE = 8  # points that CROWN may fail on in a row, the most promising first
BUDGET = 2e8  # multiplications that "auto" allows CROWN for a point, about those of an attack on it


@factory("certificate")
def proof(method: str = "auto") -> Certificate:
    """A certificate for :func:`opnorm.attacks.autoattack`: ``autoattack(certify=proof())``.

    Args:
        method: "lipschitz", "ibp", "crown-ibp" or "crown" alone; "auto" for one after another, "crown" as long as it is
            cheap and proves something.

    Returns:
        :func:`certified` with this method.

    Raises:
        AttackError: an unknown method.
    """
    check_choice("method", method, METHODS, AttackError)

    def certify(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float) -> Tensor:
        return certified(model, x, y, eps, norm, method)

    return certify


@in_default_modes
def certified(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float = math.inf, method: str = "auto"
) -> Tensor:
    """The points for which it is proved that the model, in eval mode, is right on all of [0, 1] within ``eps``.

    Args:
        model: gives logits (B, K); unchanged afterwards.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        eps: radius, in pixel values.
        norm: of the ball: 1, 2 or inf.
        method: as for :func:`proof`.

    Returns:
        (B,) bool. False is no statement about a point. A network without bounds is named in a warning.

    Raises:
        AttackError: a setting, an input or a model that makes no sense.

    Source: Tsuzuku et al. 2018 (Lipschitz); Gowal et al. 2018 (intervals); Zhang et al. 2018, 2020 (CROWN, CROWN-IBP).
    """
    check_choice("method", method, METHODS, AttackError)
    check_choice("norm", norm, (1, 2, math.inf), AttackError)
    if not is_amount(eps):
        raise AttackError(f"eps={eps!r}: expected a radius of at least 0 in pixel values of [0, 1]")
    check_inputs(x, y)
    proved = torch.zeros_like(y, dtype=torch.bool)
    if not len(x):
        return proved
    with model_state_preserved(model), torch.no_grad():
        x = x.detach()
        right = proved.clone()
        for points in torch.arange(len(x), device=x.device).split(BATCH):
            logits = output_of(model, x[points])
            check_logits(logits, y[points])
            right[points] = logits.argmax(1) == y[points]
        if method in ("auto", "lipschitz") and right.any():
            proved[right] = lipschitz_radius(model, x[right], y[right], norm) > eps
        if method == "lipschitz":
            return proved
        try:
            if x.dtype not in (torch.float32, torch.float64):
                raise BoundError(f"the inputs are {x.dtype}")
            steps = network_bounds(model, tuple(x.shape[1:]))
        except BoundError as reason:
            warnings.warn(f"no bounds for this network, so nothing is proved by them: {reason}", stacklevel=3)
            return proved
        left = right & ~proved
        if left.any():
            proved[left] = _proved_by_bounds(steps, Balls(x[left].double(), eps, norm), y[left], method)
    return proved


def _proved_by_bounds(steps: list[Step], balls: Balls, y: Tensor, method: str) -> Tensor:
    """Intervals and CROWN-IBP, batch by batch, and then CROWN, point by point."""
    margin = balls.x.new_empty(len(y))
    cheap = torch.ones_like(y, dtype=torch.bool)
    for points in torch.arange(len(y), device=y.device).split(BATCH):
        own = balls.select(points)
        boxes = intervals(steps, own)
        if method == "auto":
            cheap[points] = crown_work(steps, boxes) < BUDGET
        low, high = boxes[-1]
        right = low.gather(1, y[points, None]).squeeze(1)
        margin[points] = right - high.scatter(1, y[points, None], -math.inf).amax(1)
        if method != "ibp":
            margin[points] = torch.maximum(margin[points], _margin(steps, boxes, own, y[points]))
    if method in ("auto", "crown"):
        failures = 0
        order = margin.argsort(descending=True)
        for point in order[(margin[order] <= 0) & cheap[order]][:, None]:
            own = balls.select(point)
            margin[point] = _margin(steps, tightened(steps, intervals(steps, own), own), own, y[point])
            failures = 0 if margin[point] > 0 else failures + 1
            if method == "auto" and failures == PATIENCE:
                break
    return margin > 0


def _margin(steps: list[Step], boxes: list[Box], balls: Balls, y: Tensor) -> Tensor:
    """A lower bound of the smallest z_y - z_j over all other classes j."""
    eye = torch.eye(boxes[-1][0].shape[1], dtype=torch.float64, device=y.device)
    gaps = lower_bound(steps, boxes, balls, eye[y][:, None] - eye)
    return gaps.scatter(1, y[:, None], math.inf).amin(1)
