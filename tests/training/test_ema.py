"""The average of the weights: by its formula, measured by the probe, and left in the model at the end."""

import pytest
import torch
from torch import nn

from opnorm import regularizers
from opnorm.data import digits
from opnorm.models import cnn
from opnorm.training import TrainingSettings, optimizers, train
from opnorm.training.ema import Average

DATA = digits().limit(100)


def test_it_is_its_formula():
    w = nn.Parameter(torch.tensor([1.0, 2.0]))
    average, expected = Average({"w": w}, 0.5), w.detach().double().clone()
    for t in range(1, 30):
        with torch.no_grad():
            w += t
        average.update(t)
        d = min(0.5, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * w.detach()
        torch.testing.assert_close(average.state["w"].double(), expected, rtol=1e-6, atol=0)
    raw = w.detach().clone()
    with average.applied():
        assert torch.equal(w, average.state["w"])
    assert torch.equal(w, raw)
    average.apply()
    assert torch.equal(w, average.state["w"])


def test_without_a_decay_there_is_none():
    w = torch.ones(2)
    average = Average({"w": w}, 0.0)
    average.update(1)
    with average.applied():
        average.apply()
    assert average.state == {}
    assert torch.equal(w, torch.ones(2))


def test_training_goes_on_with_the_weights_and_ends_with_the_average():
    steps, probed = [], []

    def weights(model):
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    def spy(model):
        torch.manual_seed(0)
        return cnn(in_shape=(1, 8, 8), width=2)

    model = spy(None)
    start = weights(model)
    expected = start.clone()

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            steps.append(weights(model))

    train(
        model, DATA, TrainingSettings(epochs=3, batch=25, ema=0.8, optimizer=lambda p: Watched(p, lr=0.05)),
        probe=lambda m: probed.append(weights(m)) or {},
    )  # fmt: skip
    for t, w in enumerate(steps, 1):
        d = min(0.8, (1 + t) / (10 + t))
        expected = d * expected + (1 - d) * w
    torch.testing.assert_close(weights(model), expected)
    assert torch.equal(probed[-1], weights(model))
    assert not torch.equal(steps[-1], weights(model))

    plain = spy(None)
    train(plain, DATA, TrainingSettings(epochs=3, batch=25, optimizer=optimizers.sgd(0.05, momentum=0)))
    assert torch.equal(weights(plain), steps[-1]), "the average changes no step"


@pytest.mark.parametrize(
    ("bind", "most"),
    [
        (regularizers.svc(0.5), 0.5),
        (regularizers.svc(0.5, every=3), 0.5),
        (regularizers.spectral_normalization(0.5), 0.5),
    ],
)
def test_averaged_weights_are_clipped_and_normalized_like_the_others(bind, most):
    """1x1 kernels, for which clipping is exact; without it the average of the starts is above."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.Flatten(), nn.Linear(256, 10))
    with torch.no_grad():
        model[2].weight.mul_(20)
    probed = []
    settings = TrainingSettings(epochs=1, batch=50, ema=0.999, regularizers=[bind])
    history = train(
        model,
        DATA,
        settings,
        probe=lambda m: probed.append(float(m[2].weight.detach().flatten(1).svd().S[0])) or {},
    )
    assert len(history) == 1
    assert max(probed) <= most * (1 + 1e-5)
    assert float(model[2].weight.detach().flatten(1).svd().S[0]) == probed[-1]
    raw = Average({"w": torch.full((2,), 4.0)}, 0.5)
    raw.apply(lambda: raw.weights[0].clamp_(max=1))
    assert torch.equal(raw.state["w"], torch.full((2,), 4.0)), "the average itself is not changed"
