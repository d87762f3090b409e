"""Proofs that no point of a ball fools a network: what no attack needs to try.

From cheap to dear, each on the points that the ones before left open:

- "lipschitz": the margin to each other class against the radius times a bound on the Lipschitz constant;
- "ibp": intervals from layer to layer;
- "crown-ibp": linear bounds pulled back to the inputs, with the intervals to bound each ReLU;
- "crown": linear bounds for these, too.

All but the first are for sequential networks of linear layers, convolutions, ReLU, pooling, Flatten, batch norm and
:class:`opnorm.models.modules.Normalize`. They prove what the model computes in float32 (or in float64, or in TF32 on a GPU),
not what its formula says, for sums in any order; see :mod:`opnorm.certificates.layer_bounds`.
Fast convolutions that add up other
products (Winograd, FFT), which some GPU libraries choose, are outside of the proof.
"""

import math
import warnings

import torch
from torch import Tensor, nn

from opnorm._core.modes import model_state_preserved
from opnorm.attacks._autoattack import Certificate
from opnorm.attacks._checks import check_inputs, check_logits, is_amount
from opnorm.certificates.layer_bounds import Step, Unknown, steps_of
from opnorm.certificates.linear_bounds import Balls, crown_work, intervals, lowest, tightened
from opnorm.certificates.radius import lipschitz_radius as lipschitz_radius
from opnorm.errors import AttackError
from opnorm.spec import factory

__all__ = ["proof"]

METHODS = ("lipschitz", "ibp", "crown-ibp", "crown")
BATCH = 64
PATIENCE = 8  # points that CROWN may fail on, one after another, the most promising first
BUDGET = 2e8  # multiplications that "auto" allows CROWN for a point, about what an attack on it takes


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
    _check_method(method)

    def certify(model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float) -> Tensor:
        return certified(model, x, y, eps, norm, method)

    return certify


def certified(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: float = math.inf, method: str = "auto"
) -> Tensor:
    """The points of which it is proved that the model, in eval mode, gets all of [0, 1] within ``eps`` right.

    Args:
        model: gives logits (B, K); comes back as it was.
        x: (B, C, H, W) in [0, 1].
        y: labels (B,).
        eps: radius, in pixel values.
        norm: of the ball: 1, 2 or inf.
        method: as for :func:`proof`.

    Returns:
        (B,) bool. False says nothing; a warning tells where a method cannot treat the network.

    Raises:
        AttackError: a setting, an input or a model that makes no sense.

    Source: Tsuzuku et al. 2018 (Lipschitz); Gowal et al. 2018 (intervals); Zhang et al. 2018, 2020 (CROWN, CROWN-IBP).
    """
    _check_method(method)
    if not is_amount(eps):
        raise AttackError(f"eps={eps!r}: expected a radius of at least 0 in pixel values of [0, 1]")
    if isinstance(norm, bool) or norm not in (1, 2, math.inf):
        raise AttackError(f"norm={norm!r} is not known here; expected 1, 2 or inf")
    check_inputs(x, y)
    proved = torch.zeros_like(y, dtype=torch.bool)
    if not len(x):
        return proved
    with model_state_preserved(model), torch.no_grad():
        x = x.detach()
        for points in torch.arange(len(x), device=x.device).split(BATCH):
            logits = model(x[points])
            check_logits(logits, y[points])
            proved[points] = logits.argmax(1) == y[points]
        candidates = proved.nonzero().squeeze(1)
        proved[:] = False
        if method in ("auto", "lipschitz") and len(candidates):
            proved[candidates] = lipschitz_radius(model, x[candidates], y[candidates], norm) > eps
        if method == "lipschitz":
            return proved
        try:
            if torch.is_autocast_enabled(x.device.type):
                raise Unknown("autocast computes in 16 bits")
            steps = steps_of(model, tuple(x.shape[1:]))
        except Unknown as reason:
            warnings.warn(f"no bounds for this network, so these prove nothing: {reason}", stacklevel=2)
            return proved
        left = candidates[~proved[candidates]]
        if len(left):
            proved[left] = _by_bounds(steps, Balls(x[left].double(), eps, norm), y[left], method)
    return proved


def _check_method(method: str) -> None:
    if method not in (*METHODS, "auto"):
        raise AttackError(f"method={method!r} is not known; expected auto or one of {', '.join(METHODS)}")


def _by_bounds(steps: list[Step], balls: Balls, y: Tensor, method: str) -> Tensor:
    """Intervals and CROWN-IBP, batch by batch, and then CROWN."""
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
        failed = 0
        order = margin.argsort(descending=True)
        for point in order[(margin[order] <= 0) & cheap[order]][:, None]:
            own = balls.select(point)
            boxes = tightened(steps, intervals(steps, own), own)
            margin[point] = _margin(steps, boxes, own, y[point])
            failed = 0 if margin[point] > 0 else failed + 1
            if method == "auto" and failed == PATIENCE:
                break
    return margin > 0


def _margin(steps: list[Step], boxes: list[tuple[Tensor, Tensor]], balls: Balls, y: Tensor) -> Tensor:
    """The least of z_y - z_j over all other classes j, bounded from below."""
    classes = boxes[-1][0].shape[1]
    eye = torch.eye(classes, dtype=torch.float64, device=y.device)
    gaps = lowest(steps, boxes, balls, eye[y][:, None] - eye)
    return gaps.scatter(1, y[:, None], math.inf).amin(1)
