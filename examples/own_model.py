"""A model of your own: measured, bounded and attacked as it is, also by its dotted name on the command line."""

import math

import torch
from torch import Tensor, nn

import opnorm
from opnorm.attacks import pgd
from opnorm.data import digits
from opnorm.models import Normalize
from opnorm.training import TrainingSettings, train


class Residual(nn.Module):
    """x + convolution of x, with ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return torch.relu(x + self.conv(x))


def build(width: int = 8) -> nn.Module:
    """Normalization is part of the model, so that attacks and norms see pixels in [0, 1]."""
    head = [nn.Flatten(), nn.Linear(width * 64, 10)]
    return nn.Sequential(Normalize(1, 0.3, 0.35), nn.Conv2d(1, width, 3, padding=1), Residual(width), *head)


if __name__ == "__main__":  # not where a command imports it
    data, model = digits(), build()
    train(model, data, TrainingSettings(epochs=3))
    x, y = data.test.images.float() / 255, data.test.labels
    print(opnorm.measure(model, x[:1]))
    print("whole network:", opnorm.lipschitz_bound(model, x[:1], math.inf))
    print(f"robust: {(model(pgd(eps=0.05)(model.eval(), x, y)).argmax(1) == y).double().mean():.1%}")
