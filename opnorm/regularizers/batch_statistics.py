"""A model in training as a map of single points: batch norm by statistics that do not depend on the point."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from opnorm._core.batch_norm import channel_scale
from opnorm._core.modes import Mode, default_modes, evaluating
from opnorm._core.outputs import output_of
from opnorm.norms.network.trace import eagerly

__all__ = ["point_by_point"]


@contextmanager
def point_by_point(model: nn.Module, x: Tensor, mode: Mode = "as is") -> Iterator[Callable[[Tensor], Tensor]]:
    """The function in training, with statistics of the batch that do not depend on the inputs.

    Batch norms in train mode, all of them where ``mode`` is "train" and none where it is "eval", normalize by the mean and
    variance of the batch x, whatever the later inputs: so every point has a Jacobian of its own, and the running statistics,
    which lag behind and may be far off in the first steps, have no influence and do not change. As functions of the weights
    the statistics are differentiated: the scale of a convolution before batch norm has no effect, and gets no gradient.
    Batch norms in eval mode keep their running statistics, and dropout is off.

    The function takes z of the shape of x, without autocast, with gradients unless they are switched off.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    frozen = {"as is": [m for m in norms if not m.training], "train": [], "eval": norms}[mode]
    statistics = _Statistics({id(m.running_mean) for m in frozen})
    with (
        evaluating(model),
        eagerly(),
        torch.enable_grad(),
        default_modes(),
        statistics,
    ):
        if any(id(m.running_mean) not in statistics.frozen for m in norms):
            model(x.detach().clone())

        def f(z: Tensor) -> Tensor:
            statistics.next = 0
            return output_of(model, z)

        yield f


class _Statistics(TorchFunctionMode):
    """Batch norm as x ↦ scale x + shift, by means and variances that the first pass stores in the order of the calls."""

    def __init__(self, frozen: set[int]) -> None:
        super().__init__()
        self.frozen = frozen
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.next: int | None = None  # None in the first pass

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        call = self.normalize if func is F.batch_norm else func
        return call(*args, **(kwargs or {}))

    def normalize(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """F.batch_norm without a change of the running statistics."""
        if running_mean is not None and running_var is not None and id(running_mean) in self.frozen:
            mean, var = running_mean, running_var
        elif self.next is None:
            var, mean = torch.var_mean(x, (0, *range(2, x.ndim)), correction=0)
            self.kept.append((mean, var))
        else:
            mean, var = self.kept[self.next]
            self.next += 1
        scale = channel_scale(var, eps, weight)
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = (-1, *(1,) * (x.ndim - 2))
        return torch.addcmul(shift.view(shape), x, scale.view(shape))
