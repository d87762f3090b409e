"""The radius of adversarial training by the paper's rule, and strengths of equal clean accuracy."""

import math

import pytest
import torch
from torch import nn

from opnorm.data import Dataset
from opnorm.data.dataset import Split, as_pixels
from opnorm.errors import RunError
from opnorm.runs.matching import match_accuracy, training_eps
from opnorm.runs.run import Run
from opnorm.runs.store import Store


def linear_model(w: torch.Tensor) -> nn.Module:
    """Two classes: the second where w · x > w · 1/2."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(w), 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([-w / 2, w / 2]))
        model[1].bias.copy_(torch.stack([w.sum() / 4, -w.sum() / 4]))
    return model.eval()


@pytest.fixture
def linear() -> tuple[nn.Module, Dataset, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(16, generator=generator)
    images = torch.randint(
        100, 156, (60, 1, 4, 4), dtype=torch.uint8, generator=generator
    )  # far from 0 and 1
    model = linear_model(w)
    split = Split(images, model(as_pixels(images)).argmax(1))
    return model, Dataset("two", split, split, ("a", "b")), (as_pixels(images).flatten(1) - 0.5) @ w


@pytest.mark.parametrize(("norm", "dual"), [(2, 2), (math.inf, 1)])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_radius_is_the_quantile_of_the_distances(linear, norm, dual, share):
    model, data, margins = linear
    distances = (margins.abs() / margins.new_tensor(linear_weight_norm(model, dual))).sort().values
    wanted = float(distances[math.ceil(share * len(distances)) - 1])
    found = training_eps(model, data, norm=norm, share=share, precision=0.02)
    assert wanted * (1 - 1e-4) <= found <= wanted * 1.03


def linear_weight_norm(model: nn.Module, order: float) -> float:
    w = model[1].weight[1] - model[1].weight[0]
    return float(torch.linalg.vector_norm(w, order))


def test_a_constant_model_has_no_such_radius():
    split = Split(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([1.0, 0.0]))
    data = Dataset("one", split, split, ("a", "b"))
    with (
        pytest.warns(UserWarning, match="gradient is exactly zero"),
        pytest.raises(RunError, match="any radius"),
    ):
        training_eps(model, data)
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([0.0, 1.0]))
    with pytest.raises(RunError, match="none of 3 test points is correct"):
        training_eps(model, data)


def run_of(lam: float) -> Run:
    decay = f"weight_decay(lam={lam!r})"
    return Run(
        "cnn(width=4)", "digits()", regularizers=(decay,), optimizer="sgd(lr=0.05)", epochs=4, batch=32
    )


def test_strength_of_equal_accuracy(tmp_path):
    store = Store(tmp_path)
    match = match_accuracy(run_of, 0.9, store, low=0.01, high=3.0, tolerance=0.03)
    accuracies = {t.strength: t.accuracy for t in match.trials}
    assert accuracies[0.01] > 0.93 > 0.87 > accuracies[3.0]
    assert abs(match.best.accuracy - 0.9) <= 0.03
    assert match.best.accuracy == accuracies[match.best.strength]
    again = match_accuracy(run_of, 0.9, store, low=0.01, high=3.0, tolerance=0.03)
    assert again == match
    assert len(store.ls()) == len(match.trials)  # found, not trained again


def test_a_strength_at_which_training_diverges_is_too_large(tmp_path):
    match = match_accuracy(run_of, 0.9, Store(tmp_path), low=0.01, high=1e6, trials=1)
    assert [t.accuracy for t in match.trials if t.strength == 1e6] == [0.0]
    assert len(match.trials) == 3  # so the target lies between the ends


def test_a_target_outside_gives_an_end(tmp_path):
    match = match_accuracy(run_of, 1.0, Store(tmp_path), low=0.01, high=0.1)
    assert len(match.trials) == 2
    assert match.best.strength == 0.01
    with pytest.raises(RunError, match="0 < low < high"):
        match_accuracy(run_of, 0.5, Store(tmp_path), low=1.0, high=0.1)
    with pytest.raises(RunError, match=r"target=85: expected an accuracy between 0 and 1"):
        match_accuracy(run_of, 85, Store(tmp_path), low=0.1, high=1.0)
