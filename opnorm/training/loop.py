"""The training loop, to be read from top to bottom.

An epoch depends on (seed, epoch) and on the state at its beginning, and on nothing else: the order of the data, the
augmentation, dropout and the attacks' random starts all follow from one seed set when it begins. A checkpoint within an
epoch holds the states of the random numbers as well. So a run that was killed resumes from its last checkpoint and ends,
on a CPU, with the same bits as one that was not.

In an initialized process group all processes train one network; see :mod:`opnorm.training.distributed`.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from opnorm._core import files
from opnorm._core.argument_checks import named
from opnorm._core.layers import check_initialized
from opnorm._core.memory import freed_memory_kept
from opnorm._core.modes import default_modes
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels
from opnorm.errors import ModelError, TrainError
from opnorm.objectives import Objective
from opnorm.regularizers import Hooks, chain
from opnorm.training import distributed
from opnorm.training.batches import Batches, open_batches
from opnorm.training.checkpoint import Checkpoint, TrainingState, read_checkpoint, restore, save_checkpoint
from opnorm.training.ema import Average
from opnorm.training.metrics import (
    Meter,
    Metrics,
    Progress,
    StalledCheck,
    diverged,
    explained_errors,
    not_finite,
)
from opnorm.training.position import EpochPosition, Session
from opnorm.training.precision import choose_precision, examples_for
from opnorm.training.setup_checks import (
    check_model,
    check_outcome,
    check_training,
    torch_device,
    warn_of_large_steps,
)
from opnorm.training.training_settings import TrainingSettings

__all__ = ["train"]


@default_modes(keep_autocast=True)
@freed_memory_kept()
@torch.enable_grad()
def train(
    model: nn.Module,
    data: Dataset,
    settings: TrainingSettings = TrainingSettings(),  # noqa: B008 - it is frozen
    *,
    device: torch.device | str = "cpu",
    folder: Path | str | None = None,
    probe: Callable[[nn.Module], Metrics] | None = None,
    progress: Progress | None = None,
    checkpoint_minutes: float = 10.0,
) -> list[Metrics]:
    """Train a model in place: ``train(model, data, TrainingSettings(epochs=5, objective=pgd_at()))``.

    Args:
        model: takes pixels (B, C, H, W) in [0, 1], gives logits (B, K). It ends with the averaged weights, if any.
        data: uint8 images and labels; the training part is used.
        settings: how to train.
        device: where to train.
        folder: a checkpoint and the metrics (JSON lines) of every epoch are written there, and found there.
        probe: measures the model, with averaged weights, after every epoch; added to the metrics.
        progress: called after every step (every 25th on a GPU).
        checkpoint_minutes: a checkpoint within an epoch is written when the last one is so old.

    Returns:
        The metrics of every epoch: epoch, lr, loss, train_accuracy, seconds, and what ``probe`` gives.

    Raises:
        TrainError: a batch that cannot be split evenly, or a loss or an output that is not finite (with the place).
        ModelError: the model has nothing to train, or does not give one logit for each class.
        RunError: the folder cannot be written or belongs to other settings.
    """
    folder, device = check_training(data, folder), torch_device(device)
    saved = distributed.broadcast_from_main(partial(read_checkpoint, folder))
    history: list[Metrics] = saved.history if saved else []
    state = _prepare(model, data, settings, device)
    loss, note = _loss(state, data, settings, device, saved)
    save = _start(saved, state, folder, history)
    session = Session(save, saved.inside if saved else None, device, note, checkpoint_minutes)
    stalled = StalledCheck(data.for_training.labels)
    cuda, steps = device.type == "cuda", max(1, len(data.for_training.labels) // settings.batch)
    with (
        torch.random.fork_rng([device] if cuda else []), distributed.synchronized_batch_norm(model),
        open_batches(data.for_training, device) as batches,
    ):  # fmt: skip
        for epoch in range(len(history), settings.epochs):
            meter = Meter(epoch, settings.epochs, steps, progress, every=25 if cuda else 1)
            rate = _train_epoch(state, loss, batches, settings, meter, session)
            with distributed.synchronized_errors():
                stalled.see(meter)
                row = {"epoch": epoch + 1, "lr": rate, **meter.result(), **note, "seconds": session.seconds}
                if probe and distributed.is_main_process():
                    with state.average.applied(state.hooks.constrain):
                        row |= probe(model)
                history.append(row)
                session.end_epoch()
    state.average.apply(state.hooks.constrain)
    return history


def _start(
    saved: Checkpoint | None, state: TrainingState, folder: Path | None, history: list[Metrics]
) -> Callable[[EpochPosition | None], None] | None:
    """Restore what was saved; gives the function that saves, in the main process of a training with a folder.

    Raises:
        ModelError: a weight is not finite before training, which no learning rate is to blame for.
    """
    if saved:
        restore(saved, state, folder)
    _check_weights(state.model, f"the checkpoint in {folder}" if saved else "the network")
    if not folder or not distributed.is_main_process():
        return None
    files.make_folder(folder)
    return partial(save_checkpoint, folder, state, history)


def _check_weights(model: nn.Module, what: str) -> None:
    for name, weight in model.named_parameters():
        if bad := int((~torch.isfinite(weight)).sum()):
            raise ModelError(
                f"{what} has NaN or infinite values before any step: {bad} of {weight.numel()} in weight {name!r}; damaged "
                "weights, or those of a training that diverged"
            )


def _train_epoch(
    state: TrainingState,
    loss_of: nn.Module,
    batches: Batches,
    settings: TrainingSettings,
    meter: Meter,
    session: Session,
) -> float:
    """One pass over the data, from its beginning or from where an earlier session was; gives the last learning rate."""
    model, optimizer, hooks = state.model, state.optimizer, state.hooks
    epoch, steps = meter.epoch, meter.steps
    seed = (settings.seed * 1_000_003 + epoch) % 2**63
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    chunks = batches.order(generator)[: steps * settings.batch].chunk(steps)
    session.begin_epoch(meter, generator)
    model.train()
    for step, (x, y) in enumerate(batches.load(chunks[meter.step :]), meter.step):
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * settings.schedule(epoch + step / steps, settings.epochs)
        rate = float(optimizer.param_groups[0]["lr"])
        for augment in settings.augment:
            x = augment(x, generator)
        x, y = distributed.shard(x), distributed.shard(y)
        x = as_pixels(x).contiguous(memory_format=_memory_format(settings))

        optimizer.zero_grad(set_to_none=True)
        with distributed.synchronized_errors(), explained_errors(model, x, epoch, step, steps):
            loss, logits = loss_of(x, y)
        meter.add(loss.detach(), logits, y, partial(not_finite, model, x))
        loss.backward()
        hooks.edit_grads()
        optimizer.step()
        hooks.after_step(rate)
        state.average.update(epoch * steps + step + 1)
        session.after_step(meter, generator)
    with distributed.synchronized_errors():
        if where := not_finite(model, x):  # after the last step, which no loss follows
            raise diverged("the network is broken", epoch, steps - 1, steps, where)
    hooks.after_epoch()
    return rate


class _TrainingLoss(nn.Module):
    """What is differentiated: the objective, under autocast if at all, and the penalties."""

    def __init__(
        self, model: nn.Module, objective: Objective, hooks: Hooks, precision: str, device: torch.device
    ) -> None:
        super().__init__()
        self.model, self.objective, self.hooks = model, objective, hooks
        self.bf16, self.device = precision == "bf16", device.type

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, and the detached logits."""
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else nullcontext():
            outcome = check_outcome(self.objective(self.model, x, y), y)
        return outcome.loss + self.hooks.penalty(self.model, x, y), outcome.logits.detach()


def _prepare(
    model: nn.Module, data: Dataset, settings: TrainingSettings, device: torch.device
) -> TrainingState:
    """The state at the beginning of a training."""
    if not isinstance(settings, TrainingSettings):
        raise TrainError(f"settings is {named(settings)}; expected TrainingSettings(epochs=5, ...)")
    check_initialized(model, "train")
    model.to(device)
    model.to(memory_format=_memory_format(settings))  # type: ignore[call-overload] # torch's stubs leave it out
    batch = min(settings.batch, len(data.train.images))
    example = _example(data.for_training.images[: min(batch, 32)].to(device), settings)
    check_model(model, example[:1], data.num_classes, type(model).__name__, exactly=False)
    hooks = chain([bind(model, example) for bind in settings.regularizers])
    if batch % distributed.world_size():
        raise TrainError(
            f"{batch} points a step cannot be split evenly among {distributed.world_size()} processes; "
            "expected a multiple of their number"
        )
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not weights:
        raise ModelError(f"{type(model).__name__} has no weights to train; are all of them frozen?")
    optimizer = settings.optimizer(list(weights.values()))
    warn_of_large_steps(settings.objective, optimizer)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return TrainingState(model, optimizer, hooks, Average(weights, settings.ema))


def _loss(
    state: TrainingState,
    data: Dataset,
    settings: TrainingSettings,
    device: torch.device,
    saved: Checkpoint | None,
) -> tuple[nn.Module, Metrics]:
    """The module that computes the loss, and what the metrics say of it: the precision that was chosen, if it was."""
    precision = _precision(state.model, data, settings, device, saved)
    loss = _TrainingLoss(state.model, settings.objective, state.hooks, precision, device)
    note = {"precision": precision} if settings.precision == "auto" else {}
    return distributed.data_parallel(loss), note


def _precision(
    model: nn.Module,
    data: Dataset,
    settings: TrainingSettings,
    device: torch.device,
    saved: Checkpoint | None,
) -> str:
    """The precision in which all processes train: the one that was chosen before, if any."""
    if settings.precision == "fp32":
        return "fp32"
    if settings.precision == "auto" and saved:
        return str(saved.note["precision"])
    count = examples_for(settings.batch, device)
    images, labels = (tensor[:count].to(device) for tensor in data.for_training)
    x = _example(images, settings).contiguous(memory_format=_memory_format(settings))
    return distributed.broadcast_from_main(partial(choose_precision, model, x, labels, settings.precision))


def _example(images: Tensor, settings: TrainingSettings) -> Tensor:
    """Pixels for regularizers to be bound with, of the shape that training sees; augmented only where that changes it."""
    augmented = images
    for augment in settings.augment:
        augmented = augment(augmented, torch.Generator().manual_seed(settings.seed))
    return as_pixels(images if augmented.shape == images.shape else augmented)


def _memory_format(settings: TrainingSettings) -> torch.memory_format:
    return torch.channels_last if settings.channels_last else torch.contiguous_format
