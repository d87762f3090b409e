"""Checks of what a training is given, so that an error names the argument and not a line of the loop."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core.argument_checks import named
from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm.attacks._checks import check_classes
from opnorm.data.dataset import check_dataset
from opnorm.errors import ModelError, TrainError
from opnorm.objectives import Outcome

__all__ = [
    "check_function",
    "check_functions",
    "check_model",
    "check_outcome",
    "check_training",
    "torch_device",
    "warn_of_large_steps",
]


def check_function(name: str, value: Any, kind: str) -> None:
    """TrainError unless a setting is a function that a factory of this kind made, or the user's own."""
    example = f"expected what {EXAMPLES[kind]} makes, or a function of your own"
    if isinstance(value, str):
        raise TrainError(f"{name}={value!r:.60}: {example}; opnorm.build({value!r:.60}, {kind!r}) reads text")
    if not callable(value):
        raise TrainError(f"{name}={named(value)}: {example}")
    if any(value is spec.resolve(spec.parse(f"{made}()"), kind) for made in spec.names(kind)):
        raise TrainError(f"{name}={value.__name__}: {example}; call it: {value.__name__}(...)")


LARGEST_STEP = 0.2  # the learning rate times the scale; above it networks died on the digits

EXAMPLES = {
    "objective": "pgd_at(eps=0.1)",
    "regularizer": "norm_decay(p=1)",
    "optimizer": "sgd(lr=0.05)",
    "schedule": "cosine()",
    "augmentation": "flip()",
}


def check_functions(name: str, values: object, kind: str) -> None:
    """TrainError unless a setting is a sequence of such functions."""
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TrainError(f"{name}={named(values)}: expected a list of them, such as [{EXAMPLES[kind]}]")
    for value in values:
        check_function(name, value, kind)


def check_training(data: object, folder: object) -> Path | None:
    """The folder as a path; DataError for what is no data set, TrainError for what is no path."""
    check_dataset(data)
    if folder is not None and not isinstance(folder, str | Path):
        raise TrainError(f"folder is {named(folder)}; expected a path")
    return None if folder is None else Path(folder)


def warn_of_large_steps(objective: Any, optimizer: torch.optim.Optimizer) -> None:
    """Warn where SGD's first steps are too large for an objective that states a scale of its gradients."""
    scale, rate = getattr(objective, "gradient_scale", 1.0), optimizer.param_groups[0]["lr"]
    if isinstance(optimizer, torch.optim.SGD) and scale > 1 and scale * rate > LARGEST_STEP:
        warnings.warn(
            f"the gradients of this objective begin about {scale:g} times as large as those of cross-entropy; with "
            f"lr={rate:g} SGD usually ends in a dead network. sgd(lr={LARGEST_STEP / scale:.2g}) learns, or mmc with a "
            "smaller radius",
            stacklevel=4,
        )


def torch_device(device: torch.device | str) -> torch.device:
    """The device; TrainError for a name that torch does not know."""
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as e:
        raise TrainError(f"device={device!r:.60}: expected a name such as cpu, cuda or cuda:1") from e


def check_model(model: nn.Module, example: Tensor, classes: int, name: str, exactly: bool = True) -> None:
    """One forward pass, to see that images go in and one logit for each class, or more unless ``exactly``, comes out.

    Raises:
        ModelError: something else happens.
    """
    try:
        with model_state_preserved(model), torch.no_grad():
            logits = output_of(model, example)
    except torch.OutOfMemoryError:
        raise
    except Exception as e:  # whatever the user's own network raises
        raise ModelError(f"{name} does not take images of shape {tuple(example.shape[1:])}: {e}") from e
    if logits.numel() == len(example):
        check_classes(logits, len(example))  # with the remedy for one logit
    shape = tuple(logits.shape)
    fits = len(shape) == 2 and shape[0] == len(example)
    if not fits or not (shape[1] == classes or (not exactly and int(shape[1]) > classes)):
        raise ModelError(
            f"{name} gives an output of shape {shape} for one image; expected (1, {classes}), one logit for each of the "
            f"{classes} classes of the data. Set its number of classes, or leave it out so that it is taken from the data"
        )


def check_outcome(outcome: object, y: Tensor) -> Outcome:
    """The outcome of an objective; TrainError unless it has a loss to descend and logits (B, K)."""
    expected = (
        "expected opnorm.objectives.Outcome(loss, logits), a scalar tensor to descend and logits (B, K)"
    )
    if not isinstance(outcome, Outcome):
        hint = "; wrap the two: Outcome(loss, logits)" if isinstance(outcome, tuple) else ""
        raise TrainError(f"the objective gave {named(outcome)}; {expected}{hint}")
    loss, logits = outcome
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainError(f"the loss of the objective is {named(loss)}; {expected}")
    if not loss.requires_grad:
        raise TrainError(
            f"the loss of the objective depends on no weight; {expected}. Likely cause: detach(), item() or no_grad()"
        )
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(y):
        raise TrainError(f"the logits of the objective are {named(logits)} for {len(y)} points; {expected}")
    return outcome
