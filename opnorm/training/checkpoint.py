"""The state of a training after an epoch or inside one, in one safetensors file; nothing is ever unpickled."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core import files
from opnorm.errors import RunError
from opnorm.regularizers import Hooks
from opnorm.training.ema import Average
from opnorm.training.metrics import Metrics
from opnorm.training.position import EpochPosition

__all__ = ["Checkpoint", "TrainingState", "read_checkpoint", "restore", "save_checkpoint"]

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"
NEXT = "checkpoint.next.safetensors"  # until it takes the place of the last one
PREVIOUS = "checkpoint.previous.safetensors"  # the one before, for when the last one is damaged


@dataclass(frozen=True)
class TrainingState:
    """What changes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    hooks: Hooks
    average: Average


class Checkpoint(NamedTuple):
    """What was saved: tensors by ``part/name``, the epochs done, the metrics of each, and the place in the next one."""

    tensors: dict[str, Tensor]
    epochs: int
    history: list[Metrics]
    inside: EpochPosition | None = None

    @property
    def note(self) -> Metrics:
        """What the metrics say of the training, such as its precision."""
        return self.inside.note if self.inside else self.history[-1]


def save_checkpoint(
    folder: Path, state: TrainingState, history: list[Metrics], inside: EpochPosition | None = None
) -> None:
    """First the metrics, then the state: a line too many is dropped on resuming, one too few cannot be made up."""
    files.write_lines(folder / METRICS, history)
    tensors = {f"model/{k}": v for k, v in state.model.state_dict().items()}
    tensors |= {f"hooks/{k}": v for k, v in state.hooks.state.items()}
    tensors |= {f"average/{k}": v for k, v in state.average.state.items()}
    for i, slots in state.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
    metadata = {"epoch": str(len(history)), "metrics": files.lines_checksum(history)}
    if inside:
        tensors |= {f"inside/{k}": v for k, v in inside.tensors.items()}
        metadata |= inside.metadata()
    files.write_tensors(folder / NEXT, tensors, metadata)  # beside the last one, in case the disk is full
    with files.writing(folder / CHECKPOINT):
        if (folder / CHECKPOINT).exists():
            (folder / CHECKPOINT).replace(folder / PREVIOUS)
        (folder / NEXT).replace(folder / CHECKPOINT)


def read_checkpoint(folder: Path | None) -> Checkpoint | None:
    """What was saved last in a folder, or, with a warning, what was saved before it if that is damaged; None without any.

    Raises:
        RunError: both are damaged.
    """
    if folder is None:
        return None
    found = [folder / name for name in (CHECKPOINT, PREVIOUS) if (folder / name).exists()]
    damage: RunError | None = None
    for path in found:
        try:
            saved = _read(path, folder / METRICS)
        except RunError as e:
            damage = damage or e
            continue
        if damage:
            warnings.warn(
                f"{damage}. The training goes on from the checkpoint before, of epoch {saved.epochs}",
                stacklevel=2,
            )
        return saved
    if damage:
        raise damage
    return None


def _read(path: Path, metrics: Path) -> Checkpoint:
    tensors, metadata = files.read_tensors(path, checked=True)
    history, epochs = files.read_lines(metrics), metadata.get("epoch", "")
    if not epochs.isdecimal() or int(epochs) > len(history):
        raise RunError(
            f"the checkpoint {path} is of epoch {epochs or '?'}, and {metrics.name} ends at epoch {len(history)}; "
            "delete the folder to start over"
        )
    history = history[: int(epochs)]
    if metadata.get("metrics") != files.lines_checksum(history):
        raise RunError(
            f"{metrics} has changed since the checkpoint was written; delete the folder to start over"
        )
    own = {k.removeprefix("inside/"): v for k, v in tensors.items() if k.startswith("inside/")}
    return Checkpoint(tensors, int(epochs), history, EpochPosition.read(metadata, own))


def restore(saved: Checkpoint, state: TrainingState, folder: Path | None) -> None:
    """Put a saved state back, in place.

    Raises:
        RunError: it is of another network, optimizer or regularizer.
    """
    parts: dict[str, dict[str, Tensor]] = {
        p: {} for p in ("model", "hooks", "average", "optimizer", "inside")
    }
    try:
        for key, tensor in saved.tensors.items():
            part, _, name = key.partition("/")
            parts[part][name] = tensor
        state.model.load_state_dict(parts["model"])
        for part, own in (("hooks", state.hooks.state), ("average", state.average.state)):
            for name, tensor in own.items():
                tensor.copy_(parts[part][name])
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in parts["optimizer"].items():
            i, _, slot = name.partition("/")
            slots.setdefault(int(i), {})[slot] = tensor
        state.optimizer.load_state_dict(state.optimizer.state_dict() | {"state": slots})
    except (RuntimeError, KeyError, ValueError) as e:
        raise RunError(
            f"the checkpoint in {folder} does not fit this run: {e}; delete the folder to start over"
        ) from e
