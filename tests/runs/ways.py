"""Ways of training, for one process and for several."""

import math
from functools import partial

import torch
from torch import nn

from opnorm import objectives, regularizers
from opnorm.data import augmentations, digits
from opnorm.errors import AttackError
from opnorm.models.modules import Normalize
from opnorm.training import TrainingSettings, optimizers, train
from opnorm.training import distributed as parallel

DATA = digits().limit(64)


def network(norm="mean", width=4):
    torch.manual_seed(1)
    norms = {
        "none": nn.Identity(),
        "mean": nn.BatchNorm2d(width),
        "cumulative": nn.BatchNorm2d(width, momentum=None),
        "not affine": nn.BatchNorm2d(width, affine=False),
        "no statistics": nn.BatchNorm2d(width, track_running_stats=False),
    }
    return nn.Sequential(
        Normalize(1, 0.3, 0.4), nn.Conv2d(1, width, 3, padding=1), norms[norm], nn.ReLU(),
        nn.Conv2d(width, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10),
        nn.BatchNorm1d(10) if norm == "mean" else nn.Identity(),
    )  # fmt: skip


class Partly(nn.Module):
    """Now and then it leaves a part out, and one part always."""

    def __init__(self):
        super().__init__()
        self.body, self.never, self.calls = network("none"), nn.Linear(2, 2), 0
        self.extra = nn.Linear(64, 10)

    def forward(self, x):
        self.calls += 1
        return self.body(x) + (self.extra(x.flatten(1)) if self.calls % 2 else 0)


PGD = {"objective": objectives.pgd_at(eps=0.1, steps=2)}
WAYS = {
    "plain": {},
    "no_batch_norm": {"norm": "none"},
    "cumulative": {"norm": "cumulative"},
    "not_affine": {"norm": "not affine"},
    "no_statistics": {"norm": "no statistics"},
    "bf16": {"precision": "bf16"},
    "attacked": PGD,
    "attacked_in_train_mode": {"objective": objectives.pgd_at(eps=0.1, steps=2, mode="train")},
    "penalty": {"regularizers": [regularizers.weight_decay(1e-2)]},
    "edited": {"regularizers": [regularizers.norm_decay(math.inf, 0.1, batch_norm=True)]} | PGD,
    "augmented": {"augment": [augmentations.crop(1), augmentations.flip()], "ema": 0.5},
    "adam": {"optimizer": partial(torch.optim.Adam, lr=0.01, eps=1e-3)},
    "partly": {"model": Partly},
}  # fmt: skip


def trained(name):
    """The state after training, and the metrics."""
    settings = {"epochs": 2, "batch": 16, "optimizer": optimizers.sgd(0.05)} | WAYS[name]
    norm, make = settings.pop("norm", "mean"), settings.pop("model", None)
    model = make() if make else network(norm)
    kinds = [type(m) for m in model.modules()]
    metrics = train(model, DATA, TrainingSettings(**settings))
    assert [type(m) for m in model.modules()] == kinds
    for row in metrics:
        row.pop("seconds")
    return {"state": model.state_dict(), "metrics": metrics}


def attack_fails_in(rank):
    def objective(model, x, y):
        if rank == 1:
            raise AttackError("a bad attack")
        return objectives.plain()(model, x, y)

    train(network("none"), DATA, TrainingSettings(objective=objective, epochs=1, batch=16))


def probe_fails(rank):
    def probe(model):
        raise OSError("the disk is full")

    train(network(), DATA, TrainingSettings(epochs=2, batch=16), probe=probe)


def loss_fails(rank):
    def objective(model, x, y):
        outcome = objectives.plain()(model, x, y)
        return outcome._replace(loss=outcome.loss * (math.inf if rank == 1 else 1))

    train(network(), DATA, TrainingSettings(objective=objective, epochs=1, batch=16))


TROUBLES = {
    "attack": attack_fails_in,
    "probe": probe_fails,
    "loss": loss_fails,
    "uneven": lambda rank: train(network(), DATA, TrainingSettings(epochs=1, batch=15)),
    "after": lambda rank: train(network(), DATA, TrainingSettings(epochs=1, batch=16)),
    "sums": lambda rank: 1 / (sum(parallel.all_reduce_sum(rank + 1.0, 2.0)) - 7),
}
