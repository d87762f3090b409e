"""Small networks, and how steep inputs show them to be."""

import torch
from torch import nn

from opnorm.norms import lipschitz_bound


def norms(v, p):
    return torch.linalg.vector_norm(v.reshape(len(v), -1), p, dim=1)


def steepest(model, shape, p, tries=12, seed=0):
    """The largest secant slope and Jacobian norm that random inputs show, in float64."""
    model = model.double().eval()
    generator = torch.Generator().manual_seed(seed)
    best = 0.0
    for scale in (1e-2, 1.0, 10.0):
        x, y = scale * torch.randn(2, tries, *shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            slopes = norms(model(x.clone()) - model(y.clone()), p) / norms(x - y, p)
        best = max(best, float(slopes.max()))
        for point in x[:2]:
            J = torch.autograd.functional.jacobian(lambda v: model(v[None].clone())[0], point)
            best = max(best, float(torch.linalg.matrix_norm(J.reshape(-1, point.numel()), p)))
    return best


def check(model, shape, p):
    """The bound is known, and holds."""
    bound = lipschitz_bound(model, torch.zeros(1, *shape, dtype=torch.float64), p)
    assert bound.value is not None, bound.reason
    assert steepest(model, shape, p) <= bound.value * (1 + 1e-9)
    return bound.value


def weights(layer, values):
    layer.weight.data = torch.tensor(values, dtype=torch.float32).reshape(layer.weight.shape)
    return layer


class Net(nn.Module):
    """A forward written as a function of (self, x), with the layers that it uses."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def w(n=2):
    """A layer with norms 6, 5.117 and 7 in ℓ1, ℓ2, ℓ∞; (n, n) blocks of [[1, 2], [3, 4]]."""
    return weights(nn.Linear(2, 2, bias=False), [[1, 2], [3, 4]])
