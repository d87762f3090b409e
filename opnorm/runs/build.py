"""From the settings of a run to its data, its network and the settings of its training."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from opnorm import spec
from opnorm._core import files
from opnorm.data import Dataset
from opnorm.data.dataset import as_pixels
from opnorm.errors import ModelError, RunError
from opnorm.models.state_dicts import fill
from opnorm.runs.identity import same_outputs
from opnorm.runs.network_identity import outputs
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.training import TrainingSettings
from opnorm.training.setup_checks import check_model

__all__ = ["known_of", "make_data", "make_model", "restore", "training_settings"]


def make_data(run: Run) -> Dataset:
    """The run's data set, cut to its limit."""
    data = spec.build(run.data, "data set")
    if not isinstance(data, Dataset):
        raise ModelError(f"{run.data} gave {type(data).__name__}; expected an opnorm.data.Dataset")
    return data if run.limit is None else data.limit(run.limit)


def known_of(data: Dataset) -> dict[str, Any]:
    """What the data know of a network: the arguments that its call may leave out."""
    std = tuple(s if s > 0 else 1.0 for s in data.std)
    return {"in_shape": data.image_shape, "classes": data.num_classes, "mean": data.mean, "std": std}


def make_model(run: Run, data: Dataset) -> nn.Module:
    """The run's network, initialized from its seed, with what the data knows filled in.

    Raises:
        ModelError: it is no network, does not take such images (also as the augmentations leave them), or has another
            number of outputs than there are classes.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = spec.build(run.model, "model", **known_of(data))
    if not isinstance(model, nn.Module):
        raise ModelError(f"{run.model} gave {type(model).__name__}; expected a torch.nn.Module")
    images = data.test.images[:1]
    check_model(model, as_pixels(images), data.num_classes, run.model)
    changed = data.for_training.images[:1]
    for augment in run.augment:
        changed = spec.build(augment, "augmentation")(changed, torch.Generator().manual_seed(0))
    if changed.shape != images.shape:
        name = f"{run.model} after {', '.join(run.augment) or 'no augmentation'}"
        check_model(model, as_pixels(changed), data.num_classes, name)
    return model


def training_settings(run: Run) -> TrainingSettings:
    """The settings of the run's training, built from its calls."""
    return TrainingSettings(
        objective=spec.build(run.objective, "objective"),
        regularizers=[spec.build(r, "regularizer") for r in run.regularizers],
        optimizer=spec.build(run.optimizer, "optimizer"),
        schedule=spec.build(run.schedule, "schedule"),
        augment=[spec.build(a, "augmentation") for a in run.augment],
        epochs=run.epochs,
        batch=run.batch,
        seed=run.seed,
        precision=run.precision,
        channels_last=run.channels_last,
        ema=run.ema,
    )


def restore(run: Run, folder: Path) -> nn.Module:
    """The network of a run as it was after its training, in eval mode.

    Raises:
        RunError: the weights are of another network, or it gives other outputs than then.
    """
    about = Store(folder.parent).read(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        known = {k: tuple(v) if isinstance(v, list) else v for k, v in about["known"].items()}
        model = spec.build(run.model, "model", **known).eval()
    path, shape = folder / "weights.safetensors", known["in_shape"]
    try:
        fill(model, {"": files.read_tensors(path, checked=True)[0]}, path)
    except ModelError as e:
        raise RunError(
            f"{path} does not hold the weights of this run: {e}; the command that began it, with --again, trains anew"
        ) from e
    if not same_outputs(about.get("outputs"), outputs(model, shape)):
        raise RunError(
            f"the network of {folder} gives other outputs than after its training: its code, or a file that it reads, has "
            "changed since; restore it, or train again with --again"
        )
    return model
