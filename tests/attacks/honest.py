"""A network that has learned something, and ways to make attacks blind without making it any more robust."""

import copy
import functools

import torch
from torch import nn

from opnorm.data import digits
from opnorm.models import cnn


@functools.cache
def honest():
    """A small CNN, trained for seconds; right on about 95 of 100 test points."""
    torch.manual_seed(0)
    model, train = cnn(in_shape=(1, 8, 8), classes=10, width=8), digits().train
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(4):
        for rows in torch.randperm(len(train.labels)).split(64):
            optimizer.zero_grad()
            x = train.images[rows].float() / 255
            nn.functional.cross_entropy(model(x), train.labels[rows]).backward()
            optimizer.step()
    return model.eval()


def points(n):
    test = digits().test
    return test.images[:n].float() / 255, test.labels[:n]


class Around(nn.Module):
    """The honest network with something before it and after it."""

    def __init__(self, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.inner, self.before, self.after = copy.deepcopy(honest()), before, after

    def forward(self, x):
        return self.after(self.inner(self.before(x)))


def rounds(levels=8):
    return Around(before=lambda x: (x * levels).round() / levels)


def saturates(temperature=1e4):
    return Around(after=lambda z: z * temperature)


def draws(noise=0.1):
    return Around(before=lambda x: x + noise * torch.randn_like(x))
