"""The ℓ2 operator norm of a layer: a lower bound by power iteration, and a cheap upper bound beside it."""

import copy
import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm.linear import LinearMap, Shape, linear_map
from opnorm.norms.exact import batch_norm_gain, conv_l2_bound, l1, linf

__all__ = ["Norm", "power_iteration", "spectral"]

ROUNDING = 1e-12  # far above the float64 rounding of one product with a layer, far below any digit shown


class Norm(NamedTuple):
    """An operator norm as far as it is known: ``lower <= ‖M‖ <= upper``.

    Attributes:
        lower: 0-d float64 tensor.
        upper: 0-d float64 tensor, infinite where no upper bound is known; equal to ``lower`` where exact.
        method: how it was found, in words.
    """

    lower: Tensor
    upper: Tensor
    method: str

    @property
    def exact(self) -> bool:
        """Whether both ends are the same number by construction."""
        return bool(self.lower == self.upper)

    @staticmethod
    def of(lower: float | Tensor, upper: float | Tensor, method: str) -> "Norm":
        """From numbers or tensors of any type and device."""
        low, high = (torch.as_tensor(end, dtype=torch.float64).detach().cpu() for end in (lower, upper))
        return Norm(low, high, method)


@torch.no_grad()
def power_iteration(
    linear: LinearMap, iterations: int = 100, seed: int = 0, tolerance: float = 1e-9
) -> float:
    """A lower bound of ‖M‖_2: ‖M v‖_2 for the unit vector v reached by ``iterations`` steps v ← MᵀM v / ‖MᵀM v‖.

    Every value ‖M v‖_2 / ‖v‖_2 is a true lower bound; it is lowered by a relative 1e-12 for rounding.

    Args:
        linear: the map, in float64.
        iterations: at most so many products with M and Mᵀ.
        seed: of the random start.
        tolerance: stop when the value grows by less than this, relatively.
    """
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(1, *linear.in_shape, generator=generator, dtype=torch.float64).to(linear.device)
    best = 0.0
    for _ in range(iterations):
        u = linear.apply(v / torch.linalg.vector_norm(v))
        value = float(torch.linalg.vector_norm(u))
        if value <= best * (1 + tolerance):
            best = max(best, value)
            break
        best = value
        v = linear.adjoint(u)
    return best * (1 - ROUNDING)


@functools.singledispatch
def spectral(layer: nn.Module, in_shape: Shape, iterations: int = 100, seed: int = 0) -> Norm:
    """The ℓ2 operator norm of a layer as an interval.

    From below by :func:`power_iteration`. From above by what is cheap: sqrt(‖M‖_1 ‖M‖_∞) (Schur's test) and, for
    convolutions, sqrt(h_out w_out Σ K²) (Liang & Huang 2021, Thm 1); infinite where neither is known.

    Args:
        layer: any affine module.
        in_shape: shape of one input, without the batch axis.
        iterations: of the power iteration.
        seed: of its random start.

    Raises:
        NormError: the layer is not linear.
    """
    linear = linear_map(layer, in_shape)
    lower = power_iteration(linear, iterations, seed)
    return Norm.of(lower, _cheap_upper(layer, linear), f"power iteration, {iterations} steps: a lower bound")


def _cheap_upper(layer: nn.Module, linear: LinearMap) -> float:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or l1.dispatch(type(layer)) is l1.dispatch(object):
        return math.inf
    with torch.no_grad():
        double = _float64(layer)
        bounds = [math.sqrt(float(l1(double, linear.in_shape)) * float(linf(double, linear.in_shape)))]
        bounds.append(conv_l2_bound(weight, linear.out_shape[1:] if weight.ndim > 2 else ()))
    return min(bounds) * (1 + ROUNDING)


def _float64(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).double()


for _kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):

    @spectral.register(_kind)
    def _(layer: nn.BatchNorm2d, in_shape: Shape, iterations: int = 100, seed: int = 0) -> Norm:
        gain = batch_norm_gain(layer)
        return Norm.of(gain, gain, "exact: a diagonal map")
