"""Loss and accuracy of an epoch, and where a training has diverged."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from opnorm._core.modes import evaluating
from opnorm.errors import AttackError, ModelError, TrainError
from opnorm.training import distributed

__all__ = [
    "Meter",
    "Metrics",
    "Progress",
    "StalledCheck",
    "TrainingProgress",
    "diverged",
    "explained_errors",
    "not_finite",
]

Metrics = dict[str, Any]


class TrainingProgress(NamedTuple):
    """How far a training is: epoch and step count from 1; loss and accuracy are means over the epoch so far."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    accuracy: float


Progress = Callable[[TrainingProgress], None]


class Meter:
    """Running loss and accuracy of one epoch, kept on the device and read every ``every`` steps."""

    def __init__(self, epoch: int, epochs: int, steps: int, progress: Progress | None, every: int) -> None:
        self.epoch, self.epochs, self.steps, self.progress, self.every = epoch, epochs, steps, progress, every
        self.step, self.points = 0, 0
        self.mean, self.accuracy = 0.0, 0.0
        self.loss: Tensor | float = 0.0
        self.correct: Tensor | int = 0
        self.answers: Tensor | None = None  # how often each class was predicted

    def add(self, loss: Tensor, logits: Tensor, y: Tensor, where: Callable[[], str]) -> None:
        """Count a step, before the weights take it; TrainError when the loss is no longer finite."""
        self.step, self.points = self.step + 1, self.points + len(y)
        self.loss = self.loss + loss * len(y)
        predicted = logits.argmax(1)
        self.correct = self.correct + (predicted == y).sum()
        if self.answers is None:
            self.answers = torch.zeros(logits.shape[1], dtype=torch.float32, device=logits.device)
        self.answers.scatter_add_(0, predicted, torch.ones_like(predicted, dtype=torch.float32))
        if self.step % self.every and self.step < self.steps:
            return
        loss_sum, correct, points = distributed.all_reduce_sum(
            float(self.loss), float(self.correct), self.points
        )
        self.mean, self.accuracy = loss_sum / points, correct / points
        if not math.isfinite(self.mean):
            raise diverged(f"the loss is {self.mean}", self.epoch, self.step - 1, self.steps, where())
        if self.progress:
            self.progress(
                TrainingProgress(self.epoch + 1, self.epochs, self.step, self.steps, self.mean, self.accuracy)
            )

    def result(self) -> Metrics:
        """Means over the epoch."""
        return {"loss": self.mean, "train_accuracy": self.accuracy}

    def state(self) -> dict[str, Tensor]:
        """The sums so far, after at least one step."""
        assert isinstance(self.loss, Tensor), "a step was counted"
        assert isinstance(self.correct, Tensor), "a step was counted"
        assert self.answers is not None, "a step was counted"
        counted = torch.tensor(self.points)
        return {"loss": self.loss, "correct": self.correct, "answers": self.answers, "points": counted}

    def restore(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Go on after so many steps with the sums of :meth:`state`."""
        self.step, self.points = step, int(state["points"])
        self.loss, self.correct, self.answers = state["loss"], state["correct"], state["answers"]

    def only_answer(self) -> int | None:
        """The class that was predicted for at least 99 % of the epoch's points of this process; None if there is none."""
        if self.answers is None or float(self.answers.max()) < 0.99 * float(self.answers.sum()):
            return None
        return int(self.answers.argmax())


class StalledCheck:
    """Says once that a network gives the same class for all images, for two epochs of together at least 20 steps.

    Without a word for data of which one class has 90 %.
    """

    def __init__(self, labels: Tensor) -> None:
        self.largest_share = float(labels.bincount().max()) / len(labels)
        self.epochs, self.steps, self.said = 0, 0, False

    def see(self, meter: Meter) -> None:
        """Count an epoch that has ended."""
        answer = meter.only_answer()
        if answer is None or self.largest_share > 0.9:
            self.epochs, self.steps = 0, 0
            return
        self.epochs, self.steps = self.epochs + 1, self.steps + meter.steps
        if self.epochs >= 2 and self.steps >= 20 and not self.said:
            self.said = True
            warnings.warn(
                f"after epoch {meter.epoch + 1} the network gives class {answer} for at least 99 % of the training images "
                f"(loss {meter.mean:.3g}): it has stopped learning, as with dead ReLUs; a smaller learning rate, a warm-up "
                "(cosine(warmup=2)), a smaller eps of the attack or a weaker regularizer usually helps",
                stacklevel=3,
            )


# ---------------------------------------------------------------- divergence


@contextmanager
def explained_errors(model: nn.Module, x: Tensor, epoch: int, step: int, steps: int) -> Iterator[None]:
    """A TrainError with the cause instead of what the forward pass of a batch raises."""
    try:
        yield
    except AttackError as e:  # an attack refuses a model that has diverged
        if not (where := not_finite(model, x)):
            raise
        raise diverged("the attack has no target", epoch, step, steps, where) from e
    except (ValueError, ModelError) as e:
        if "more than 1 value per channel" not in str(e):
            raise
        raise TrainError(
            f"batch={len(x)}: batch norm cannot normalize {len(x)} point of one pixel a channel; expected "
            "larger batches (or larger images, or a network without batch norm)"
        ) from e


def diverged(what: str, epoch: int, step: int, steps: int, where: str) -> TrainError:
    """The error that states what is not finite, when (epoch and step count from 0) and where."""
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
    found: list[str] = []

    def check(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and not torch.isfinite(output).all():
                found.append(f"the output of layer {name!r} ({type(layer).__name__}) is not finite")

        return hook

    leaves = [(n, m) for n, m in model.named_modules() if not any(True for _ in m.children())]
    handles = [m.register_forward_hook(check(n)) for n, m in leaves]
    with evaluating(model):
        model(x)
    for handle in handles:
        handle.remove()
    return found[0] if found else ""
