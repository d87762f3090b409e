"""The input-gradient penalty, by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.errors import ModelError, SpecError
from opnorm.regularizers import input_gradient

X = torch.rand(5, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
Y = torch.tensor([0, 1, 2, 3, 0])


@pytest.mark.parametrize("q", [1, 2, math.inf])
@pytest.mark.parametrize("power", [1, 2])
def test_of_a_linear_model_in_closed_form(q, power):
    """∇_x ℓ = Wᵀ (softmax(z) - e_y)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    error = model(X).softmax(1) - F.one_hot(Y, 4)
    want = 0.3 * torch.linalg.vector_norm(error @ model[1].weight, q, 1).pow(power).mean()
    ours = input_gradient(0.3, q, power)(model, X).penalty(model, X, Y)
    assert torch.isclose(ours, want, rtol=1e-12)
    for a, b in zip(*(torch.autograd.grad(z, list(model.parameters())) for z in (ours, want)), strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-14)


def test_it_is_that_of_each_point_by_itself_without_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 4)
    ).double()  # fmt: skip
    model[1].eval()
    state = {k: t.clone() for k, t in model.state_dict().items()}
    ours = input_gradient(1.0)(model, X).penalty(model, X, Y)
    assert model.training
    assert all(torch.equal(t, state[k]) for k, t in model.state_dict().items())
    model.eval()
    squares = []
    for x, y in zip(X, Y, strict=True):
        x = x[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y[None]), x)
        squares.append(gradient.square().sum())
    assert torch.isclose(ours, torch.stack(squares).mean(), rtol=1e-12)


def test_a_gradient_of_zero_has_a_penalty_that_can_be_descended():
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 4)).double()
    nn.init.zeros_(model[1].weight)
    for q in (1, 2, math.inf):
        for power in (1, 2):
            value = input_gradient(1.0, q, power)(model, X).penalty(model, X, Y)
            assert value == 0
            assert torch.isfinite(torch.autograd.grad(value, model[1].weight)[0]).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: input_gradient(-1), SpecError, "lam=-1: expected a strength of at least 0"),
        (lambda: input_gradient(math.nan), SpecError, "lam=nan"),
        (lambda: input_gradient(True), SpecError, "lam=True"),
        (lambda: input_gradient(q=3), SpecError, "q=3: expected 1, 2 or inf"),
        (lambda: input_gradient(power=0), SpecError, "power=0: expected an exponent of at least 1"),
        (lambda: input_gradient(power=math.inf), SpecError, "power=inf"),
        (lambda: input_gradient()(nn.Flatten(0), X), ModelError, "one row a point"),
    ],
)
def test_bad_settings_and_models(make, error, message):
    with pytest.raises(error, match=message):
        make()
