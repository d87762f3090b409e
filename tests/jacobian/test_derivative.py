"""Where autograd's Jacobian is not the derivative, a warning says so; beside kinks, steps and rounding none does."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.jacobian import jacobian_norm


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.b = function, nn.Linear(6, 9), nn.Linear(9, 4)

    def forward(self, x):
        return self.function(self, x)


def scaled_data(s, x):
    y = s.b(torch.tanh(s.a(x)))
    y.data.mul_(3)
    return y


def gated(s, x):
    return s.b(s.a(x) * torch.sigmoid(s.a(x)).detach() * 4)


def warned(model, x, p=2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jacobian_norm(model, x, p)
    return [str(w.message) for w in caught if "not its derivative" in str(w.message)]


WRONG = {
    "scaled data": scaled_data,
    "a detached gate": gated,
    "straight through": lambda s, x: s.b(s.a(x + ((8 * x).round() / 8 - x).detach())),
    "an exact zero": lambda s, x: s.b(s.a(x).detach()) + 0 * s.b(s.a(x)),
}


@pytest.mark.parametrize("name", sorted(WRONG))
@pytest.mark.parametrize("p", [1, 2])
def test_another_backward_is_named(name, p):
    x = torch.rand(2, 6, generator=torch.Generator().manual_seed(1))
    (message,) = warned(Net(WRONG[name]), x, p)
    assert "Net by autograd" in message


FINE = {
    "ReLU": lambda s, x: s.b(F.relu(s.a(x))),
    "at the kink": lambda s, x: s.b(F.relu(s.a(x) - s.a.bias)),
    "GELU": lambda s, x: s.b(F.gelu(s.a(x))),
    "a step": lambda s, x: s.b(s.a(x).sign() + s.a(x)),
    "normalized": lambda s, x: F.normalize(s.b(s.a(x))),
    "large outputs": lambda s, x: s.b(s.a(x)) + 1e9,
    "tiny slopes": lambda s, x: s.b(s.a(x)) * 1e-30,
    "curved": lambda s, x: torch.sin(30 * s.b(s.a(x))),
    "infinite": lambda s, x: s.b(s.a(x)).abs().sqrt(),
}


@pytest.mark.parametrize("name", sorted(FINE))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_false_alarm(name, dtype):
    model = Net(FINE[name]).to(dtype)
    for scale in (0.0, 1e-6, 1.0, 1e4):
        x = scale * torch.rand(2, 6, generator=torch.Generator().manual_seed(2))
        assert not warned(model, x.to(dtype))
