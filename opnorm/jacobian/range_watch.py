"""Whether values or gradients of a pass underflow or overflow, so that what autograd gives is no Jacobian.

An operation whose products are too small for the type gives 0, and a ReLU behind it takes the side of 0; one whose
products are too large gives infinity, and a division by it 0. Underflow of single entries does no harm beside larger ones:
it is less than their rounding. So it counts where the largest entry of a point's values is below the smallest normal
number over the unit of rounding, and a product of nonzero factors can have been smaller than normal numbers are.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RangeWatch"]

PRODUCTS = {
    "mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "baddbmm": (1, 2), "mv": (0, 1), "addmv": (1, 2), "dot": (0, 1),
    "mul": (0, 1), "convolution": (0, 1), "convolution_backward": (0, 2), "_prelu_kernel": (0, 1), "leaky_relu": (0, 1),
    "leaky_relu_backward": (0, 2), "native_batch_norm": (0, 1), "cudnn_batch_norm": (0, 1),
    "_native_batch_norm_legit_no_training": (0, 1), "native_batch_norm_backward": (0, 2),
    "cudnn_batch_norm_backward": (1, 2), "native_layer_norm": (0, 2), "native_layer_norm_backward": (0, 5),
    "native_group_norm": (0, 1), "native_group_norm_backward": (0, 4), "_batch_norm_no_update": (0, 1),
}  # fmt: skip
"""Operations that multiply, and which arguments."""
SHRINKING = frozenset((
    "exp", "exp2", "sigmoid", "log_sigmoid_forward", "silu", "silu_backward", "gelu", "gelu_backward", "elu_backward",
    "mish", "mish_backward", "softplus", "softplus_backward", "erfc", "_softmax", "mean", "pow", "square", "reciprocal",
    "rsqrt", "div", "prod", "cumprod", "addcmul", "addcdiv", "linalg_vector_norm", "norm", "_to_copy", "avg_pool2d",
    "avg_pool3d", "avg_pool2d_backward", "avg_pool3d_backward", "_adaptive_avg_pool2d", "_adaptive_avg_pool3d",
    "_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward", "upsample_linear1d", "upsample_bilinear2d",
    "upsample_trilinear3d", "upsample_bicubic2d", "upsample_linear1d_backward", "upsample_bilinear2d_backward",
    "upsample_trilinear3d_backward", "upsample_bicubic2d_backward",
))  # fmt: skip
"""Other operations whose results may be smaller than their first argument, other than by cancellation."""
WITHOUT_VALUES = frozenset(("empty_like", "new_empty", "new_empty_strided"))
"""Operations that give memory with whatever it held."""


class RangeWatch(TorchDispatchMode):
    """Watches the operations of forward and backward passes of a batch of points.

    Attributes:
        lost: (B,), the points some value of which has left the range of its type.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: torch would import its compiler to be sure that it does not compile this mode."""
        return False

    def __init__(self, points: int) -> None:
        super().__init__()
        self.points = points
        self.lost = torch.zeros(points, dtype=torch.bool)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and look at its first result."""
        has_values = self._makes_values(func, args)
        output = func(*args, **(kwargs or {}))
        first = output[0] if isinstance(output, tuple | list) and output else output
        if has_values and _is_floating(first) and first.numel() and not first.is_meta:
            self._look(func.overloadpacket.__name__.removesuffix("_"), args, first)
        return output

    def _makes_values(self, func: Any, args: Any) -> bool:
        """Whether to look at all: not at views, which have no new values, nor at memory that has none yet."""
        new = not func.is_view and func.overloadpacket.__name__ not in WITHOUT_VALUES
        return new and any(map(_is_floating, _flat(args)))

    def _look(self, name: str, args: Any, output: Tensor) -> None:
        largest, limits = self._largest(output, output), torch.finfo(output.dtype)
        infinite = ~largest.isfinite()
        if name != "log" and bool(
            infinite.any()
        ):  # masks are made by the logarithm of 0, or filled in with -inf
            self.lost |= infinite & all(map(_is_finite, _flat(args)))
        small = largest < limits.tiny / limits.eps
        factors = PRODUCTS.get(name, (0,) if name in SHRINKING else ())
        if not factors or not bool(small.any()):
            return
        least = 1.0
        for position in factors:
            factor = args[position] if position < len(args) else None
            if factor is not None:
                # the rows of a first argument, and of both in a product by entries or by matrices, are those of the output
                rows = (
                    position == 0
                    or name in ("bmm", "baddbmm")
                    or (name == "mul" and _same_rank(factor, output))
                )
                small = small & (self._largest(factor, output if rows else None) > 0)
                least *= _least(factor)
        self.lost |= small & (name in SHRINKING or least < limits.tiny)

    def _largest(self, value: Any, like: Tensor | None = None) -> Tensor:
        """The largest absolute value for each point, or of all where there are no rows, or other ones than ``like``."""
        if not isinstance(value, Tensor) or not value.numel():
            size = torch.zeros(1) if isinstance(value, Tensor) else torch.tensor([abs(float(value))])
            return size.expand(self.points)
        rows = value.shape[0] if value.ndim else 1
        by_point = rows % self.points == 0 and (
            like is value or (like is not None and like.shape[:1] == (rows,))
        )
        flat = value.detach().reshape(self.points if by_point else 1, -1)
        return torch.linalg.vector_norm(flat, torch.inf, 1).double().cpu().expand(self.points)


def _same_rank(value: Any, output: Tensor) -> bool:
    return isinstance(value, Tensor) and value.ndim == output.ndim


def _least(value: Any) -> float:
    """The smallest absolute value but 0."""
    if not isinstance(value, Tensor):
        return abs(float(value))
    size = value.detach().abs().double()
    return float(torch.where(size > 0, size, torch.inf).min())


def _flat(args: Any) -> list[Any]:
    return [b for a in args for b in (_flat(a) if isinstance(a, tuple | list) else [a])]


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
