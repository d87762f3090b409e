"""Linear regions of a piecewise linear network: which ReLU units are on, and which entry each max-pooling picks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from opnorm._core.modes import Mode, in_default_modes, model_state_preserved
from opnorm.errors import ModelError
from opnorm.jacobian.products import check_points
from opnorm.norms.network.trace import eagerly

__all__ = ["Pattern", "activations", "same_region", "shared_activations"]

CORNERS: dict[str, Callable[..., tuple[Any, ...]]] = {
    "relu": lambda: (0,),
    "leaky_relu": lambda *_, **__: (0,),
    "_prelu_kernel": lambda *_: (0,),
    "abs": lambda: (0,),
    "threshold": lambda threshold, value: (threshold,),
    "hardtanh": lambda min_val=-1, max_val=1: (min_val, max_val),
    "clamp": lambda min=None, max=None: (min, max),
    "clamp_min": lambda min: (min,),
    "clamp_max": lambda max: (max,),
}
"""Where units have their corners, from the arguments after the input."""
SMOOTH = (
    "celu", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "log_sigmoid_forward", "mish", "selu", "sigmoid", "silu",
    "_softmax", "softplus", "tanh",
)  # fmt: skip


class Pattern(NamedTuple):
    """The activation pattern of each point of a batch, which tells linear regions apart.

    Attributes:
        units: (B, m) int8: of each unit, how many of its corners lie below its input; for a ReLU 1 where it is on, else 0.
        picks: (B, k): which entries max-pooling picks.
        smooth: the operations applied to functions of the input that are not piecewise linear, by torch's names.
    """

    units: Tensor
    picks: Tensor
    smooth: tuple[str, ...]


@in_default_modes
def activations(model: nn.Module, x: Tensor, mode: Mode = "eval") -> Pattern:
    """The activation pattern φ(x) of every point of x, (B, *in), from one forward pass.

    Units are the entries of every ReLU (leaky, parametric and capped ones too), absolute value and clamp, whether they are
    modules or functions.

    Raises:
        NormError: x is not a batch of floating point numbers.

    Source: Raghu et al. 2017; Roth, Kilcher & Hofmann 2020, Sec. 3.
    """
    check_points(x)
    with (
        eagerly(),
        model_state_preserved(model, mode),
        torch.enable_grad(),
        _Recorder(len(x)) as recorded,
    ):
        inputs = x.detach().clone().requires_grad_()  # max-pooling returns its picks for gradients alone
        model(inputs.clone())
    none = torch.zeros(len(x), 0, dtype=torch.int8, device=x.device)
    return Pattern(
        torch.cat([none, *recorded.units], 1),
        torch.cat([none.long(), *recorded.picks], 1),
        tuple(sorted(recorded.smooth)),
    )


def shared_activations(a: Pattern, b: Pattern, on: bool = False) -> Tensor:
    """The share of units in the same state at both points, (B,) float64; max-pooling has no units.

    With ``on``, the share of units that are on at both, m⁻¹ |φ(a) ∩ φ(b)|, which is below 1 at equal points, too.

    Raises:
        ModelError: there are no units.

    Source: Roth, Kilcher & Hofmann 2020, Sec. 5.5 (with ``on``).
    """
    if not a.units.shape[1]:
        raise ModelError("the network has no ReLU or other piecewise linear unit, so no activations to share")
    shared = (a.units > 0) & (b.units > 0) if on else a.units == b.units
    return shared.double().mean(1)


def same_region(a: Pattern, b: Pattern) -> Tensor:
    """Whether the network is one affine map on the segment between the two points, (B,) bool.

    Regions are convex, so equal patterns suffice. False everywhere for a network that is not piecewise linear.
    """
    same = (a.units == b.units).all(1) & (a.picks == b.picks).all(1)
    return same & (not a.smooth)


class _Recorder(TorchDispatchMode):
    """Records the states of units at every operation of a forward pass."""

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = points
        self.units: list[Tensor] = []
        self.picks: list[Tensor] = []
        self.smooth: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::").rstrip("_")
        of_input = bool(args) and isinstance(args[0], Tensor) and args[0].requires_grad
        if name in CORNERS and of_input:
            corners = CORNERS[name](*args[1:], **(kwargs or {}))
            on = [(args[0] > corner).to(torch.int8) for corner in corners if corner is not None]
            self.units.append(torch.stack(on).sum(0, dtype=torch.int8).reshape(self.points, -1))
        if name in SMOOTH and of_input:
            self.smooth.add(name)
        out = func(*args, **(kwargs or {}))
        if "max_pool" in name and isinstance(out, tuple):
            self.picks.append(out[1].reshape(self.points, -1))
        return out
