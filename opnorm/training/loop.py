"""The training loop, to be read from top to bottom.

An epoch depends on (seed, epoch) and on the state at its beginning, and on nothing else: the order of the data, the
augmentation, dropout and the attacks' random starts all follow from one seed set when it begins. So a run that was
killed goes on from its last checkpoint and ends, on a CPU, with the same bits as one that was not.

In an initialized process group all processes train one network; see :mod:`opnorm.training.distributed`.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core import files
from opnorm._core.layers import check_initialized
from opnorm._core.modes import evaluating
from opnorm.data import Dataset
from opnorm.data.augmentations import Augmentation
from opnorm.errors import AttackError, ModelError, RunError, TrainError
from opnorm.objectives import Objective, plain
from opnorm.regularizers import Hooks, Regularizer, chain
from opnorm.training import distributed as parallel
from opnorm.training.ema import Average
from opnorm.training.optimizers import MakeOptimizer, sgd
from opnorm.training.schedules import Schedule, cosine

__all__ = ["Moment", "Precision", "check_settings", "train"]

Precision = Literal["fp32", "bf16"]
Metrics = dict[str, Any]
Saved = tuple[dict[str, Tensor], dict[str, str], list[Metrics]]


class Moment(NamedTuple):
    """Where training is, told to whoever watches."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


def train(
    model: nn.Module,
    data: Dataset,
    *,
    objective: Objective | None = None,
    regularizers: Sequence[Regularizer] = (),
    optimizer: MakeOptimizer | None = None,
    schedule: Schedule | None = None,
    epochs: int = 10,
    batch: int = 128,
    augment: Sequence[Augmentation] = (),
    seed: int = 0,
    precision: Precision = "fp32",
    channels_last: bool = False,
    ema: float = 0.0,
    device: torch.device | str = "cpu",
    folder: Path | None = None,
    probe: Callable[[nn.Module], Metrics] | None = None,
    watch: Callable[[Moment], None] | None = None,
) -> list[Metrics]:
    """Train a model in place.

    Args:
        model: takes pixels (B, C, H, W) in [0, 1], gives logits (B, K).
        data: uint8 images and labels; the training part is used.
        objective: the loss; cross-entropy when None.
        regularizers: applied in this order.
        optimizer: SGD with momentum 0.9 at 0.1 when None.
        schedule: of the learning rate; cosine when None.
        epochs: passes over the data.
        batch: points a step; what does not fill a last batch waits for the next shuffle.
        augment: applied to each uint8 batch, on the device.
        seed: of everything random but the model's own initialization.
        precision: "bf16" computes the objective under autocast; weights stay in float32. Attacks in eval mode then ask
            a copy with folded batch norms (:mod:`opnorm._core.surrogate`).
        channels_last: memory format of images and weights.
        ema: decay a step, in [0, 1), of an exponential moving average of the weights, such as 0.995; the probe sees it
            and the model ends with it. 0 for none.
        device: where to train.
        folder: keeps a checkpoint and the metrics (JSON lines) of every epoch, and goes on from what it finds there.
        probe: measured at the end of every epoch, added to its metrics.
        watch: told of every step (every 25th on a GPU).

    Returns:
        The metrics of every epoch: epoch, lr, loss, train_accuracy, seconds, and what ``probe`` gives.

    Raises:
        TrainError: settings that make no sense, or a loss or an output that is not finite (with the place).
        ModelError: the model has nothing to train.
        RunError: the folder cannot be written or belongs to other settings.
    """
    check_settings(epochs, batch, precision, seed, ema)
    objective, optimizer, schedule = objective or plain(), optimizer or sgd(), schedule or cosine()
    device, memory_format = (
        torch.device(device),
        torch.channels_last if channels_last else torch.contiguous_format,
    )
    check_initialized(model, "train")
    model.to(device)
    model.to(memory_format=memory_format)  # type: ignore[call-overload] # torch's stubs leave it out
    images, labels = data.train.images.to(device), data.train.labels.to(device)
    example = as_pixels(images[: min(batch, 32)])
    hooks = chain([bind(model, example) for bind in regularizers])
    steps = max(1, len(images) // batch)
    if min(batch, len(images)) % parallel.size():
        raise TrainError(
            f"{min(batch, len(images))} points a step cannot be shared out evenly among {parallel.size()} processes; "
            "expected a multiple of their number"
        )
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ModelError(f"{type(model).__name__} has no weights to train; are all of them frozen?")
    sgd_like = optimizer(list(weights.values()))
    base_rates = [group["lr"] for group in sgd_like.param_groups]
    forward = parallel.distributed(Step(model, objective, hooks, precision, device))
    average = Average(weights, ema)
    checkpoint = Checkpoint(folder, model, sgd_like, hooks, average)
    history = checkpoint.restore(parallel.from_first(checkpoint.read))

    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), parallel.whole_batch_norm(model):
        for epoch in range(len(history), epochs):
            started, meter = time.perf_counter(), Meter(epoch, epochs, steps, watch, every=25 if cuda else 1)
            torch.manual_seed(_epoch_seed(seed, epoch))
            generator = torch.Generator().manual_seed(_epoch_seed(seed, epoch))
            order = torch.randperm(len(images), generator=generator).to(device)
            model.train()
            for step, chosen in enumerate(order[: steps * batch].chunk(steps)):
                rates = [rate * schedule(epoch + step / steps, epochs) for rate in base_rates]
                for group, rate in zip(sgd_like.param_groups, rates, strict=True):
                    group["lr"] = rate
                x, y = images[chosen], labels[chosen]
                for change in augment:
                    x = change(x, generator)
                x, y = parallel.part(x), parallel.part(y)
                x = as_pixels(x).contiguous(memory_format=memory_format)

                sgd_like.zero_grad(set_to_none=True)
                with parallel.together():
                    try:
                        loss, logits = forward(x, y)
                    except AttackError as e:  # an attack refuses a model that has diverged
                        if not (where := not_finite(model, x)):
                            raise
                        raise _diverged("the attack has no target", epoch, step, steps, where) from e
                    except ValueError as e:
                        if "more than 1 value per channel" not in str(e):
                            raise
                        raise TrainError(
                            f"batch={batch}: batch norm cannot normalize {len(x)} point of one pixel a channel; expected "
                            "larger batches (or larger images, or a network without batch norm)"
                        ) from e
                meter.add(loss.detach(), logits, y, partial(not_finite, model, x))
                loss.backward()
                hooks.edit_grads()
                sgd_like.step()
                hooks.after_step(rates[0])
                average.update(epoch * steps + step + 1)
            with parallel.together():
                if where := not_finite(model, x):  # the last step's doing, which no loss has seen
                    raise _diverged("the network is broken", epoch, steps - 1, steps, where)
            hooks.after_epoch()
            with parallel.together():
                row = {
                    "epoch": epoch + 1,
                    "lr": rates[0],
                    **meter.result(),
                    "seconds": time.perf_counter() - started,
                }
                if probe and parallel.leads():
                    with average.shown():
                        row |= probe(model)
                history.append(row)
                if parallel.leads():
                    checkpoint.save(history)
    average.settle()
    return history


def as_pixels(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) -> float32 in [0, 1]."""
    return images.float().div_(255)


def _epoch_seed(seed: int, epoch: int) -> int:
    return (seed * 1_000_003 + epoch) % 2**63


class Step(nn.Module):
    """What is differentiated: the objective, under autocast if at all, and the penalties."""

    def __init__(
        self, model: nn.Module, objective: Objective, hooks: Hooks, precision: Precision, device: torch.device
    ) -> None:
        super().__init__()
        self.model, self.objective, self.hooks = model, objective, hooks
        self.precision, self.device = precision, device.type

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the logits without their history."""
        with torch.autocast(self.device, torch.bfloat16) if self.precision == "bf16" else nullcontext():
            outcome = self.objective(self.model, x, y)
        return outcome.loss + self.hooks.penalty(self.model, x, y), outcome.logits.detach()


def check_settings(epochs: int, batch: int, precision: str, seed: int, ema: float = 0.0) -> None:
    """TrainError for numbers that make no sense."""
    if epochs < 0 or batch < 1:
        raise TrainError(
            f"epochs={epochs!r}, batch={batch!r}: expected at least 0 epochs and 1 point a batch"
        )
    if precision not in ("fp32", "bf16"):
        raise TrainError(f"precision={precision!r}: expected fp32 or bf16")
    if not 0 <= seed < 2**63:
        raise TrainError(f"seed={seed!r}: expected a whole number from 0 to 2**63 - 1")
    if isinstance(ema, bool) or not 0 <= ema < 1:
        raise TrainError(f"ema={ema!r}: expected a decay a step in [0, 1), such as 0.995; 0 for no average")


class Meter:
    """Running loss and accuracy of one epoch, kept on the device and looked at now and then."""

    def __init__(
        self, epoch: int, epochs: int, steps: int, watch: Callable[[Moment], None] | None, every: int
    ) -> None:
        self.epoch, self.epochs, self.steps, self.watch, self.every = epoch, epochs, steps, watch, every
        self.step, self.points = 0, 0
        self.mean, self.accuracy = 0.0, 0.0
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | int = 0

    def add(self, loss: Tensor, logits: Tensor, y: Tensor, where: Callable[[], str]) -> None:
        """Count a step, before the weights take it; TrainError when the loss is no longer finite."""
        self.step, self.points = self.step + 1, self.points + len(y)
        self.loss = self.loss + loss * len(y)
        self.correct = self.correct + (logits.argmax(1) == y).sum()
        if self.step % self.every and self.step < self.steps:
            return
        sums = parallel.total(float(self.loss), float(self.correct), self.points)
        self.mean, self.accuracy = sums[0] / sums[2], sums[1] / sums[2]
        if not math.isfinite(self.mean):
            raise _diverged(f"the loss is {self.mean}", self.epoch, self.step - 1, self.steps, where())
        if self.watch:
            self.watch(Moment(self.epoch + 1, self.epochs, self.step, self.steps, self.mean, self.accuracy))

    def result(self) -> Metrics:
        """Means over the epoch."""
        return {"loss": self.mean, "train_accuracy": self.accuracy}


def _diverged(what: str, epoch: int, step: int, steps: int, where: str) -> TrainError:
    where = where or "weights and outputs are finite, so it is the loss itself or a penalty"
    return TrainError(
        f"{what} at epoch {epoch + 1}, step {step + 1} of {steps}: {where}; "
        "a smaller learning rate or a weaker regularizer usually helps"
    )


def not_finite(model: nn.Module, x: Tensor) -> str:
    """Which weight, else which layer's output for ``x``, is NaN or infinite; empty when none is."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"weight {name!r} is no longer finite"
    bad: list[str] = []

    def look(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                bad.append(f"the output of layer {name!r} ({type(layer).__name__}) is not finite")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(look(n)) for n, m in leaves]
    with evaluating(model):
        model(x)
    for handle in handles:
        handle.remove()
    return bad[0] if bad else ""


class Checkpoint:
    """The state of a run after its last whole epoch, in one safetensors file; nothing is ever unpickled."""

    def __init__(
        self,
        folder: Path | None,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        hooks: Hooks,
        average: Average,
    ) -> None:
        self.folder, self.model, self.optimizer, self.hooks = folder, model, optimizer, hooks
        self.average = average

    def save(self, history: list[Metrics]) -> None:
        """First the metrics, then the state: a line too many is dropped on resuming, one too few cannot be made up."""
        if self.folder is None:
            return
        files.write_lines(self.folder / "metrics.jsonl", history)
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"hooks/{k}": v for k, v in self.hooks.state.items()}
        tensors |= {f"average/{k}": v for k, v in self.average.state.items()}
        for i, slots in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{i}/{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
        files.write_tensors(self.folder / "checkpoint.safetensors", tensors, {"epoch": str(len(history))})

    def read(self) -> Saved | None:
        """What was saved: the tensors, their metadata and the metrics; None when there is nothing."""
        if self.folder is None or not (self.folder / "checkpoint.safetensors").exists():
            return None
        tensors, metadata = files.read_tensors(self.folder / "checkpoint.safetensors")
        return tensors, metadata, files.read_lines(self.folder / "metrics.jsonl")

    def restore(self, saved: Saved | None) -> list[Metrics]:
        """Put the saved state back, if there is one, and return the metrics up to it."""
        if saved is None:
            return []
        tensors, metadata, history = saved
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "hooks": {}, "average": {}, "optimizer": {}}
        try:
            for key, tensor in tensors.items():
                part, _, name = key.partition("/")
                parts[part][name] = tensor
            done = int(metadata["epoch"])
            if done > len(history):
                raise ValueError(f"it is of epoch {done}, and metrics.jsonl ends at epoch {len(history)}")
            self.model.load_state_dict(parts["model"])
            for part, state in (("hooks", self.hooks.state), ("average", self.average.state)):
                for name, own in state.items():
                    own.copy_(parts[part][name])
            self._restore_optimizer(parts["optimizer"])
        except (RuntimeError, KeyError, ValueError) as e:
            raise RunError(
                f"the checkpoint in {self.folder} does not fit this run: {e}; delete the folder to start over"
            ) from e
        return history[:done]

    def _restore_optimizer(self, saved: dict[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in saved.items():
            i, _, slot = name.partition("/")
            state.setdefault(int(i), {})[slot] = tensor
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
