"""How far a training is inside an epoch: the steps done, the random numbers to come, the metrics so far."""

import json
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from opnorm._core import files
from opnorm.errors import RunError
from opnorm.training.metrics import Meter, Metrics

__all__ = ["EpochPosition", "Session"]


class EpochPosition(NamedTuple):
    """The part of a checkpoint that tells where in an epoch it was written.

    Attributes:
        step: steps done.
        steps: of the epoch.
        seconds: that the epoch has taken.
        note: what the metrics will say of the training, such as its precision.
        tensors: the metrics so far, and the states of the random numbers.
    """

    step: int
    steps: int
    seconds: float
    note: Metrics
    tensors: dict[str, Tensor]

    @classmethod
    def of(
        cls, meter: Meter, generator: torch.Generator, device: torch.device, seconds: float, note: Metrics
    ) -> "EpochPosition":
        """The present one, of an epoch whose data are drawn by ``generator``."""
        tensors = {"random": torch.get_rng_state(), "order": generator.get_state(), **meter.state()}
        if device.type == "cuda":
            tensors["random_cuda"] = torch.cuda.get_rng_state(device)
        return cls(meter.step, meter.steps, seconds, note, tensors)

    def restore(self, meter: Meter, generator: torch.Generator, device: torch.device) -> None:
        """Continue the metrics and the random numbers.

        Raises:
            RunError: the epoch had another number of steps, or was trained on another kind of device.
        """
        if self.steps != meter.steps:
            raise RunError(
                f"the checkpoint is of step {self.step} of {self.steps} of an epoch, which now has {meter.steps}; expected "
                "the same data and batch. Likely cause: the data have changed; delete the folder to start over"
            )
        torch.set_rng_state(self.tensors["random"])
        generator.set_state(self.tensors["order"])
        if device.type == "cuda":
            if "random_cuda" not in self.tensors:
                raise RunError(
                    f"the checkpoint is of step {self.step} of an epoch on a CPU; expected one on {device}. Go on with the "
                    "epoch on a CPU, or delete the folder to start over"
                )
            torch.cuda.set_rng_state(self.tensors["random_cuda"], device)
        meter.restore(self.step, {name: tensor.to(device) for name, tensor in self.tensors.items()})

    def metadata(self) -> dict[str, str]:
        """All but the tensors, as texts."""
        return {"inside": files.to_json({k: v for k, v in self._asdict().items() if k != "tensors"}, None)}

    @classmethod
    def read(cls, metadata: dict[str, str], tensors: dict[str, Tensor]) -> "EpochPosition | None":
        """The position that a checkpoint holds; None where it was written between epochs."""
        return cls(**json.loads(metadata["inside"]), tensors=tensors) if "inside" in metadata else None


class Session:
    """A training from its start, or from where an earlier session was stopped, to its end or its next stop.

    Args:
        save: writes a checkpoint, inside an epoch or, for None, after it; None where there is nowhere to write.
        inside: where the earlier session was.
        device: where it trains.
        note: of a position.
        minutes: a checkpoint inside an epoch is written when the last one is so old.
    """

    def __init__(
        self,
        save: Callable[[EpochPosition | None], None] | None,
        inside: EpochPosition | None,
        device: torch.device,
        note: Metrics,
        minutes: float,
    ) -> None:
        self.save, self.inside, self.device, self.note, self.pause = save, inside, device, note, 60 * minutes
        self.saved = self.started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """That the present epoch has taken, in all sessions."""
        return time.perf_counter() - self.started

    def begin_epoch(self, meter: Meter, generator: torch.Generator) -> None:
        """Go to where the earlier session was, the first time."""
        self.started = time.perf_counter()
        if self.inside:
            self.started -= self.inside.seconds
            self.inside.restore(meter, generator, self.device)
            self.inside = None

    def after_step(self, meter: Meter, generator: torch.Generator) -> None:
        """Save after a step that is not the last one of its epoch, if it is time."""
        if self.save and meter.step < meter.steps and time.perf_counter() - self.saved >= self.pause:
            self.save(EpochPosition.of(meter, generator, self.device, self.seconds, self.note))
            self.saved = time.perf_counter()

    def end_epoch(self) -> None:
        """Save the state and the metrics of the epoch."""
        if self.save:
            self.save(None)
            self.saved = time.perf_counter()
