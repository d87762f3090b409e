"""What certificates know about layers: bounds on what a layer computes, in the arithmetic that it computes it in.

A step encloses not the layer's formula but the numbers that the model gets in float32. A sum of n products in any order,
with or without fused multiplication, is off by at most γ_n = n u / (1 - n u) times the sum of their absolute values, with
u = 2^-24. This slack is 2^29 times that of the same sum in float64, which these bounds are computed in, so a hundredth
more of it pays for the rounding of the bounds themselves.
"""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opnorm._core.batch_norm import channel_scale
from opnorm._core.layers import AVERAGE_POOL, BATCH_NORM, CONV, LINEAR_OR_CONV, Shape, overrides
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm.errors import NormError
from opnorm.models.modules import Normalize

__all__ = ["Affine", "Reshape", "Step", "Unknown", "line_of", "steps_of", "total"]

UNIT = 2.0**-24
TF32 = 2.0**-9  # twice what rounding both factors of a product to 11 bits may do to it
TINY = 1e-30  # far above what float32 loses where it runs out of exponents

MAX_POOLS: dict[type, Any] = {
    nn.MaxPool1d: F.max_pool1d,
    nn.MaxPool2d: F.max_pool2d,
    nn.MaxPool3d: F.max_pool3d,
}
NOTHING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)


class Unknown(Exception):  # noqa: N818 - no error: a network that has no bounds here, with the reason
    """The reason why there are no bounds."""


@runtime_checkable
class Step(Protocol):
    """One layer. Values have shape (B, *in_shape), and everything is float64.

    Attributes:
        out_shape: of one output.
        work: multiplications that one input costs.
    """

    out_shape: Shape
    work: int

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Bounds on the outputs from bounds on the inputs."""

    def back(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """A', c with <A, layer(x)> >= <A', x> + c for all x between the bounds.

        Args:
            A: (B, R, *out_shape), R functionals for each point.
            low: (B, *in_shape).
            high: (B, *in_shape).

        Returns:
            A' (B, R, *in_shape) and c (B, R).
        """


def total(terms: Tensor) -> Tensor:
    """A lower end of the sums over all but the first two axes; (B, R, ...) -> (B, R)."""
    terms = terms.flatten(2)
    return terms.sum(2) - terms.shape[2] * 2.0**-52 * terms.abs().sum(2)


@dataclass(eq=False)
class Affine:
    """x -> W x + b, computed in float32.

    Attributes:
        map: W.
        size: x -> |W| x.
        bias: b, of a shape that adds to the output.
        bias_size: |b|, or the sum of its parts where it is computed from some.
        terms: how many numbers an output adds up, or how many operations it takes.
        work: multiplications that one input costs.
    """

    map: LinearMap
    size: LinearMap
    bias: Tensor
    bias_size: Tensor
    terms: int
    work: int

    def __post_init__(self) -> None:
        self.out_shape = self.map.out_shape
        gamma = self.terms * UNIT / (1 - self.terms * UNIT)
        self.unit = 1.01 * (gamma + (TF32 if self.map.device.type == "cuda" and _may_be_tf32() else 0))

    def rounding(self, low: Tensor, high: Tensor) -> Tensor:
        """How far the computed outputs can be from the formula, (B, *out_shape)."""
        return self.unit * (self.size @ torch.maximum(low.abs(), high.abs()) + self.bias_size) + TINY

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Center and radius."""
        center = self.map @ ((low + high) / 2) + self.bias
        radius = self.size @ ((high - low) / 2) + self.rounding(low, high)
        return center - radius, center + radius

    def back(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """<A, W x + b> = <Wᵀ A, x> + <A, b>, less what rounding may do."""
        c = total(A * self.bias) + total(-A.abs() * self.rounding(low, high)[:, None])
        return (self.map.T @ A.flatten(0, 1)).unflatten(0, A.shape[:2]), c


@dataclass(eq=False)
class Reshape:
    """The same numbers in another shape."""

    in_shape: Shape
    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Theirs."""
        return low.reshape(-1, *self.out_shape), high.reshape(-1, *self.out_shape)

    def back(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """In the other shape."""
        return A.reshape(*A.shape[:2], *self.in_shape), A.new_zeros(A.shape[:2])


@dataclass(eq=False)
class ReLU:
    """max(x, 0), between a line through the ends from above, and 0 or x from below, whichever leaves less room.

    Source: Zhang et al. 2018 (CROWN), Singh et al. 2019 (DeepPoly).
    """

    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """It is monotone."""
        return low.clamp(min=0), high.clamp(min=0)

    def back(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The line from below where A > 0, that from above where A < 0."""
        up, down = high.clamp(min=0), low.clamp(max=0)
        slope = torch.where(down < 0, up / (up - down).clamp(min=1e-300), 1.0)
        offset = torch.where((down < 0) & (up > 0), -down * slope + 1e-14 * (up - down), 0.0)
        floor = torch.where(down < 0, (up > -down).double(), 1.0)
        return (
            A.clamp(min=0) * floor[:, None] + A.clamp(max=0) * slope[:, None],
            total(A.clamp(max=0) * offset[:, None]),
        )


@dataclass(eq=False)
class MaxPool:
    """The largest of a window: at least the input whose lower bound is largest, at most the largest upper bound."""

    layer: nn.Module
    in_shape: Shape
    out_shape: Shape
    work: int = 0

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """It is monotone."""
        return self.layer(low), self.layer(high)

    def back(self, A: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """To one input of each window where A > 0, to none where A < 0."""
        m, axes = self.layer, len(self.in_shape) - 1
        pool = MAX_POOLS[type(m)]
        _, index = pool(low, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, True)
        index = index.flatten(-axes)[:, None].expand(-1, A.shape[1], -1, -1)
        back = A.new_zeros(*A.shape[:2], self.in_shape[0], math.prod(self.in_shape[1:]))
        back.scatter_add_(-1, index, A.clamp(min=0).flatten(-axes))
        return back.unflatten(-1, self.in_shape[1:]), total(A.clamp(max=0) * self.layer(high)[:, None])


def steps_of(model: nn.Module, in_shape: Shape) -> list[Step]:
    """The layers of a sequential network.

    Raises:
        Unknown: what in it has no bounds here.
    """
    steps: list[Step] = []
    for name, layer in line_of(model):
        if isinstance(layer, NOTHING) and not overrides(layer, *NOTHING):
            continue
        try:
            steps.append(_step(layer, steps[-1].out_shape if steps else in_shape))
        except (Unknown, NormError) as e:
            raise Unknown(f"{name or 'the model'} ({type(layer).__name__}): {e}") from e
    return steps


def _may_be_tf32() -> bool:
    return torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32


def line_of(model: nn.Module, name: str = "") -> list[tuple[str, nn.Module]]:
    """The layers in order with their names, of sequences within sequences too; any other model is one layer.

    Raises:
        Unknown: somebody hooked in.
    """
    if any(vars(model)[kind] for kind in ("_forward_hooks", "_forward_pre_hooks")):
        raise Unknown(f"{name or 'the model'} has hooks, which may do anything")
    if not isinstance(model, nn.Sequential) or overrides(model, nn.Sequential):
        return [(name, model)]
    return [pair for n, child in model.named_children() for pair in line_of(child, f"{name}.{n}".lstrip("."))]


def _step(layer: nn.Module, shape: Shape) -> Step:
    for t in (*layer.parameters(), *layer.buffers()):
        if t.is_floating_point() and (
            t.dtype not in (torch.float32, torch.float64) or not t.isfinite().all()
        ):
            raise Unknown(
                f"its numbers are {t.dtype}" if t.isfinite().all() else "its numbers are not finite"
            )
    kinds = (*LINEAR_OR_CONV, *BATCH_NORM, *AVERAGE_POOL, *MAX_POOLS, Normalize, nn.ReLU, nn.Flatten)
    if not isinstance(layer, kinds) or overrides(layer, *kinds):
        raise Unknown("no bounds are known for it")
    if isinstance(layer, nn.ReLU):
        return ReLU(shape)
    if isinstance(layer, nn.Flatten):
        if layer.start_dim != 1 or layer.end_dim not in (-1, len(shape)):
            raise Unknown("flattens other axes than all of a point's")
        return Reshape(shape, (math.prod(shape),))
    if type(layer) in MAX_POOLS:
        if len(shape) != 1 + int(type(layer).__name__[-2]) or layer.return_indices:
            raise Unknown(f"its input has shape {shape}, or it returns indices")
        return MaxPool(layer, shape, tuple(layer(torch.zeros(1, *shape)).shape[1:]))
    if isinstance(layer, AVERAGE_POOL):
        # weights are not negative, so that |W| = W
        W = linear_map(layer, shape)
        terms = math.prod(shape[1:]) + 2
        zero = torch.zeros((), dtype=torch.float64)
        return Affine(W, W, zero, zero, terms, math.prod(shape) * 4)
    if isinstance(layer, Normalize):
        gain = 1 / layer.std.double()
        return _diagonal(shape, gain, -layer.mean.double() * gain, None)
    if isinstance(layer, BATCH_NORM):
        return _batch_norm(layer, shape)
    return _weighted(layer, shape)


def _diagonal(shape: Shape, gain: Tensor, bias: Tensor, bias_size: Tensor | None) -> Affine:
    def scaled(by: Tensor) -> LinearMap:
        return LinearMap(lambda v: v * by, lambda u: u * by, shape, shape, by.device)

    size = bias.abs() if bias_size is None else bias_size
    return Affine(scaled(gain), scaled(gain.abs()), bias, size, 12, math.prod(shape))


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, shape: Shape) -> Affine:
    if layer.running_mean is None or layer.running_var is None:
        raise Unknown("normalizes by the batch's own statistics")
    axes = (-1, *(1,) * (len(shape) - 1))
    weight = None if layer.weight is None else layer.weight.detach()
    gain = channel_scale(layer.running_var.double(), layer.eps, weight)
    shift = layer.running_mean.double() * gain
    bias = torch.zeros_like(shift) if layer.bias is None else layer.bias.detach().double()
    size = bias.abs() + shift.abs()
    return _diagonal(shape, gain.view(axes), (bias - shift).view(axes), size.view(axes))


def _weighted(layer: nn.Module, shape: Shape) -> Affine:
    """A linear or convolutional layer; its weight may be computed by a parametrization."""
    W = layer.weight.detach()  # type: ignore[operator]
    plain: nn.Module
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
    else:
        assert isinstance(layer, CONV), "all other kinds have been dealt with"
        base = next(kind for kind in CONV if isinstance(layer, kind))
        plain = base(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,  # type: ignore[arg-type]
            layer.dilation, layer.groups, False, layer.padding_mode, device="meta",  # type: ignore[arg-type]
        )  # fmt: skip
    plain.weight = nn.Parameter(W.abs(), requires_grad=False)
    size, exact = linear_map(plain, shape), linear_map(layer, shape)
    bias = torch.zeros(W.shape[0], dtype=torch.float64, device=W.device)
    if layer.bias is not None:
        bias = layer.bias.detach().double()
    if not isinstance(layer, nn.Linear):
        bias = bias.view(-1, *(1,) * (len(shape) - 1))
    terms = W[0].numel()
    return Affine(exact, size, bias, bias.abs(), terms + 2, math.prod(exact.out_shape) * terms)
