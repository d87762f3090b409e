"""Activation patterns by hand, hidden features, spectra against the standard basis."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from opnorm.errors import ModelError, NormError
from opnorm.jacobian import (
    Jacobian,
    Pattern,
    activations,
    alignment,
    explicit,
    features,
    same_region,
    shared_activations,
    singular_values,
)
from opnorm.jacobian import singular_vectors as module
from opnorm.models import cnn, mlp
from tests.jacobian.maps import nets, points, truth


class Units(nn.Module):
    """Every way to write a unit; the input is (B, 4)."""

    def __init__(self):
        super().__init__()
        self.prelu, self.inplace, self.bound = nn.PReLU(), nn.ReLU(inplace=True), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return torch.cat(
            [
                torch.relu(x),
                x.clone().relu_(),
                self.inplace(x.clone()),
                F.leaky_relu(x, 0.1),
                self.prelu(x),
                x.abs(),
                F.threshold(x, 0.3, 0.0),
                x.clamp(min=0.3),
                x.clamp_max(0.3),
                F.relu6(20 * x),
                x.clamp(-0.3, max=0.3),
                x * self.bound.clamp(0, 0.5),  # no unit: it does not depend on the input
            ],
            1,
        )


def test_every_unit_is_seen_and_read():
    x = torch.tensor([[-1.0, -0.2, 0.2, 1.0]])
    pattern = activations(Units(), x)
    at_zero, at_third = [0, 0, 1, 1], [0, 0, 0, 1]
    assert pattern.units.tolist() == [at_zero * 6 + at_third * 3 + [0, 0, 1, 2] + [0, 1, 1, 2]]
    assert pattern.picks.shape == (1, 0)
    assert pattern.smooth == ()


def test_shared_activations_by_hand():
    model = nn.Sequential(nn.Linear(2, 4, bias=False), nn.ReLU())
    model[0].weight.data = torch.tensor([[1.0, 0], [0, 1], [1, 1], [-1, 0]])
    a = activations(model, torch.tensor([[1.0, 1.0], [1.0, 1.0]]))
    b = activations(model, torch.tensor([[2.0, 0.5], [-1.0, 0.5]]))
    assert a.units.tolist() == [[1, 1, 1, 0]] * 2
    assert b.units.tolist() == [[1, 1, 1, 0], [0, 1, 0, 1]]
    assert shared_activations(a, b).tolist() == [1, 0.25]
    assert same_region(a, b).tolist() == [True, False]


@pytest.mark.parametrize("pool", [nn.MaxPool1d(2), nn.AdaptiveMaxPool1d(2)])
def test_what_max_pooling_picks_belongs_to_the_region(pool):
    a = activations(pool, torch.tensor([[[3.0, 1, 2, 5]], [[3.0, 1, 2, 5]]]))
    b = activations(pool, torch.tensor([[[4.0, 1, 2, 5]], [[3.0, 4, 2, 5]]]))
    assert same_region(a, b).tolist() == [True, False]
    with pytest.raises(ModelError, match="no ReLU or other piecewise linear unit"):
        shared_activations(a, b)


def test_smooth_operations_are_named():
    model = nn.Sequential(nn.Linear(3, 3), nn.GELU(), nn.Linear(3, 3), nn.ReLU(), nn.Sigmoid())
    pattern = activations(model, torch.rand(2, 3))
    assert pattern.smooth == ("gelu", "sigmoid")
    assert not same_region(pattern, pattern).any()
    assert shared_activations(pattern, pattern).tolist() == [1, 1]


def test_the_model_is_left_alone():
    model = nets()["residual"].train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert isinstance(activations(model, points(dtype=torch.float32)), Pattern)
    assert model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# ---------------------------------------------------------------- features


@pytest.mark.parametrize(
    ("model", "name", "count"),
    [
        (nets()["residual"], "head", 27),
        (mlp((1, 6, 6), 3, 7, 2), "6", 7),
        (cnn((1, 6, 6), 3, 2), None, 2 * 36),
        (nn.DataParallel(mlp((1, 6, 6), 3, 7, 1)), "4", 7),
    ],
)
def test_the_last_hidden_features(model, name, count):
    x = points(3, torch.float32)
    f = features(model, x)
    assert name is None or f.layer == name
    out = f.eval()(x)
    assert out.shape == (3, count)
    last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
    assert torch.allclose(last(out), model.eval()(x), atol=1e-6)


def test_features_of_a_named_layer_and_of_none():
    x = points(3)
    model = nets()["residual"].double()
    A = explicit(features(model, x, "bn"), x).flatten(2)
    assert torch.allclose(A, truth(model, x, "bn"), atol=1e-12)
    with pytest.raises(ModelError, match="did you mean 'head'"):
        explicit(features(model, x, "heat"), x)
    with pytest.raises(ModelError, match="Conv2d has no linear layer after hidden ones"):
        features(nn.Conv2d(1, 1, 3).double(), x)


# ---------------------------------------------------------------- spectra


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize("layer", ["output", "features"])
def test_singular_values_and_vectors_are_those_of_the_matrix(name, layer):
    model, x = nets()[name].double(), points(5)
    f = model if layer == "output" else features(model, x)
    at = {"linear": "0", "mlp": "3", "residual": "features"}[name] if layer == "features" else None
    A = truth(model, x, at)
    _, S, Vh = torch.linalg.svd(A, full_matrices=False)
    found = singular_values(f, x)
    assert torch.allclose(found, S, rtol=1e-10, atol=1e-12)
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
    want = (Vh @ torch.nn.functional.normalize(z.flatten(1))[:, :, None]).squeeze(2).abs()
    clear = S[:, :3].diff().abs().min() > 1e-6  # singular vectors of equal values are not unique
    if clear:
        assert torch.allclose(alignment(f, x, 3 * z)[:, :2], want[:, :2], rtol=1e-8)
    if name != "linear" or layer == "output":
        own = alignment(f, x, Vh[:, 0].view_as(x))
        assert torch.allclose(own[:, 0], torch.ones(5).double())
        assert own[:, 1:].abs().max() < 1e-8


def test_more_outputs_than_inputs_and_few_bytes(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 20), nn.ReLU()).double()
    x, passes = torch.randn(70, 3).double(), []
    A = torch.stack([torch.func.jacrev(model)(z) for z in x]).detach()
    with monkeypatch.context() as m:
        m.setattr(Jacobian, "_apply", lambda J, v, own=Jacobian._apply: passes.append(v) or own(J, v))
        assert torch.allclose(explicit(model, x), A, atol=1e-14)
    assert len(passes) == 3 + 3 + 1, (
        "a product a column for 32 points twice, one with all columns for the other 6"
    )
    whole = singular_values(model, x)
    assert whole.shape == (70, 3)
    assert torch.allclose(whole, torch.linalg.svdvals(A))
    monkeypatch.setattr(module, "BYTES", 1)
    assert torch.allclose(singular_values(model, x), whole)
    monkeypatch.setattr(module, "LARGEST", 100)
    with pytest.raises(NormError, match="takes 480 bytes a point, more than 100"):
        singular_values(model, x)


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (torch.zeros(2, 3), "2 of 2 directions are zero"),
        (torch.full((2, 3), math.nan), "zero or NaN"),
        (torch.ones(2, 4), "expected"),
    ],
)
def test_bad_directions(z, message):
    with pytest.raises(NormError, match=message):
        alignment(nn.Linear(3, 2), torch.rand(2, 3), z)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_alignment_in_float32_with_more_outputs_than_inputs(scale):
    """By eigenvectors of AᵀA, as by the singular vectors of the matrix in float64."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(7, 30)
    with torch.no_grad():
        layer.weight.mul_(scale)
    x, z = torch.rand(3, 7), torch.randn(3, 7)
    vectors = torch.linalg.svd(layer.weight.detach().double(), full_matrices=False).Vh
    wanted = (vectors @ z.double().T).T.abs() / z.double().norm(dim=1, keepdim=True)
    torch.testing.assert_close(alignment(layer, x, z), wanted, rtol=0, atol=1e-5)
