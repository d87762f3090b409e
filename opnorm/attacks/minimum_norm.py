"""The distance of each point to its closest misclassified point, found by attacks: upper bounds.

Distances are in pixel values of [0, 1], in some norm, and computed in float64 from the points that were found.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.argument_checks import check_tensor, named
from opnorm._core.attack_settings import check_settings, is_amount
from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.attacks._checks import check_inputs, check_logits
from opnorm.attacks._pgd import Attack
from opnorm.attacks._rows import column, where
from opnorm.errors import AttackError

__all__ = ["MinimumNormPoints", "accuracy_curve", "bisect_to_boundary", "distances", "minimal_eps"]

BISECTIONS = 10  # of the segment that leads to a point: to 0.1 % of its length


class MinimumNormPoints(NamedTuple):
    """The closest misclassified points that were found.

    Attributes:
        points: (B, ...) in [0, 1]; the clean point where none was found, and where it is misclassified itself.
        distance: (B,), float64; 0 where the clean point is misclassified, inf where nothing was found.
    """

    points: Tensor
    distance: Tensor


@in_default_modes
def minimal_eps(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Callable[[float], Attack],
    norm: float = math.inf,
    highest: float = 64 / 255,
    halvings: int = 8,
    mode: Mode = "eval",
) -> MinimumNormPoints:
    """For each point the smallest ε at which an attack succeeds, by bisection.

    Each point is attacked at the middle of the radii that are still undecided for it, on a grid of 2^halvings radii up to
    the highest; all points with the same middle form one batch. A misclassified point decides all radii from its distance
    on, which may be well below the radius of the attack.

    Args:
        model: gives logits (B, K); comes back as it was.
        x: (B, ...) in [0, 1].
        y: labels (B,).
        attack: makes the attack for a radius: ``lambda eps: pgd(norm=2, eps=eps)``.
        norm: of the distance, the same as that of the attack.
        highest: the largest radius, in pixel values of [0, 1]; it is tried first.
        halvings: how fine the grid is.
        mode: of the model when it classifies the points.

    Returns:
        Upper bounds of the true distances; inf where the attack fails at the highest radius.

    Raises:
        AttackError: a setting or an input that makes no sense, or a point of the attack beyond its radius.
    """
    _check_settings(attack, norm, highest, halvings)
    check_inputs(x, y)
    x = x.detach()
    points, cells = x.clone(), 2**halvings
    wrong = _wrong(model, x, y, mode)
    distance = torch.zeros(len(x), dtype=torch.float64, device=x.device).masked_fill(~wrong, math.inf)
    # robust at radius low, misclassified at radius high, both in cells; the first try is at the highest
    low, high = torch.zeros_like(y), torch.where(wrong, 1, 2 * cells)
    while (open_ := high - low > 1).any():
        middle = (low + high) // 2
        for at in middle[open_].unique().tolist():
            here, eps = (open_ & (middle == at)).nonzero().squeeze(1), at / cells * highest
            found = attack(eps)(model, x[here], y[here])
            far = distances(x[here], found, norm)
            if (far > eps * (1 + 1e-6)).any():
                raise AttackError(
                    f"the attack made for eps={eps:.4g} went as far as {float(far.max()):.4g} in norm {norm:g}; "
                    "does it take another norm?"
                )
            wrong = _wrong(model, found, y[here], mode)
            low[here[~wrong]] = at if at < cells else 2 * cells
            here, found, far = here[wrong], found[wrong], far[wrong]
            high[here] = (far / highest * cells).ceil().long().clamp(min=1, max=at)
            points[here], distance[here] = found, far
    return MinimumNormPoints(points, distance)


def _check_settings(attack: object, norm: float, highest: float, halvings: int) -> None:
    if not is_amount(highest) or highest == 0:
        raise AttackError(f"highest={highest!r}: expected a radius above 0 in pixel values, such as 64/255")
    if isinstance(halvings, bool) or not isinstance(halvings, int) or not 0 <= halvings <= 24:
        raise AttackError(f"halvings={halvings!r}: expected a whole number from 0 to 24")
    check_settings(any_norm=True, norm=norm)
    if not callable(attack) or hasattr(attack, "eps"):
        raise AttackError(
            f"attack is {named(attack)}; expected a function that makes the attack for a radius, such as "
            "lambda eps: pgd(norm=2, eps=eps)"
        )


def accuracy_curve(distance: Tensor, radii: Sequence[float]) -> Tensor:
    """The share of points that are robust at each radius, float64: those whose closest misclassified point is further away.

    Args:
        distance: (B,), of :class:`MinimumNormPoints`: inf where nothing was found, so that the point is robust at every
            radius.
        radii: in pixel values of [0, 1].

    Raises:
        AttackError: no points, or a distance is NaN.
    """
    check_tensor("distance", distance, "distances (B,)", AttackError)
    if not isinstance(radii, Sequence) or not all(is_amount(radius) for radius in radii):
        raise AttackError(f"radii={radii!r:.60}: expected numbers of at least 0, such as (0.1, 0.2)")
    if not len(distance) or distance.isnan().any():
        raise AttackError(f"expected at least one distance and no NaN, got {distance}")
    at = torch.as_tensor(radii, dtype=torch.float64, device=distance.device)
    return (distance.double()[:, None] > at).double().mean(0)


def distances(x: Tensor, z: Tensor, norm: float) -> Tensor:
    """‖z - x‖_p of each pair (B, ...), in float64."""
    return torch.linalg.vector_norm((z.double() - x.double()).flatten(1), norm, dim=1)


def bisect_to_boundary(
    model: nn.Module, x: Tensor, y: Tensor, points: Tensor, found: Tensor, norm: float
) -> MinimumNormPoints:
    """Move misclassified points towards the clean ones, by bisection, as far as they stay misclassified.

    ``found`` (B,) says for which of the correctly classified points x there is a misclassified one in ``points``.
    """
    best, low = points, torch.zeros_like(y, dtype=x.dtype)
    high = torch.ones_like(low)
    for _ in range(BISECTIONS if found.any() else 0):
        middle = (low + high) / 2
        z = torch.lerp(x, points, column(middle, x)).clamp_(0, 1)
        logits = output_of(model, z)
        wrong = found & (logits.argmax(1) != y) & logits.isfinite().all(1)
        best = where(wrong, z, best)
        low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
    best = where(found, best, x)
    return MinimumNormPoints(best, distances(x, best, norm).where(found, math.inf))


def _wrong(model: nn.Module, x: Tensor, y: Tensor, mode: Mode) -> Tensor:
    with model_state_preserved(model, mode), torch.no_grad():
        logits = output_of(model, x)
    check_logits(logits, y)
    return logits.argmax(1) != y
