"""Products with the Jacobian of a network at every point of a batch, and the Jacobians as matrices.

Points never mix: a model whose output for one point depends on another one is refused. Products are as exact as the
model's own arithmetic; nothing is approximated by differences.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from opnorm._core.argument_checks import check_tensor
from opnorm._core.linear_map import LinearMap
from opnorm._core.modes import Mode, default_modes, in_default_modes, model_state_preserved, ordinary
from opnorm._core.outputs import output_of
from opnorm._core.pull_back import pull_back
from opnorm.errors import ModelError, NormError
from opnorm.jacobian.range_watch import RangeWatch
from opnorm.norms.network.trace import eagerly

__all__ = [
    "Jacobian",
    "Matrices",
    "check_points",
    "explicit",
    "linearized",
    "points_at_once",
    "rows_of",
]


class Jacobian(LinearMap):
    """J(x_b) = ∂f(x_b)/∂x_b of each point b, by the graph of one forward pass, which stays in memory.

    ``J.T @ u`` is one backward pass. ``J @ v`` is the derivative of that backward pass in u, of which it is a linear
    function: about as quick as forward mode, without a new forward pass and for operations that have no forward mode.

    Attributes:
        inputs: (B, *in), a leaf that requires gradients.
        outputs: (B, *out), computed from it.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        shapes = inputs.shape[1:], outputs.shape[1:]
        super().__init__(None, None, *shapes, inputs.device, dtype=inputs.dtype, batch=len(inputs))
        self.inputs, self.outputs = inputs, outputs
        self._graph: tuple[Tensor, Tensor] | None = None  # u, and Jᵀ u as a function of it

    def vjp(self, u: Tensor, *, create_graph: bool = False) -> Tensor:
        """J_bᵀ u_b, (B, *out) -> (B, *in); with ``create_graph`` differentiable in the weights and in u."""
        return pull_back(self.outputs, self.inputs, u, retain_graph=True, create_graph=create_graph)

    def _adjoint(self, u: Tensor) -> Tensor:
        return self.vjp(u)

    def _apply(self, v: Tensor) -> Tensor:
        if self._graph is None:
            with torch.enable_grad():
                u = torch.zeros_like(self.outputs, requires_grad=True)
                self._graph = u, self.vjp(u, create_graph=True)
        u, back = self._graph
        if not back.requires_grad:  # f is constant
            return torch.zeros_like(self.outputs)
        return pull_back(back, u, v, retain_graph=True)


class Matrices(LinearMap):
    """Explicit matrices (B, K, n) as maps from (B, n) to (B, K)."""

    def __init__(self, matrices: Tensor) -> None:
        count, rows, columns = matrices.shape
        super().__init__(
            lambda v: (matrices @ v[:, :, None]).squeeze(2),
            lambda u: (u[:, None, :] @ matrices).squeeze(1),
            (columns,),
            (rows,),
            matrices.device,
            dtype=matrices.dtype,
            batch=count,
        )


@contextmanager
def linearized(
    model: nn.Module, x: Tensor, *, mode: Mode = "eval", watch: RangeWatch | None = None
) -> Iterator[Jacobian]:
    """The Jacobian at each point, for as long as the block lasts; afterwards the model is as it was.

    Args:
        model: any network that works on each point of a batch by itself.
        x: the points (B, *in), floating point, of the model's type.
        mode: of the model meanwhile: "eval"; "train", in which dropout keeps the units that it drew in the one forward pass;
            "as is". Batch norm has to be in eval mode in any case.
        watch: sees the operations of the forward pass.

    Raises:
        ModelError: an output that is no tensor with one row a point, is NaN or infinite, or does not depend on the input in
            a differentiable way; or an output for one point that depends on another one, as with batch norm in train mode.
        NormError: x is not a batch of floating point numbers.
    """
    check_points(x)
    with (
        default_modes(),
        eagerly(),
        model_state_preserved(model := ordinary(model), mode),
        torch.enable_grad(),
    ):
        _refuse_coupling(model)
        inputs = x.detach().clone().requires_grad_()
        # torch's fused attention has no second derivative, as J @ v needs it
        with sdpa_kernel(SDPBackend.MATH), watch or nullcontext():
            outputs = output_of(model, inputs)
        outputs = outputs[:, None] if outputs.ndim == 1 else outputs  # one number a point
        _check_output(model, outputs, inputs)
        _refuse_mixing(model, x)
        yield Jacobian(inputs, outputs)


def check_points(x: Tensor) -> None:
    """NormError unless x is a batch of floating point numbers (B, *in)."""
    check_tensor("points", x, "floating point (B, *in)", NormError)
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise NormError(
            f"points are {x.dtype} of shape {tuple(x.shape)}; expected floating point (B, *in), B at least 1"
        )


def _check_output(model: nn.Module, outputs: Any, inputs: Tensor) -> None:
    what = type(model).__name__
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != inputs.shape[:1]:
        got = (
            f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        )
        raise ModelError(
            f"{what} gives {got} for {len(inputs)} points; expected a tensor with one row a point"
        )
    if not outputs.requires_grad:
        raise ModelError(
            f"the output of {what} does not depend on the input in a differentiable way; is it detached, rounded, or "
            "computed under torch.no_grad()?"
        )
    if bad := int((~outputs.isfinite()).flatten(1).any(1).sum()):
        raise ModelError(
            f"{what} gives NaN or infinity for {bad} of {len(inputs)} points; diverged training?"
        )


def _refuse_mixing(model: nn.Module, x: Tensor) -> None:
    """ModelError unless, for two of the points, no output of the one has a gradient at the other."""
    pair = x.detach()[[0, -1]].requires_grad_()
    try:
        outputs = output_of(model, pair)
    except Exception:  # noqa: BLE001 - of the user's own network, which may take no other batch than x
        return
    if not outputs.requires_grad:
        return
    u = torch.rand(outputs.shape[1:], dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(
        outputs
    )
    for one, other in ((0, 1), (1, 0)):
        only = torch.zeros_like(outputs).index_fill(0, torch.tensor(one, device=x.device), 1) * u
        gradient = pull_back(outputs, pair, only, retain_graph=True)[other]
        if bool((gradient.abs() > 0).any()):
            raise ModelError(
                f"{type(model).__name__} mixes the points of a batch: its output for one point depends on another one, so "
                "points have no Jacobian of their own; is there an operation along the first axis, such as a mean over it?"
            )


def points_at_once(x: Tensor) -> int:
    """About how many points one pass should have: on a CPU so many stay in its cache."""
    return 32 if x.device.type == "cpu" else 64


def _refuse_coupling(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = "it keeps no running statistics" if module.running_mean is None else "it is in train mode"
            if module.training or module.running_mean is None:
                raise ModelError(
                    f"batch norm {name!r} couples the points of a batch ({own}), which have no Jacobian of their own; "
                    "expected running statistics and mode='eval'"
                )


# ---------------------------------------------------------------- explicit


def rows_of(model: nn.Module, x: Tensor, *, mode: Mode = "eval", columns: bool = False) -> Iterator[Tensor]:
    """The rows of the Jacobians in order, some at a time, (B, r, *in): K / r backward passes for K outputs.

    In eval mode a batch of few points is repeated, so that a pass is not too small. With ``columns`` the columns instead,
    (B, r, *out), by products with J: quicker where there are fewer inputs than outputs.
    """
    copies = points_at_once(x) // len(x) if mode == "eval" else 1  # dropout would treat copies differently
    with linearized(model, x[:1], mode=mode) as J:
        count = J.shape[1 if columns else 0]
    copies = max(1, min(copies, count))
    with linearized(model, x.repeat_interleave(copies, 0), mode=mode) as J:
        A = J if columns else J.T
        for some in torch.arange(count, device=x.device).split(copies):
            units = torch.zeros(len(x), copies, count, dtype=J.dtype, device=x.device)
            units[:, torch.arange(len(some)), some] = 1
            yield (A @ units.view(-1, *A.in_shape)).unflatten(0, (len(x), copies))[:, : len(some)]


@in_default_modes
def explicit(model: nn.Module, x: Tensor, *, mode: Mode = "eval", limit: int = 2**30) -> Tensor:
    """The Jacobians as matrices, (B, K, *in), of the type of x, with the outputs flattened to K.

    Args:
        model: see :func:`linearized`.
        x: (B, *in).
        mode: of the model.
        limit: bytes that the result may take.

    Raises:
        NormError: it would take more than ``limit``.
        ModelError: see :func:`linearized`.
    """
    check_points(x)
    with linearized(model, x[:1], mode=mode) as J:
        outputs, inputs = J.shape
    size = outputs * x.numel() * x.element_size()
    if size > limit:
        raise NormError(
            f"{len(x)} Jacobians of {outputs:,} x {inputs:,} take {size:,} bytes; limit={limit:,} allows "
            f"{limit * len(x) // size} at a time (jacobian_norm and linearized need none of them)"
        )
    columns, parts = inputs < outputs, []
    for part in x.split(points_at_once(x)):
        matrices = torch.cat(list(rows_of(model, part, mode=mode, columns=columns)), 1).flatten(2)
        parts.append(matrices.mT if columns else matrices)
    return torch.cat(parts).unflatten(2, x.shape[1:])
