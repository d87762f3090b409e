"""Small networks that the benchmarks of attacks train in seconds, each once, and the images they are trained on."""

import copy
import functools
import os
from pathlib import Path

import torch
from torch import Tensor, nn

from opnorm import data, spec
from opnorm.data.dataset import Dataset, Split, as_pixels
from opnorm.training import TrainingSettings, train

SETS = {  # training images, epochs, learning rate
    "digits": (1300, 12, 0.05),
    "mnist": (4000, 3, 0.02),
    "cifar10": (5000, 5, 0.02),
}


@functools.cache
def dataset(name: str) -> Dataset:
    """The digits that come with opnorm, or a part of a set in $OPNORM_DATA."""
    if name == "digits":
        return data.digits()
    whole = data.parquet(str(Path(os.environ["OPNORM_DATA"]) / name))
    return Dataset(whole.name, Split(*(t[: SETS[name][0]] for t in whole.train)), whole.test, whole.classes)


def fit(model: nn.Module, name: str, objective: str = "plain()", regularizer: str = "") -> nn.Module:
    """Train any network on a set, in eval mode afterwards."""
    _, epochs, lr = SETS[name]
    settings = TrainingSettings(
        objective=spec.build(objective, "objective"), epochs=epochs,
        regularizers=[spec.build(regularizer, "regularizer")] if regularizer else [],
        optimizer=spec.build(f"sgd(lr={lr})", "optimizer"),
    )  # fmt: skip
    train(model, dataset(name), settings)
    return model.eval()


@functools.cache
def _trained(name: str, model: str, objective: str, regularizer: str, seed: int) -> nn.Module:
    images = dataset(name)
    torch.manual_seed(seed)
    made = spec.build(model, "model", in_shape=images.image_shape, classes=images.num_classes)
    return fit(made, name, objective, regularizer)


def trained(
    name: str, model: str, objective: str = "plain()", regularizer: str = "", seed: int = 0
) -> nn.Module:
    """A copy of the network that these calls make, trained once."""
    return copy.deepcopy(_trained(name, model, objective, regularizer, seed))


def test_points(name: str) -> tuple[Tensor, Tensor]:
    """The test images in [0, 1] and their labels."""
    test = dataset(name).test
    return as_pixels(test.images), test.labels
