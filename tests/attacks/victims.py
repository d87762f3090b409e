"""Every attack, and models whose worst points are known."""

import inspect
import itertools
import math

import torch
from torch import nn

from opnorm import attacks
from opnorm.spec import names

EPS = {math.inf: 8 / 255, 3: 0.2, 2: 0.25, 1: 0.35}

# Every registered attack, with each of its norms, is in every test of this folder that is parametrized over all attacks.
# The others leave misclassified or robust points as they are, or take no gradients, so that they do not come near the
# optimum and do not notice a model that gives none: they pass the tests of the ball, the box, the model's state and seeds.
OTHERS = {
    "autoattack": {"version": "fast", "attacks": ("apgd-ce", "fab-t")},
    "fab": {"steps": 5},
    "square": {"queries": 30, "stop_at_success": False},
}
"""And settings that make them short."""
NORMS = (math.inf, 2, 1)
ATTACKS = list(itertools.product([a for a in names("attack") if a not in OTHERS], NORMS))
ATTACKS += [("fgsm", 3), ("pgd", 3)]


def make(name, norm, **settings):
    """The attack with the settings that it has; others are left out."""
    factory = getattr(attacks, name)
    known = inspect.signature(factory).parameters
    chosen = {"norm": norm, "eps": EPS[norm], **OTHERS.get(name, {})}
    return factory(**chosen | {k: v for k, v in settings.items() if k in known})


def on_all_attacks(parametrize):
    return parametrize("name, norm", ATTACKS, ids=[f"{a}-{n:g}" for a, n in ATTACKS])


def on_the_others(parametrize):
    every = list(itertools.product(OTHERS, NORMS))
    return parametrize("name, norm", every, ids=[f"{a}-{n:g}" for a, n in every])


def images(n=8, shape=(1, 4, 4), seed=0, low=0.0, high=1.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(n, *shape, generator=generator)
    return x.to(dtype), torch.randint(0, 3, (n,), generator=generator)


class Linear(nn.Module):
    """Two classes, f(x) = (0, <w, x>): the loss of class 0 grows along w, that of class 1 against it."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        score = (x * self.w).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


def net(seed=0, classes=3, dtype=torch.float32):
    """A small network with everything that an attack could disturb."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(64, classes),
    ).to(dtype)
