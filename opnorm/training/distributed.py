"""Several processes train one network, with the result of one process up to rounding.

    torchrun --nproc-per-node=4 -m opnorm train ... [--device cuda]

Every process has the whole network, draws the same batches and computes its shard of each; gradients, batch-norm
statistics and metrics are those of the whole batch. The main process (rank 0) alone reads and writes files, prints and
analyzes. Without an initialized process group all of this does nothing.

Not as in one process: dropout, and whatever else draws a number for each point from the global generator, draws the same
numbers for every shard. A regularizer's state that follows the data (a warm start) is that of a process's own shard, and
a checkpoint holds that of the main process.
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
    "all_reduce_sum", "broadcast_from_main", "data_parallel", "is_main_process", "process_group", "rank", "shard",
    "start_signal", "synchronized_batch_norm", "synchronized_errors", "world_size",
]  # fmt: skip

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)  # of collectives: the main process may measure much at the end of an epoch
ERROR_TIMEOUT = timedelta(seconds=30)  # of a process that failed, until the others know
MAIN_HAS_REPORTED = "opnorm: main process has reported its error"


def world_size() -> int:
    """How many processes train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0; 0 without a process group."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main_process() -> bool:
    """Whether this is the process of rank 0, or the only one."""
    return rank() == 0


@contextmanager
def process_group(device: str) -> Iterator[str]:
    """Initialize the group of the processes that torchrun started, and give the device of this one.

    Raises:
        TrainError: a device that several processes cannot use.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield device
        return
    backend = "gloo"
    if device == "cuda":
        device, backend = f"cuda:{os.environ.get('LOCAL_RANK', '0')}", "cpu:gloo,cuda:nccl"
    elif device != "cpu":
        raise TrainError(f"device {device}: expected cpu or cuda, of which each process takes its own")
    store, own_rank, count = next(dist.rendezvous("env://"))
    if (
        os.environ.get("GROUP_WORLD_SIZE") == "1"
    ):  # torchrun keeps what a group that has died wrote in the store
        store = dist.PrefixStore(f"attempt {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    dist.init_process_group(backend, store=store, rank=own_rank, world_size=count, timeout=TIMEOUT)
    if own_rank == 0:
        atexit.register(store.set, MAIN_HAS_REPORTED, "")
    try:
        with warnings.catch_warnings():
            if own_rank:
                warnings.simplefilter("ignore")  # the main process warns of the same
            yield device
    except Exception:
        if own_rank:  # torchrun ends all processes as soon as one exits: the main process must report first
            with suppress(RuntimeError):
                store.wait([MAIN_HAS_REPORTED], ERROR_TIMEOUT)
        raise
    finally:
        dist.destroy_process_group()


# ---------------------------------------------------------------- errors and messages


@functools.cache
def _messages(world: Any) -> Any:
    """A group for messages, apart from the one that reduces gradients; made once per process group."""
    return dist.new_group(backend="gloo", timeout=TIMEOUT)


@contextmanager
def synchronized_errors() -> Iterator[None]:
    """An exception in one process is raised in all of them; in the others as a TrainError with its text."""
    try:
        yield
    except Exception as e:
        _exchange_errors(f"process {rank()}: {type(e).__name__}: {e}")
        raise
    for error in _exchange_errors(""):
        raise TrainError(error)


def _exchange_errors(own: str) -> list[str]:
    """The errors of all processes; ``own`` is empty where there was none."""
    if world_size() == 1:
        return []
    group = _messages(dist.group.WORLD)
    failed = torch.tensor([bool(own)], dtype=torch.int32)
    work = dist.all_reduce(failed, group=group, async_op=True)
    try:
        work.wait(ERROR_TIMEOUT if own else TIMEOUT)
    except RuntimeError:
        if not own:
            raise
        # the others wait in another collective, until torchrun ends them
        print("opnorm:", own, file=sys.stderr)
        return []
    if not failed.item():
        return []
    texts: list[Any] = [""] * world_size()
    dist.all_gather_object(texts, own, group=group)
    return [text for text in texts if text]


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What ``make()`` returns in the main process, in every process."""
    value = [None]
    with synchronized_errors():
        if is_main_process():
            value = [make()]  # type: ignore[list-item]
    if world_size() > 1:
        dist.broadcast_object_list(value, 0, group=_messages(dist.group.WORLD))
    return value[0]  # type: ignore[return-value]


@contextmanager
def start_signal() -> Iterator[Callable[[], None]]:
    """In the main process: gives the function that starts the others.

    They wait in ``broadcast_from_main(bool)``, which gives True when the function is called, False when the block ends
    without a call, and raises the error of a block that fails before the call.
    """
    started = False

    def start() -> None:
        nonlocal started
        started = True
        broadcast_from_main(lambda: True)

    try:
        yield start
    except Exception as e:
        if not started:
            _exchange_errors(f"process 0: {type(e).__name__}: {e}")
        raise
    if not started:
        broadcast_from_main(bool)


# ---------------------------------------------------------------- one step


def shard(batch: Tensor) -> Tensor:
    """This process's part of a batch (B, ...): (B / world size, ...)."""
    return batch.chunk(world_size())[rank()]


def all_reduce_sum(*values: float) -> tuple[float, ...]:
    """The sums over all processes, in float64."""
    if world_size() == 1:
        return values
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_messages(dist.group.WORLD))
    return tuple(sums.tolist())


def data_parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients are means over all processes, and whose weights are the main process's."""
    if world_size() == 1:
        return module
    # a network may leave blocks out at random
    return DistributedDataParallel(module, find_unused_parameters=True)


@contextmanager
def synchronized_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norms in train mode use the statistics of the whole batch; names, weights and buffers are unchanged.

    (torch's SyncBatchNorm works on GPUs only, cannot be differentiated twice, and changes the modules for good.)
    """
    changed = [(m, type(m)) for m in model.modules() if type(m) in _SYNCHRONIZED] if world_size() > 1 else []
    for module, kind in changed:
        module.__class__ = _SYNCHRONIZED[kind]
    try:
        yield
    finally:
        for module, kind in changed:
            module.__class__ = kind


class _Sum(torch.autograd.Function):
    """The sum over all processes, which is its own adjoint; can be differentiated any number of times."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _Sum.apply(grads[0])


class _Synchronized(nn.modules.batchnorm._BatchNorm):
    """Replaces ``forward`` only during a call in train mode; the class stays that of an ordinary batch norm."""

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
    mean = _Sum.apply(x.mean(axes)) / world_size()  # shards are equally large
    centered = x - mean.view(shape)
    var = _Sum.apply(centered.square().mean(axes)) / world_size()
    if layer.running_mean is not None and layer.running_var is not None:
        assert layer.num_batches_tracked is not None, "it comes with the statistics"
        layer.num_batches_tracked += 1
        momentum = 1 / int(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
        count = world_size() * input.numel() // input.shape[1]
        layer.running_mean.lerp_(mean.detach(), momentum)
        layer.running_var.lerp_(var.detach() * (count / max(count - 1, 1)), momentum)
    out = centered * channel_scale(var, layer.eps, layer.weight).view(shape)
    return (out if layer.bias is None else out + layer.bias.view(shape)).to(input.dtype)


_SYNCHRONIZED: dict[type, Any] = {
    kind: type(kind.__name__, (_Synchronized, kind), {})
    for kind in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
}
