"""What is expected of every network of another package."""

import copy
import math

import torch
from torch import Tensor, nn

from opnorm import jacobian
from opnorm._core.outputs import output_of
from opnorm.analyses import margins
from opnorm.attacks import autoattack, pgd
from opnorm.data import Dataset, Split
from opnorm.norms import measure
from opnorm.runs.attack_evaluation import evaluate
from opnorm.training import TrainingSettings, train
from opnorm.training.optimizers import adam


def check_measured(model: nn.Module, x: Tensor) -> None:
    """Every linear layer has its exact ℓ1 and ℓ∞ norm and an interval that holds ℓ2."""
    rows = {row.layer: row.norms for row in measure(model, x[:1]).rows}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    assert layers.keys() & rows.keys(), "no linear layer is in the table"
    for name in layers.keys() & rows.keys():
        weight = layers[name].weight.detach().double()
        truth = [torch.linalg.matrix_norm(weight, p) for p in (1, 2, math.inf)]
        norms = rows[name]
        assert math.isclose(norms[1].upper, truth[0], rel_tol=1e-6)
        assert norms[2].lower <= truth[1] <= norms[2].upper
        assert math.isclose(norms[math.inf].upper, truth[2], rel_tol=1e-6)


def check_jacobian(model: nn.Module, x: Tensor) -> None:
    """The norm at a point is that of the matrix of derivatives."""
    matrix = torch.autograd.functional.jacobian(lambda p: output_of(model, p[None])[0].flatten(), x[0])
    truth = torch.linalg.matrix_norm(matrix.flatten(1).double(), 2)
    found = jacobian.jacobian_norm(model, x[:1])
    assert found.lower[0] <= truth * 1.001
    assert truth <= found.upper[0] * 1.001


def check_attacked(model: nn.Module, x: Tensor) -> None:
    """PGD and AutoAttack are evaluated, and their points are misclassified by the network itself."""
    with torch.no_grad():
        y = output_of(model, x).argmax(1)
    for attack in (pgd(eps=0.2, steps=3), autoattack(eps=0.2, version="fast", attacks=("apgd-ce",))):
        result = evaluate(model, x, y, attack).result
        with torch.no_grad():
            wrong = output_of(model, result.points).argmax(1) != y
        assert torch.equal(wrong, result.misclassified)


def check_trained(model: nn.Module, x: Tensor, classes: int = 3) -> None:
    """A few steps lower the loss, and an analysis reads the data."""
    images, labels = (x * 255).to(torch.uint8), torch.arange(len(x)) % classes
    split = Split(images, labels)
    data, model = Dataset("few", split, split, tuple("abc")), copy.deepcopy(model)
    rows = train(model, data, TrainingSettings(epochs=4, batch=len(x), optimizer=adam(lr=0.005)))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert margins()(model.eval(), data)[0]["points"] == len(x)
