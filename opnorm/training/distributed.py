"""Several processes train one network, and get what one process would get, up to rounding.

    torchrun --nproc-per-node=4 -m opnorm train ... [--device cuda]

Every process has the whole network, draws the same batches and takes its share of each; gradients, batch-norm statistics
and the metrics are those of the whole batch. The first process alone reads and writes files, prints and analyzes. Where no
process group is initialized, all of this does nothing.

Not as in one process: dropout, and whatever else draws a number for each point in the global generator, draws the same
numbers for every share. A regularizer's state that follows the data (a warm start) is that of a process's own share, and a
checkpoint keeps the first one's.
"""

import atexit
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from opnorm._core.batch_norm import channel_scale
from opnorm.errors import TrainError

__all__ = [
    "distributed", "from_first", "joined", "leading", "leads", "part", "size", "together", "total", "whole_batch_norm",
]  # fmt: skip

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other: the first one may have much to measure at the end of an epoch."""
FAREWELL = timedelta(seconds=30)
"""How long one that failed waits until the others know."""


def size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _rank() -> int:
    return dist.get_rank() if size() > 1 else 0


def leads() -> bool:
    """Whether this is the first process, or the only one."""
    return _rank() == 0


@contextmanager
def joined(device: str) -> Iterator[str]:
    """Join the processes that torchrun started, and give the device of this one; alone, do nothing.

    Raises:
        TrainError: a device that the processes cannot share out.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if device == "cuda":
        device, backend = f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "cpu:gloo,cuda:nccl"
    elif device != "cpu":
        raise TrainError(f"device {device}: expected cpu or cuda, of which each process takes its own")
    store, rank, count = next(dist.rendezvous("env://"))
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=PATIENCE)
    if rank == 0:
        atexit.register(store.set, "opnorm has said why", "")
    try:
        with warnings.catch_warnings():
            if rank:
                warnings.simplefilter("ignore")  # the first process says the same
            yield device
    except Exception:
        if rank:  # once one process has gone, torchrun ends the others: the first must have had its say
            with suppress(RuntimeError):
                store.wait(["opnorm has said why"], FAREWELL)
        raise
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------- saying the same


@functools.cache
def _control(world: Any) -> Any:
    """A group for messages, which never mix with the tensors under way."""
    return dist.new_group(backend="gloo", timeout=PATIENCE)


@contextmanager
def together() -> Iterator[None]:
    """What fails here in one process fails in all of them, with a TrainError that says what it was."""
    try:
        yield
    except Exception as e:
        _failures(f"process {_rank()}: {type(e).__name__}: {e}")
        raise
    for failure in _failures(""):
        raise TrainError(failure)


def _failures(own: str) -> list[str]:
    if size() == 1:
        return []
    group = _control(dist.group.WORLD)
    failed = torch.tensor([bool(own)], dtype=torch.int32)
    work = dist.all_reduce(failed, group=group, async_op=True)
    try:
        work.wait(FAREWELL if own else PATIENCE)
    except RuntimeError:
        if not own:
            raise
        print("opnorm:", own, file=sys.stderr)  # the others wait elsewhere, until torchrun ends them
        return []
    if not failed.item():
        return []
    texts: list[Any] = [""] * size()
    dist.all_gather_object(texts, own, group=group)
    return [text for text in texts if text]


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in every process."""
    value = [None]
    with together():
        if leads():
            value = [make()]  # type: ignore[list-item]
    if size() > 1:
        dist.broadcast_object_list(value, 0, group=_control(dist.group.WORLD))
    return value[0]  # type: ignore[return-value]


@contextmanager
def leading() -> Iterator[Callable[[], None]]:
    """On the first process: gives what calls the others to work, who wait in ``from_first``; in the end they are let go."""
    called = False

    def call() -> None:
        nonlocal called
        called = True
        from_first(lambda: True)

    def dismiss() -> bool:
        return False

    try:
        yield call
    except Exception as e:
        if not called:
            _failures(f"process 0: {type(e).__name__}: {e}")
        raise
    if not called:
        from_first(dismiss)


# ---------------------------------------------------------------- one step


def part(batch: Tensor) -> Tensor:
    """This process's share of a batch (B, ...): (B / size, ...)."""
    return batch.chunk(size())[_rank()]


def total(*values: float) -> tuple[float, ...]:
    """The sums over all processes."""
    if size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_control(dist.group.WORLD))
    return tuple(sums.tolist())


def distributed(step: nn.Module) -> nn.Module:
    """A module whose gradients are means over all processes, and whose weights are now the first process's."""
    if size() == 1:
        return step
    return DistributedDataParallel(
        step, find_unused_parameters=True
    )  # a network may leave blocks out at random


@contextmanager
def whole_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norms in train mode take the statistics of the whole batch; names, weights and buffers stay what they are."""
    changed = [(m, type(m)) for m in model.modules() if type(m) in _WHOLE] if size() > 1 else []
    for module, kind in changed:
        module.__class__ = _WHOLE[kind]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


class _Sum(torch.autograd.Function):
    """Σ over all processes, which is its own adjoint; can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0])


class _WholeBatch(nn.modules.batchnorm._BatchNorm):
    """Has another forward only while it is called, so that it passes for the batch norm that it is in eval mode."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            self.forward = functools.partial(_batch_norm, self)  # type: ignore[method-assign]
        try:
            return super().__call__(*args, **kwargs)
        finally:
            vars(self).pop("forward", None)


def _batch_norm(layer: nn.modules.batchnorm._BatchNorm, input: Tensor) -> Tensor:
    layer._check_input_dim(input)
    axes, shape = [0, *range(2, input.ndim)], (1, -1, *[1] * (input.ndim - 2))
    x = input.to(torch.promote_types(input.dtype, torch.float32))
    mean = _Sum.apply(x.mean(axes)) / size()  # shares are equally large
    centered = x - mean.view(shape)
    var = _Sum.apply(centered.square().mean(axes)) / size()
    if layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None, "it comes with the statistics"
        layer.num_batches_tracked += 1
        momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        count = size() * input.numel() // input.shape[1]
        layer.running_mean.lerp_(mean.detach(), momentum)
        layer.running_var.lerp_(var.detach() * (count / max(count - 1, 1)), momentum)
    out = centered * channel_scale(var, layer.eps, layer.weight).view(shape)
    return (out if layer.bias is None else out + layer.bias.view(shape)).to(input.dtype)


_WHOLE: dict[type, Any] = {
    kind: type(kind.__name__, (_WholeBatch, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}
