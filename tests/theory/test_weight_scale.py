"""Weight-scale shifts leave the function alone, and whatever would not is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from opnorm.errors import ModelError, SpecError
from opnorm.models import cnn, mlp, resnet
from opnorm.theory.weight_scale import balance, least_weight_decay, shift

X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def sequential(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.1), nn.Dropout(0.5),
        nn.Conv2d(3, 2, 2, bias=False), nn.PReLU(2), nn.MaxPool2d(2, 1, 1), nn.AvgPool2d(2, 1), nn.Identity(),
        nn.Flatten(), nn.Linear(18, 4), nn.ReLU(), nn.Linear(4, 3), nn.Sigmoid(),
    ).double()  # fmt: skip


class ByHand(nn.Module):
    """Written with functions; what comes before the first layer and after the last one is free."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc1, self.fc2 = nn.Conv2d(1, 2, 3), nn.Linear(18, 5), nn.Linear(5, 3)

    def forward(self, x):
        data = torch.tanh(x) + x
        h = F.max_pool2d(F.relu(self.conv(data)), 2)
        h = F.relu(self.fc1(h.view(h.size(0), -1)))
        return F.log_softmax(self.fc2(F.dropout(h, 0.5, self.training)) + x.flatten(1)[:, :3], 1)


def weights(model):
    return [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def lengths(model):
    return [float(w.detach().double().norm()) for w in weights(model)]


def copied(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def unchanged(model, before):
    return all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_a_shift_leaves_the_function_alone(logs):
    model = sequential().eval()
    before, old = model(X.double()), copied(model)
    factors = [math.exp(log) for log in (*logs, -sum(logs))]
    assert shift(model, X, factors) == tuple(factors)
    assert torch.allclose(model(X.double()), before, rtol=1e-10)
    for i, (layer, factor) in enumerate(zip((1, 4, 10, 12), factors, strict=True)):
        assert torch.allclose(model[layer].weight, old[f"{layer}.weight"] * factor)
        if layer != 4:
            assert torch.allclose(model[layer].bias, old[f"{layer}.bias"] * math.prod(factors[: i + 1]))


@pytest.mark.parametrize("make", [ByHand, lambda: cnn((1, 8, 8), width=4, mean=0.3, std=0.2),
                                  lambda: mlp((1, 8, 8), width=7, depth=3)])  # fmt: skip
def test_balance(make):
    torch.manual_seed(0)
    model = make().double().eval()
    with torch.no_grad():
        weights(model)[0].mul_(1000)
    decay, least = sum(n**2 for n in lengths(model)), least_weight_decay(model, X)
    product, before, count = math.prod(lengths(model)), model(X.double()), len(lengths(model))
    factors = balance(model, X)
    assert math.prod(factors) == pytest.approx(1)
    assert torch.allclose(model(X.double()), before, rtol=1e-10)
    assert lengths(model) == pytest.approx([product ** (1 / count)] * count)
    assert sum(n**2 for n in lengths(model)) == pytest.approx(least)
    assert least == pytest.approx(count * product ** (2 / count))
    assert least < decay
    assert least_weight_decay(model, X) == pytest.approx(least)
    assert balance(model, X) == pytest.approx([1] * count)


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
def test_no_shift_gets_below_the_least_weight_decay(logs):
    model = sequential()
    least = least_weight_decay(model, X)
    shift(model, X, [math.exp(log) for log in (*logs, -sum(logs))])
    assert sum(n**2 for n in lengths(model)) >= least * (1 - 1e-12)


def test_modes_gradients_and_frozen_weights_are_no_matter():
    model = sequential().train()
    model[1].requires_grad_(False)
    model[10].weight.grad = torch.ones_like(model[10].weight)
    statistics = model[0].running_mean.clone()
    balance(model, X)
    assert all(m.training for m in model.modules())
    assert lengths(model)[0] == pytest.approx(lengths(model)[2])
    assert not model[1].weight.requires_grad
    assert model[10].weight.requires_grad
    assert torch.equal(model[10].weight.grad, torch.ones_like(model[10].weight))
    assert torch.equal(model[0].running_mean, statistics)


def test_zeros():
    model = sequential()
    nn.init.zeros_(model[10].weight)
    before = copied(model)
    with pytest.raises(ModelError, match="layer '10' is all zeros"):
        balance(model, X)
    assert unchanged(model, before)
    assert least_weight_decay(model, X) == 0
    nn.init.zeros_(model[1].bias)
    shift(model, X, [2, 0.5, 4, 0.25])
    assert not model[10].weight.any()
    model[4].weight.data[0] = math.nan
    with pytest.raises(ModelError, match="layer '4' has a weight that is NaN"):
        least_weight_decay(model, X)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1, 1, 1], r"3 factors for 4 layers \(1, 4, 10, 12\)"),
        ([1, 1, 1, 1.1], "the product of the factors is 1.1; expected 1"),
        ([-1, -1, 1, 1], "-1 is not above 0"),
        ([0, 1, 1, 1], "0 is not above 0"),
        ([math.inf, 1, 1, 0.0], "inf is not above 0 and finite"),
        ([math.nan, 1, 1, 1], "nan is not above 0"),
        ([True, 1, 1, 1], "True is not above 0"),
        (["1", 1, 1, 1], "'1' is not above 0"),
        ([1e300, 1e300, 1e-300, 1e-300], "layer '.*' would be"),
        ([1e-300, 1e-20, 1e300, 1e20], "layer '.*' would be"),
    ],
)
def test_bad_factors(factors, message):
    model = sequential()
    before = copied(model)
    with pytest.raises(SpecError, match=message):
        shift(model, X, factors)
    assert unchanged(model, before)


def test_what_leaves_float32_is_refused():
    model = sequential().float()
    before = copied(model)
    with pytest.raises(SpecError, match=r"layer '1' would be inf, outside of torch\.float32"):
        shift(model, X, [1e40, 1e-40, 1, 1])
    assert unchanged(model, before)


# ---------------------------------------------------------------- what is no chain


class Called(nn.Module):
    """Two layers a and b, joined by a function."""

    def __init__(self, call, **more):
        super().__init__()
        self.a, self.b, self.call = nn.Linear(8, 8), nn.Linear(8, 8), call
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.call(self, x)


class Odd(nn.Linear):
    def forward(self, x):
        return super().forward(x) + 1


def tied():
    model = Called(lambda m, x: m.b(m.a(x)))
    model.b.weight = model.a.weight
    return model


def tied_outside():
    model = Called(lambda m, x: m.b(m.a(m.e(torch.zeros(1, dtype=torch.long)) + x)), e=nn.Embedding(8, 8))
    model.e.weight = model.b.weight
    return model


def hooked(layer):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    model[layer].register_forward_hook(lambda *_: None)
    return model


def between(module):
    return nn.Sequential(nn.Linear(8, 8), module, nn.Linear(8, 8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (between(nn.BatchNorm1d(8)), r"'1' \(BatchNorm1d\) between the layers is not homogeneous"),
        (between(nn.Sigmoid()), r"'1' \(Sigmoid\) between the layers is not known as positively homogeneous"),
        (between(nn.Tanh()), r"'1' \(Tanh\)"),
        (between(nn.ReLU6()), r"'1' \(ReLU6\)"),
        (between(nn.LayerNorm(8)), r"'1' \(LayerNorm\)"),
        (Called(lambda m, x: m.b(m.a(x) + x)), "add joins several values, such as a residual sum"),
        (Called(lambda m, x: m.a(x) + m.b(x)), "layer 'b' does not follow the one before it"),
        (Called(lambda m, x: (m.a(x), m.b(x))[1]), "layer 'b' does not follow"),
        (Called(lambda m, x: m.b(m.a(x) + 1)), "add between the layers is not known"),
        (Called(lambda m, x: m.b(torch.tanh(m.a(x)))), "tanh between the layers is not known"),
        (Called(lambda m, x: m.b(m.a(x).data)), "getattr between the layers is not known"),
        (Called(lambda m, x: m.b(m.a(m.a(x)))), "layer 'a' is called several times"),
        (Called(lambda m, x: (m.a(x), m.b(m.a(x)))), "layer 'a' .* several times|layer 'a' does not follow"),
        (Called(lambda m, x: [h := m.a(x), m.b(h)]), "the network returns a value from between its layers"),
        (Called(lambda m, x: [h := m.a(x), m.b(h)][0]), "the output does not come from the last layer, 'b'"),
        (Called(lambda m, x: F.linear(m.b(m.a(x)), m.a.weight)), "'a.weight' of layer 'a' is used elsewhere too"),
        (Called(lambda m, x: m.a(x)), "'b.weight' is no weight of a linear or convolutional layer in the chain"),
        (Called(lambda m, x: m.b(m.c(m.a(x))), c=Odd(8, 8)), "linear between the layers is not known"),
        (Called(lambda m, x: m.b(m.a(m.c(x))), c=Odd(8, 8)), "'c.weight' is no weight of a linear"),
        (Called(lambda m, x: m.b(m.a(x)) if x.sum() > 0 else x), "control flow by the data"),
        (between(parametrizations.weight_norm(nn.Linear(8, 8))), "layer '1' has a weight or bias that is computed"),
        (tied(), "layers 'a' and 'b' share a parameter"),
        (tied_outside(), "the parameter 'e.weight' of layer 'b' is used elsewhere too"),
        (hooked(0), "layer '0' has a hook"),
        (hooked(1), "a hook may change what '1' computes"),
        (nn.Sequential(nn.ReLU()), "no linear or convolutional layer"),
    ],
)  # fmt: skip
def test_what_is_no_chain(model, message):
    before = copied(model)
    for use in (balance, least_weight_decay, lambda m, x: shift(m, x, [2, 0.5])):
        with pytest.raises(ModelError, match=message):
            use(model, torch.rand(2, 8))
    assert unchanged(model, before)


def test_residual_networks_are_refused():
    with pytest.raises(ModelError, match=r"'2' \(BatchNorm2d\) between the layers"):
        balance(resnet(8), torch.rand(1, 3, 32, 32))
