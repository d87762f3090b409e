"""An attack of your own: a function (model, x, y) -> x_adv. Here: the worst of many random corners of the ball."""

import torch
from torch import Tensor, nn

from opnorm.attacks import Attack, pgd
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.training import TrainingSettings, train


def random_corners(eps: float = 0.1, tries: int = 50, seed: int = 0) -> Attack:
    """The sign vector, of ``tries`` random ones, with the largest loss; ℓ∞ ball of radius ``eps``, pixels in [0, 1]."""

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


torch.manual_seed(0)
data = digits()
model = cnn(in_shape=data.image_shape, width=8)
train(model, data, TrainingSettings(epochs=3))
x, y = data.test.images.float() / 255, data.test.labels
for name, attack in {"random corners": random_corners(), "PGD": pgd(eps=0.1, steps=10)}.items():
    print(f"{name}: accuracy {(model.eval()(attack(model, x, y)).argmax(1) == y).double().mean():.1%}")
