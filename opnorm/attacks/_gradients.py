"""Gradients with respect to the inputs, and where they are of no use to an attack."""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from opnorm._core.lp import lp_norm, per_row
from opnorm.errors import AttackError

__all__ = ["GradientMonitor", "finite_gradient", "input_gradient"]


def input_gradient(loss: Tensor, z: Tensor, *, keep_graph: bool = False) -> Tensor:
    """The gradient of each point's own loss (B,) with respect to z (B, ...).

    Raises:
        AttackError: the loss does not depend on z.
    """
    if not loss.requires_grad:
        raise AttackError("no gradient reaches the inputs; is there a detach() or no_grad() in the model?")
    return torch.autograd.grad(loss.sum(), z, retain_graph=keep_graph)[0]


def finite_gradient(grad: Tensor) -> Tensor:
    """The gradients (B, ...), 0 where they are NaN; of points with infinite components these are ±1, others at most 0.001.

    An infinite component, as of a square root at 0, outweighs all others, and its sign is the direction of ascent.
    """
    if _known_finite(grad):
        return grad
    infinite = grad.isinf()
    some = infinite.flatten(1).any(1)
    rest = torch.nan_to_num(grad, 0.0, 0.0, 0.0)
    small = rest / (1000 * per_row(lp_norm(rest, math.inf).clamp(min=torch.finfo(grad.dtype).tiny), grad))
    return torch.where(per_row(some, grad), torch.where(infinite, grad.sign(), small), rest)


def _known_finite(grad: Tensor) -> bool:
    """Whether all are finite, told by one sum on a CPU; a GPU would have to be waited for."""
    return grad.device.type == "cpu" and math.isfinite(float(grad.sum()))


@dataclass(frozen=True)
class GradientMonitor:
    """Records the points at which the gradient gives no direction.

    Attributes:
        zero: (B,), the last gradient is exactly zero, at a point that is not misclassified.
        nonfinite: (B,), some gradient was NaN or infinite.
    """

    zero: Tensor
    nonfinite: Tensor

    @staticmethod
    def of(y: Tensor) -> "GradientMonitor":
        """For points with the labels y (B,)."""
        zero = torch.zeros_like(y, dtype=torch.bool)
        return GradientMonitor(zero, zero.clone())

    def record(
        self, points: Tensor | slice, grad: Tensor, misclassified: Tensor, without: Tensor | None = None
    ) -> None:
        """The gradients at some points, given by their indices; of those ``without`` one, what is known stays."""
        largest = grad.flatten(1).abs().amax(1)
        if float(largest.min()) > 0 and float(largest.max()) < math.inf and not self.zero.any():
            return
        if without is not None:
            every = torch.arange(len(self.zero), device=grad.device)
            points, largest, misclassified = (t[~without] for t in (every[points], largest, misclassified))
        self.zero[points] = (largest == 0) & ~misclassified
        self.nonfinite[points] |= ~(largest < math.inf)

    def warn(self) -> None:
        """One warning for each kind, with the number of points."""
        for points, kind in ((self.zero, "exactly zero"), (self.nonfinite, "NaN or infinite")):
            if count := int(points.sum()):
                warnings.warn(
                    f"the gradient is {kind} for {count} of {len(points)} points: the attack has no direction there, "
                    "and a robust accuracy from it is too high",
                    stacklevel=4,
                )
