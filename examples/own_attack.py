"""An attack of your own: a function (model, x, y) -> x_adv. Here: the worst of many random corners of the ball."""

import math

import torch
from torch import Tensor, nn

from opnorm.attacks import Attack, pgd
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.training import TrainingSettings, train


def random_corners(eps: float = 0.1, norm: float = math.inf, tries: int = 50, seed: int = 0) -> Attack:
    """The sign vector, of ``tries`` random ones, with the largest loss; ``norm``, ``eps``: the ball, for opnorm attack."""
    assert norm == math.inf, "its corners are those of an ℓ∞ ball"

    @torch.no_grad()
    def attack(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        worst, largest = x, torch.full((len(x),), -torch.inf)
        for _ in range(tries):
            signs = torch.randint(2, x.shape, generator=generator) * 2.0 - 1
            moved = (x + eps * signs).clamp(0, 1)
            loss = nn.functional.cross_entropy(model(moved), y, reduction="none")
            worst = torch.where((loss > largest).view(-1, 1, 1, 1), moved, worst)
            largest = loss.maximum(largest)
        return worst

    return attack


if __name__ == "__main__":  # not where a command imports it
    data, model = digits(), cnn((1, 8, 8), width=8)
    train(model, data, TrainingSettings(epochs=3))
    x, y = data.test.images.float() / 255, data.test.labels
    for attack in (random_corners(), pgd(eps=0.1, steps=10)):
        print(f"accuracy {(model.eval()(attack(model, x, y)).argmax(1) == y).double().mean():.1%}")
# in opnorm attack, by its dotted name: --eps 0.1 --attack 'own_attack.random_corners(tries=20)'
