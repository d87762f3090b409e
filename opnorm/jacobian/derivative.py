"""Whether autograd gives the derivative of a network: not after ``.detach()``, ``.data``, or a replaced backward."""

import warnings

import torch
from torch import Tensor, nn

from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.jacobian.products import Jacobian

__all__ = ["warn_unless_derivative"]

STEPS = 6  # halvings of the difference
AGREE, DIFFER = 0.02, 0.1  # relative, of differences with each other, and of them with the Jacobian
ROUNDING = 64  # units, of the largest output


def warn_unless_derivative(model: nn.Module, x: Tensor, J: Jacobian) -> None:
    """Warn where the network has a derivative at the first point along a random direction that is not J v.

    With h halved from 1 % of the size of x on, (f(x + h v) - f(x)) / h and (f(x) - f(x - h v)) / h agree with each other,
    and from one h to the next, as soon as h is small enough; beside a kink or a step, and in rounding, they do not, and
    nothing is said.
    """
    x = x[:1].detach()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x)
    v = v / v.norm()
    expected = (J @ v)[0].flatten().double()
    if not bool(expected.isfinite().all()):
        return
    largest, h = float(J.outputs[0].detach().abs().max()), 1e-2 * max(float(x.norm()), 1e-2)
    before: Tensor | None = None
    with torch.no_grad(), model_state_preserved(model):
        at = output_of(model, x).flatten().double()
        for _ in range(STEPS):
            ahead, behind = (
                (output_of(model, x + s * h * v).flatten().double() - at) / (s * h) for s in (1, -1)
            )
            own = max(float(ahead.norm()), float(behind.norm()))
            size = max(own, float(expected.norm()))
            noise = ROUNDING * torch.finfo(x.dtype).eps * largest * len(at) ** 0.5 / h
            if noise > AGREE * size:
                return
            spread = [ahead - behind] + ([] if before is None else [ahead - before])
            if before is not None and all(float(d.norm()) <= AGREE * own for d in spread):
                if float((ahead - expected).norm()) > DIFFER * size:
                    break
                return
            before, h = ahead, h / 2
        else:
            return
    warnings.warn(
        f"the Jacobian of {type(model).__name__} by autograd is not its derivative: along a random direction the outputs of "
        f"the first point change by {float(ahead.norm()):.3g} a unit, the Jacobian says {float(expected.norm()):.3g}. Is a "
        "part of the forward detached, or is its backward replaced? The norm is that of what autograd gives",
        stacklevel=5,
    )
