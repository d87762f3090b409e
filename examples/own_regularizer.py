"""A regularizer of your own: a function that binds to a model and returns the hooks that it needs."""

import torch
from torch import Tensor, nn

from opnorm.data import digits
from opnorm.models import mlp
from opnorm.norms import linf
from opnorm.regularizers import Hooks, Regularizer
from opnorm.training import TrainingSettings, train


def first_layer_decay(beta: float = 1e-2) -> Regularizer:
    """β ‖W_1‖_∞ is added to the loss: no pixel may count much."""

    def bind(model: nn.Module, example: Tensor) -> Hooks:
        first = next(m for m in model.modules() if isinstance(m, nn.Linear))
        return Hooks(penalty=lambda model, x, y: beta * linf(first, (first.in_features,)))

    return bind


if __name__ == "__main__":  # not where a command imports it
    data = digits()
    for beta in (0.0, 1e-2):
        torch.manual_seed(0)
        model = mlp(in_shape=data.image_shape, width=64)
        train(model, data, TrainingSettings(regularizers=[first_layer_decay(beta)], epochs=3))
        first = next(m for m in model.modules() if isinstance(m, nn.Linear))
        norm = linf(first, (first.in_features,)).item()
        right = model.eval()(data.test.images.float() / 255).argmax(1) == data.test.labels
        print(f"beta {beta:g}: ‖W_1‖_∞ = {norm:.2f}, accuracy {right.double().mean():.1%}")
# in opnorm train, the same by its dotted name: --regularizers 'my_module.first_layer_decay(beta=0.01)'
