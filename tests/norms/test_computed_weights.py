"""Weights that a layer computes from others: the norm is that of the weight which a forward in eval mode uses now."""

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils import spectral_norm as hooked_spectral_norm
from torch.nn.utils import weight_norm as hooked_weight_norm

from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms import (
    bound,
    induced_norm,
    l1,
    linf,
    lipschitz,
    lipschitz_bound,
    measure,
    operator_norm,
    singular_values,
    spectral_norm,
)

LAYERS = {
    "linear": (lambda: nn.Linear(4, 3), (4,)),
    "conv": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 6)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 2, 2, 2), (2, 3, 2)),
}


def moved_weight_norm(layer):
    layer = hooked_weight_norm(layer)
    layer.weight_g.data.mul_(7)
    return layer


def loaded_weight_norm(layer):
    layer = hooked_weight_norm(layer)
    state = {k: torch.randn_like(v) for k, v in layer.state_dict().items()}
    layer.load_state_dict(state)
    return layer


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)
    layer.weight_orig.data.normal_(std=5)
    return layer


def trained_in_place(layer):
    layer = hooked_spectral_norm(layer)
    with torch.no_grad():
        layer.weight_orig.mul_(3).add_(1)
    return layer


class Squared(nn.Module):
    def forward(self, x):
        return x * x.abs()


def parametrized(layer):
    parametrize.register_parametrization(layer, "weight", Squared())
    return layer


KINDS = {
    "weight_norm, moved": moved_weight_norm,
    "weight_norm, loaded": loaded_weight_norm,
    "spectral_norm before the first call": hooked_spectral_norm,
    "spectral_norm, moved": trained_in_place,
    "pruned": pruned,
    "parametrized weight_norm": parametrizations.weight_norm,
    "parametrized spectral_norm": parametrizations.spectral_norm,
    "own parametrization": parametrized,
}

FUNCTIONS = {
    "l1": l1,
    "linf": linf,
    "operator_norm 1": lambda layer, shape: operator_norm(layer, 1, shape).upper,
    "operator_norm 2": lambda layer, shape: operator_norm(layer, 2, shape).upper,
    "operator_norm inf": lambda layer, shape: operator_norm(layer, math.inf, shape).upper,
    "operator_norm 1 to 2": lambda layer, shape: operator_norm(layer, (1, 2), shape).upper,
    "induced_norm": lambda layer, shape: induced_norm(layer, math.inf, 2, shape).upper,
    "spectral_norm": lambda layer, shape: spectral_norm(layer, shape).lower,
    "schur": lambda layer, shape: bound(layer, shape, "schur").upper,
    "gram": lambda layer, shape: bound(layer, shape, "gram").upper,
    "vs": lambda layer, shape: bound(layer, shape, "vs").lower,
    "linear_map": lambda layer, shape: linear_map(layer, shape).to_dense(),
    "singular_values": lambda layer, shape: singular_values(layer, shape).values,
    "measure": lambda layer, shape: measure(layer, torch.zeros(1, *shape)).rows[0].norms[1].upper,
    "lipschitz_bound": lambda layer, shape: torch.tensor(
        lipschitz_bound(layer, torch.zeros(1, *shape), 1).value
    ),
}


def plain(layer, fresh, shape):
    """The fresh layer with the weight that a forward of the layer in eval mode uses."""
    with torch.no_grad():
        layer.eval()(torch.zeros(1, *shape))
    fresh.weight = nn.Parameter(layer.weight.detach().clone())
    return fresh


@pytest.mark.each_pair
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LAYERS)
def test_the_weight_of_a_forward_is_measured_and_nothing_moves(name, kind, function):
    make, shape = LAYERS[name]
    torch.manual_seed(3)
    layer = KINDS[kind](make()).train()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    found = FUNCTIONS[function](layer, shape)
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert all(m.training for m in layer.modules())
    expected = FUNCTIONS[function](plain(layer, make(), shape), shape)
    assert torch.allclose(found.double(), expected.double(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_one_row_is_of_one_weight(kind):
    """‖A‖_2 <= sqrt(‖A‖_1 ‖A‖_∞), which norms of different weights need not keep; and a second row is the same."""
    torch.manual_seed(0)
    layer = KINDS[kind](nn.Linear(30, 30)).train()
    first, second = (measure(layer, torch.zeros(1, 30)).rows[0].norms for _ in range(2))
    assert first == second
    assert first[2].lower ** 2 <= first[1].upper * first[math.inf].upper * (1 + 1e-9)
    assert float(l1(layer, (30,)).detach()) == pytest.approx(float(first[1]), rel=1e-6)


@pytest.mark.parametrize(
    "kind", ["weight_norm, moved", "pruned", "parametrized weight_norm", "own parametrization"]
)
def test_norms_are_differentiable_in_what_the_weight_is_computed_from(kind):
    torch.manual_seed(0)
    layer = KINDS[kind](nn.Conv1d(2, 3, 3).double())
    parameters = [p for n, p in layer.named_parameters() if n != "bias"]
    gradients = torch.autograd.grad(l1(layer, (2, 7)), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        index = int(gradient.abs().argmax())
        values = []
        for step in (1e-6, -1e-6):
            parameter.data.view(-1)[index] += step
            values.append(float(l1(layer, (2, 7)).detach()))
            parameter.data.view(-1)[index] -= step
        assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(gradient.view(-1)[index]), rel=1e-5)


def test_other_layers_with_computed_weights():
    bn = nn.BatchNorm1d(3).eval()
    bn.weight.data.normal_()
    prune.l1_unstructured(bn, "weight", 1)
    bn.weight_orig.data.mul_(10)
    assert float(l1(bn, (3,))) == pytest.approx(10 * float(bn.weight.abs().max()), rel=1e-3)
    prelu = nn.PReLU(init=2.0)
    parametrize.register_parametrization(prelu, "weight", Squared())
    assert lipschitz(prelu, 1, (3,)) == 4


def test_a_layer_inside_a_module_has_its_weight_now():
    inner = moved_weight_norm(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        expected = operator_norm(plain(inner, nn.Linear(4, 3, bias=False), (4,)), 2, (4,))

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return 2 * self.inner(x)

    inner.weight_g.data.mul_(3)
    assert float(operator_norm(Twice(), 2, (4,)).upper) == pytest.approx(6 * float(expected.upper), rel=1e-6)


def test_a_computed_weight_that_is_not_finite_and_a_hook_that_is_not_torchs():
    layer = hooked_weight_norm(nn.Linear(2, 2))
    layer.weight_v.data.zero_()
    with pytest.raises(NormError, match="weight has 4 of 4 entries that are NaN"):
        operator_norm(layer, 1)

    scaled = nn.Linear(2, 2)
    del scaled._parameters["weight"]
    scaled.weight_half = nn.Parameter(torch.eye(2))
    scaled.weight = torch.zeros(2, 2)
    scaled.register_forward_pre_hook(lambda m, x: setattr(m, "weight", 2 * m.weight_half))
    for norm in (l1, linf, spectral_norm, linear_map):
        with pytest.raises(NormError, match="computed by a hook"):
            norm(scaled, (2,))
