"""Small data sets and networks of the analyses' tests."""

import torch
from torch import nn

from opnorm.data import Dataset, Split
from opnorm.models import mlp

SHAPE = (1, 4, 4)


def data(n=700, classes=3, seed=0):
    """More points than one batch; classes 0 and 1 by brightness, with some noise, and some labels wrong."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    labels = (images.float().flatten(1).mean(1) > 127).long()
    labels[: n // 10] = 2
    return Dataset("toy", Split(images[:50], labels[:50]), Split(images, labels), tuple("abc"[:classes]))


def trained(seed=0):
    """A network for :func:`data`, with gradients left from training."""
    torch.manual_seed(seed)
    model, toy = mlp(SHAPE, 3, 16, 1, 0.5, 0.3), data()
    optimizer = torch.optim.SGD(model.parameters(), 0.3)
    x = toy.test.images.float() / 255
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), toy.test.labels).backward()
        optimizer.step()
    return model


def two_classes(n=60):
    """Points of two classes by brightness, the same for training and test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
    split = Split(images, (images.float().flatten(1).mean(1) > 127).long())
    return Dataset("toy", split, split, ("dark", "bright"))


def two_class_network():
    """A network of two hidden layers, trained on :func:`two_classes`."""
    torch.manual_seed(0)
    model, toy = mlp(SHAPE, 2, 12, 2, 0.5, 0.3), two_classes()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    x = toy.train.images.float() / 255
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), toy.train.labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def random_labels(train=40, test=30, classes=3):
    """Random images with labels in turn."""
    generator = torch.Generator().manual_seed(0)

    def split(n):
        images = torch.randint(0, 256, (n, *SHAPE), generator=generator, dtype=torch.uint8)
        return Split(images, torch.arange(n) % classes)

    return Dataset("toy", split(train), split(test), tuple("abc"[:classes]))


def random_network():
    """A network for :func:`random_labels`, with large random weights."""
    torch.manual_seed(0)
    model = mlp(SHAPE, 3, 12, 2, 0.5, 0.3)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(2)
    return model.eval()


def after(model, attack, x, y):
    """Whether each point is classified correctly after the attack."""
    return model(attack(model, x, y)).argmax(1) == y


def pixels(split):
    """Images in [0, 1] and labels."""
    return split.images.float() / 255, split.labels


def sampled(points):
    """The test points and labels that analyses of :func:`two_classes` take for seed 0, by their documented choice."""
    toy = two_classes()
    chosen = (
        torch.randperm(len(toy.test.labels), generator=torch.Generator().manual_seed(0))[:points]
        .sort()
        .values
    )
    x, y = pixels(toy.test)
    return x[chosen], y[chosen]


def features_by_hand(model):
    """The last hidden features of :func:`two_class_network`, their Jacobian and the units' states, as functions of x."""
    normalize, first, second = model[0], model[2], model[4]

    def phi(x):
        h = ((x.flatten(1) - 0.5) / 0.3) @ first.weight.T.to(x.dtype) + first.bias.to(x.dtype)
        k = h.relu() @ second.weight.T.to(x.dtype) + second.bias.to(x.dtype)
        masks = (k > 0).to(x.dtype)[:, :, None], (h > 0).to(x.dtype)[:, :, None]
        J = masks[0] * (second.weight.to(x.dtype) @ (masks[1] * first.weight.to(x.dtype))) / 0.3
        return k.relu().detach(), J.detach(), torch.cat([h > 0, k > 0], 1)

    assert type(normalize).__name__ == "Normalize"
    return phi
