"""Products with the Jacobian of a network at every point of a batch, and the Jacobians as matrices.

Points never mix: what couples them, batch norm in train mode, is refused. Products are as exact as the model's own
arithmetic; nothing is approximated by differences.
"""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from opnorm._core.modes import Mode, model_state_preserved
from opnorm.errors import ModelError, NormError
from opnorm.norms.network.trace import eagerly

__all__ = ["Jacobian", "Matrices", "Products", "explicit", "linearized"]

TOGETHER = {"cpu": 32}  # points in one pass, when their number is ours to choose: so many stay in the cache


@runtime_checkable
class Products(Protocol):
    """One linear map J_b for each point b of a batch, as products."""

    def apply(self, v: Tensor) -> Tensor:
        """(B, *in) -> (B, *out): J_b v_b."""

    def adjoint(self, u: Tensor) -> Tensor:
        """(B, *out) -> (B, *in): J_bᵀ u_b."""


class Jacobian:
    """J(x_b) = ∂f(x_b)/∂x_b of each point b, by the graph of one forward pass, which stays in memory.

    A product with Jᵀ is one backward pass. One with J is the derivative of that backward pass in u, of which it is a linear
    function: about as quick as forward mode, without a new forward pass and for operations that have no forward mode.

    Attributes:
        inputs: (B, *in), a leaf that requires gradients.
        outputs: (B, *out), computed from it.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._u: Tensor | None = None
        self._back: Tensor | None = None

    def adjoint(self, u: Tensor, differentiable: bool = False) -> Tensor:
        """J_bᵀ u_b, (B, *out) -> (B, *in); ``differentiable`` in the weights and in u, if asked for."""
        _fits("u", u, self.outputs)
        return torch.autograd.grad(
            self.outputs, self.inputs, u, retain_graph=True, create_graph=differentiable
        )[0]

    def apply(self, v: Tensor) -> Tensor:
        """J_b v_b, (B, *in) -> (B, *out)."""
        _fits("v", v, self.inputs)
        if self._back is None:
            with torch.enable_grad():
                self._u = torch.zeros_like(self.outputs, requires_grad=True)
                self._back = self.adjoint(self._u, differentiable=True)
        assert self._u is not None, "made together"
        if not self._back.requires_grad:  # f is constant
            return torch.zeros_like(self.outputs)
        return torch.autograd.grad(self._back, self._u, v, retain_graph=True)[0]


class Matrices:
    """Explicit Jacobians (B, K, n) as products between (B, n) and (B, K)."""

    def __init__(self, matrices: Tensor) -> None:
        self.matrices = matrices

    def apply(self, v: Tensor) -> Tensor:
        """(B, n) -> (B, K)."""
        return (self.matrices @ v[:, :, None]).squeeze(2)

    def adjoint(self, u: Tensor) -> Tensor:
        """(B, K) -> (B, n)."""
        return (u[:, None, :] @ self.matrices).squeeze(1)


@contextmanager
def linearized(
    model: nn.Module, x: Tensor, layer: str | None = None, mode: Mode = "eval"
) -> Iterator[Jacobian]:
    """The Jacobian at each point, for as long as the block lasts; afterwards the model is as it was.

    Args:
        model: any network that works on each point of a batch by itself.
        x: the points (B, *in), floating point, of the model's type.
        layer: the name of a module (as in ``model.named_modules()``) whose output is meant, before anything later changes
            it in place; the model's own output when None.
        mode: of the model meanwhile: "eval"; "train", in which dropout keeps the units that it drew in the one forward pass;
            "as is". Batch norm has to be in eval mode in any case.

    Yields:
        The products.

    Raises:
        ModelError: no such layer, a layer that is called never or several times, an output that is no tensor with one row a
            point, is NaN or infinite, or does not depend on the input in a differentiable way; batch norm in train mode.
        NormError: x is not a batch of floating point numbers.
    """
    check_points(x)
    with torch.inference_mode(False), eagerly(), model_state_preserved(model, mode), torch.enable_grad():
        _refuse_coupling(model)
        with torch.autocast(x.device.type, enabled=False):
            inputs = x.detach().clone().requires_grad_()
            outputs = _forward(model, inputs, layer)
            _check_output(model, outputs, inputs, layer)
            yield Jacobian(inputs, outputs)


def check_points(x: Tensor) -> None:
    """NormError unless x is a batch of floating point numbers (B, *in)."""
    if not x.is_floating_point() or x.ndim < 2 or not len(x):
        raise NormError(
            f"points are {x.dtype} of shape {tuple(x.shape)}; expected floating point (B, *in), B at least 1"
        )


def quick_layout(model: nn.Module, x: Tensor, layer: str | None, mode: Mode) -> Tensor:
    """Images in the layout that float32 convolutions on the CPU need no copies for, channels last; else x itself.

    A network that looks at its memory, by ``view``, may not work with it, and keeps its own.
    """
    images = x.ndim == 4 and x.dtype == torch.float32 and x.device.type == "cpu"
    if not images or not any(isinstance(m, nn.Conv2d) for m in model.modules()):
        return x
    last = x.contiguous(memory_format=torch.channels_last)
    try:
        with linearized(model, last[:1], layer, mode):
            return last
    except RuntimeError:  # torch's for such a view; whatever else is wrong comes up again with x
        return x


def _forward(model: nn.Module, inputs: Tensor, layer: str | None) -> Any:
    inputs = inputs.clone()  # the first layer may work in place
    return model(inputs) if layer is None else output_of(model, inputs, layer)


def output_of(model: nn.Module, inputs: Tensor, layer: str, before: bool = False) -> Any:
    """What a layer gives in a forward pass, or with ``before`` what it is given, untouched by anything later.

    Raises:
        ModelError: no such layer, or one that is called never or several times.
    """
    modules = dict(model.named_modules())
    if layer not in modules:
        near = difflib.get_close_matches(layer, modules, n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ModelError(f"{type(model).__name__} has no layer {layer!r}{hint}")
    seen: list[Any] = []

    def keep(value: Any) -> Any:
        seen.append(value)
        return value.clone() if isinstance(value, Tensor) else value  # what follows may work in place

    module = modules[layer]
    handle = (
        module.register_forward_pre_hook(lambda _, args: (keep(args[0]), *args[1:]))
        if before
        else module.register_forward_hook(lambda _, args, output: keep(output))
    )
    try:
        model(inputs)
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ModelError(f"layer {layer!r} is called {len(seen)} times in a forward pass; expected once")
    return seen[0]


def _check_output(model: nn.Module, outputs: Any, inputs: Tensor, layer: str | None) -> None:
    what = f"layer {layer!r}" if layer else type(model).__name__
    if not isinstance(outputs, Tensor) or outputs.ndim < 1 or len(outputs) != len(inputs):
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
    if not torch.isfinite(outputs).all():
        bad = int((~torch.isfinite(outputs)).flatten(1).any(1).sum())
        raise ModelError(
            f"{what} gives NaN or infinity for {bad} of {len(inputs)} points; diverged training?"
        )


def together(x: Tensor) -> int:
    """How many points one pass should be about."""
    return TOGETHER.get(x.device.type, 64)


def _refuse_coupling(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            own = "it keeps no running statistics" if module.running_mean is None else "it is in train mode"
            if module.training or module.running_mean is None:
                raise ModelError(
                    f"batch norm {name!r} couples the points of a batch ({own}), which have no Jacobian of their own; "
                    "expected running statistics and mode='eval'"
                )


def _fits(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise NormError(f"{name} has shape {tuple(value.shape)}; expected {tuple(like.shape)}")


# ---------------------------------------------------------------- explicit


def each_row(
    model: nn.Module,
    x: Tensor,
    layer: str | None,
    mode: Mode,
    take: Callable[[Tensor], None],
    columns: bool = False,
) -> None:
    """Hand over the rows of the Jacobians in order, some at a time, (B, r, *in): K / r backward passes for K outputs.

    In eval mode a batch of few points is repeated, so that a pass has something to do.

    Args:
        model: see :func:`linearized`.
        x: (B, *in).
        layer: whose output.
        mode: of the model.
        take: is given rows i, ..., i + r - 1 of every Jacobian.
        columns: take columns instead, (B, r, *out), by products with J: quicker where there are fewer inputs than outputs.
    """
    check_points(x)
    copies = 1
    if mode == "eval" and (room := together(x) // len(x)) > 1:  # dropout would treat copies differently
        with linearized(model, x[:1], layer, mode) as J:
            copies = min(room, (x if columns else J.outputs)[0].numel())
    with linearized(model, _repeated(x, copies), layer, mode) as J:
        side, product = (J.inputs, J.apply) if columns else (J.outputs, J.adjoint)
        count = side[0].numel()
        for first in range(0, count, copies):
            some = torch.arange(min(copies, count - first), device=x.device)
            units = torch.zeros(len(x), copies, count, dtype=side.dtype, device=x.device)
            units[:, some, first + some] = 1
            take(product(units.view_as(side)).unflatten(0, (len(x), copies))[:, : len(some)])


def _repeated(x: Tensor, copies: int) -> Tensor:
    """Each point so many times, laid out in memory as x is."""
    last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return x.repeat_interleave(copies, 0).contiguous(memory_format=layout)


def explicit(
    model: nn.Module, x: Tensor, layer: str | None = None, mode: Mode = "eval", limit: int = 2**30
) -> Tensor:
    """The Jacobians as matrices, (B, K, *in), with the outputs flattened to K; a few dozen points at a time.

    Args:
        model: see :func:`linearized`.
        x: (B, *in).
        layer: whose output.
        mode: of the model.
        limit: bytes that the result may take.

    Returns:
        A tensor of the type of x.

    Raises:
        NormError: it would take more than ``limit``.
        ModelError: see :func:`linearized`.
    """
    check_points(x)
    with linearized(model, x[:1], layer, mode) as J:
        count = J.outputs[0].numel()
    size = count * x.numel() * x.element_size()
    if size > limit:
        raise NormError(
            f"{len(x)} Jacobians of {count:,} x {x[0].numel():,} take {size:,} bytes; limit={limit:,} allows "
            f"{limit * len(x) // size} at a time (jacobian_norm and linearized need none of them)"
        )
    columns = x[0].numel() < count
    parts: list[Tensor] = []
    for part in x.split(together(x)):
        found: list[Tensor] = []
        each_row(model, part, layer, mode, found.append, columns)
        matrices = torch.cat(found, 1).flatten(2)
        parts.append(matrices.mT if columns else matrices)
    return torch.cat(parts).unflatten(2, x.shape[1:])
