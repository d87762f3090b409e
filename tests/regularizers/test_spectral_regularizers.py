"""Spectral normalization and the global spectral norm penalty, against the singular values of explicit matrices."""

import itertools
import math

import pytest
import torch
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.errors import ModelError, SpecError, TrainError
from opnorm.norms import operator_norm
from opnorm.regularizers import global_snr, spectral_normalization

# layer, shape of one input
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (7,)),
    "3x3": (lambda: nn.Conv2d(2, 3, 3, padding=1), (2, 6, 5)),
    "stride": (lambda: nn.Conv2d(2, 3, 3, 2, 1), (2, 7, 6)),
    "dilation": (lambda: nn.Conv2d(2, 3, 3, 1, 2, 2), (2, 6, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 4, 4)),
    "same, even": (lambda: nn.Conv2d(2, 2, (4, 2), padding="same"), (2, 5, 4)),
    "kernel above input": (lambda: nn.Conv2d(2, 2, 5, padding=2), (2, 2, 3)),
    "on 1x1": (lambda: nn.Conv2d(3, 2, 3, padding=1), (3, 1, 1)),
    "1d": (lambda: nn.Conv1d(2, 3, 4, 3, 2), (2, 9)),
    "3d": (lambda: nn.Conv3d(2, 2, (2, 3, 1), (1, 2, 1), 1), (2, 3, 4, 3)),
    "circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 4, 4)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1), (2, 3, 4)),
    "transposed, groups": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 3, 2)),
}


@pytest.fixture(params=LAYERS)
def case(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make().double(), shape


def matrix(layer, shape, operator="true"):
    """The operator, or the kernel with a row an output channel."""
    if operator == "true":
        return linear_map(layer, shape).to_dense()
    weight = layer.weight.detach()
    return (weight.transpose(0, 1) if "Transpose" in type(layer).__name__ else weight).flatten(1)


def batch(shape):
    return torch.rand(2, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


# ---------------------------------------------------------------- spectral normalization


@pytest.mark.each_value
@pytest.mark.filterwarnings("ignore:spectral_normalization. the bound of large layers not padded")
@pytest.mark.parametrize("factor", [0.1, 0.999, 1.0, 2.0])
def test_the_true_norm_is_at_most_sp(case, factor):
    layer, shape = case
    before, norm = layer.weight.detach().clone(), float(torch.linalg.svdvals(matrix(layer, shape))[0])
    sp = factor * norm
    spectral_normalization(sp)(layer, batch(shape)).after_epoch()
    after = float(torch.linalg.svdvals(matrix(layer, shape))[0])
    assert after <= sp * (1 + 1e-14)  # of the SVD's own rounding
    assert after == pytest.approx(min(norm, sp), rel=6e-3)
    ratio = (layer.weight / before).detach()
    assert torch.allclose(ratio, ratio.flatten()[0].expand_as(ratio), rtol=1e-14)
    assert factor < 2 or torch.equal(layer.weight, before)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_the_rounding_of_the_weights_is_accounted_for(dtype):
    for seed in range(6):
        torch.manual_seed(seed)
        layer = nn.Conv2d(4, 4, 3, padding=1).to(dtype)
        spectral_normalization(0.5)(layer, torch.rand(1, 4, 5, 5)).after_epoch()
        upper = float(operator_norm(layer, 2, (4, 5, 5)).upper)
        assert upper <= 0.5
        assert upper > 0.5 * (1 - 20 * torch.finfo(dtype).eps)


def test_a_second_epoch_changes_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Flatten(), nn.Linear(1024, 10))
    hooks = spectral_normalization(0.7)(model, torch.rand(1, 3, 8, 8))
    hooks.after_epoch()
    before = [p.detach().clone() for p in model.parameters()]
    hooks.after_epoch()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    nn.init.zeros_(model[0].weight)
    hooks.after_epoch()
    assert not model[0].weight.any()


def test_the_last_thing_done_to_a_layer_is_a_certificate(monkeypatch):
    found = []

    def certified(layer, ord, shape):
        found.append(operator_norm(layer, ord, shape))
        return found[-1]

    monkeypatch.setattr("opnorm.regularizers._spectral_normalization.operator_norm", certified)
    layer = nn.Linear(5, 4)
    hooks = spectral_normalization(0.2)(layer, torch.rand(1, 5))
    hooks.after_epoch()
    assert [norm.upper <= 0.2 for norm in found] == [False, True]


# ---------------------------------------------------------------- the penalty


@pytest.mark.each_value
@pytest.mark.parametrize("operator", ["reshaped", "true"])
def test_after_many_iterations_the_penalty_and_its_gradient_are_those_of_the_svd(case, operator):
    layer, shape = case
    U, s, Vh = torch.linalg.svd(matrix(layer, shape, operator), full_matrices=False)
    below = s[s < s[0] * (1 - 1e-9)]
    # what is not of the largest shrinks with each by the square of the ratio: to 1e-12, and at most 2000
    steps = min(2000, math.ceil(14 / math.log(float(s[0] / below[0]))))
    penalty = global_snr(0.3, steps, operator)(layer, batch(shape)).penalty(
        layer, batch(shape), torch.zeros(2)
    )
    (grad,) = torch.autograd.grad(penalty, layer.weight)
    if s[0] / s[1] > 1.001:  # a single top pair (circular maps have pairs of frequencies)
        # σ u vᵀ of the operator, pulled back to the kernel through the autograd of the layer itself
        want = 0.3 * s[0] * pulled_back(layer, shape, operator, U[:, 0], Vh[0])
        assert torch.allclose(grad, want, rtol=0, atol=1e-6)
    assert float(penalty.detach()) == pytest.approx(0.15 * float(s[0]) ** 2, rel=1e-9)


def pulled_back(layer, shape, operator, u, v):
    if operator == "reshaped":
        outer = torch.outer(u, v)
        if "Transpose" in type(layer).__name__:
            return outer.view(layer.weight.transpose(0, 1).shape).transpose(0, 1)
        return outer.view(layer.weight.shape)
    x = v.view(1, *shape)
    image = layer(x) - layer(torch.zeros_like(x)).detach()
    return torch.autograd.grad(image.flatten() @ u, layer.weight)[0]


@pytest.mark.parametrize("operator", ["reshaped", "true"])
def test_one_iteration_by_hand(operator):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(2, 3, 3, 2, 1).double(), batch((2, 5, 5))
    hooks = global_snr(0.2, operator=operator)(layer, x)
    for _ in range(3):  # each goes on where the last one ended
        M = matrix(layer, (2, 5, 5), operator)
        u = hooks.state[""].flatten().clone()
        assert torch.linalg.vector_norm(u) == pytest.approx(1)
        v = M.T @ u / torch.linalg.vector_norm(M.T @ u)
        u = M @ v / torch.linalg.vector_norm(M @ v)
        penalty = hooks.penalty(layer, x, x)
        assert float(penalty.detach()) == pytest.approx(0.1 * float(u @ M @ v) ** 2, rel=1e-12)
        assert torch.allclose(hooks.state[""].flatten(), u, rtol=0, atol=1e-14)
        (grad,) = torch.autograd.grad(penalty, layer.weight)
        want = 0.2 * float(u @ M @ v) * pulled_back(layer, (2, 5, 5), operator, u, v)
        assert torch.allclose(grad, want, rtol=0, atol=1e-14)
        layer.weight.data.sub_(grad)


@pytest.mark.parametrize("operator", ["reshaped", "true"])
def test_warm_starts_reach_the_norm(operator):
    torch.manual_seed(0)
    layer, x = nn.Conv2d(4, 4, 3, padding=1).double(), batch((4, 6, 6))
    exact = 0.5 * float(torch.linalg.svdvals(matrix(layer, (4, 6, 6), operator))[0]) ** 2
    hooks = global_snr(1.0, operator=operator)(layer, x)
    values = [float(hooks.penalty(layer, x, x).detach()) for _ in range(400)]
    assert values[0] < 0.95 * exact
    assert all(b >= a * (1 - 1e-12) for a, b in itertools.pairwise(values))
    assert values[-1] == pytest.approx(exact, rel=1e-4)
    ten = global_snr(1.0, 10, operator)(layer, x)
    assert float(ten.penalty(layer, x, x).detach()) == pytest.approx(values[9], rel=1e-12)


@pytest.mark.parametrize("operator", ["reshaped", "true"])
def test_layers_of_one_shape_are_treated_as_if_alone(operator):
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1, groups=g) for g in (1, 2, 1, 2)]
    ups = [nn.ConvTranspose2d(4, 4, 3, padding=1) for _ in range(2)]
    model = nn.Sequential(*convs, *ups, nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64)).double()
    x, zeros = batch((4, 4, 4)), torch.zeros(2)
    hooks = global_snr(1.0, 500, operator)(model, x)
    assert len(hooks.state) == 4
    want = 0.0
    for layer in (*convs, *ups, *model[7:]):
        shape = (64,) if isinstance(layer, nn.Linear) else (4, 4, 4)
        want += 0.5 * float(torch.linalg.svdvals(matrix(layer, shape, operator))[0]) ** 2
    assert float(hooks.penalty(model, x, zeros).detach()) == pytest.approx(want, rel=1e-3)


def test_a_layer_of_zeros_has_no_gradient_and_comes_back():
    layer, x = nn.Linear(3, 2).double(), batch((3,))
    kept = layer.weight.detach().clone()
    hooks = global_snr(1.0)(layer, x)
    nn.init.zeros_(layer.weight)
    penalty = hooks.penalty(layer, x, x)
    penalty.backward()
    assert penalty == 0
    assert not layer.weight.grad.any()
    layer.weight.data.copy_(kept)
    assert hooks.penalty(layer, x, x) > 0


def test_the_penalty_is_computed_in_full_precision_under_autocast():
    torch.manual_seed(0)
    layer, x = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 6, 6)
    for operator in ("reshaped", "true"):
        exact = 0.5 * float(torch.linalg.svdvals(matrix(layer, (3, 6, 6), operator))[0]) ** 2
        with torch.autocast("cpu", torch.bfloat16):
            penalty = global_snr(1.0, 300, operator)(layer, x).penalty(layer, x, x)
        assert float(penalty.detach()) == pytest.approx(exact, rel=1e-5)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: spectral_normalization(0), "sp=0: expected a finite number above 0"),
        (lambda: spectral_normalization(-1), "sp=-1"),
        (lambda: spectral_normalization(math.nan), "sp=nan"),
        (lambda: spectral_normalization(math.inf), "sp=inf"),
        (lambda: spectral_normalization(True), "sp=True"),
        (lambda: global_snr(-1), "lam=-1: expected a finite number of at least 0"),
        (lambda: global_snr(math.nan), "lam=nan"),
        (lambda: global_snr(True), "lam=True"),
        (lambda: global_snr(steps=0), "steps=0: expected a whole number"),
        (lambda: global_snr(steps=True), "steps=True"),
        (lambda: global_snr(steps=1.0), r"steps=1\.0"),
        (lambda: global_snr(operator="conv"), "operator='conv': expected 'reshaped' or 'true'"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(SpecError, match=message):
        make()


@pytest.mark.parametrize("make", [spectral_normalization, global_snr, lambda: global_snr(operator="true")])
def test_models_that_cannot_be_treated(make):
    x = torch.rand(2, 1, 5, 5)
    with pytest.raises(ModelError, match="is the model frozen"):
        make()(nn.BatchNorm2d(1), x)
    model = nn.Sequential(nn.Flatten(), nn.Linear(25, 3))
    model.register_module("unused", nn.Bilinear(2, 2, 2))
    model.forward = lambda x: model[1](model[0](x))
    with pytest.warns(
        UserWarning, match=r"leaves these weights as they are: unused\.weight; it treats"
    ) as seen:
        make()(model, x)
    assert len(seen) == 1


def test_what_is_only_bounded_loosely_is_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.Conv2d(2, 2, 3))
    with pytest.warns(UserWarning, match=r"layers not padded with zeros \(0\) is sqrt"):
        spectral_normalization()(model, torch.rand(1, 1, 5, 5))


def test_weights_that_are_not_finite_are_an_error():
    layer = nn.Linear(2, 2)
    hooks = spectral_normalization()(layer, torch.rand(1, 2))
    layer.weight.data.fill_(math.inf)
    with pytest.raises(
        TrainError, match="spectral_normalization: the weight of layer '' is no longer finite"
    ):
        hooks.after_epoch()


@pytest.mark.parametrize("exponent", [-80, 60])
def test_the_singular_vectors_do_not_depend_on_the_scale(exponent):
    """The gradient λ σ u vᵀ has the length λ σ, also where σ² leaves the range of float32."""
    torch.manual_seed(0)
    layer = nn.Linear(7, 5, bias=False)
    sigma = float(torch.linalg.matrix_norm(layer.weight.detach().double(), 2))
    layer.weight.data = torch.ldexp(layer.weight.data, torch.tensor(float(exponent)))
    hooks = global_snr(2.0, steps=100)(layer, torch.rand(1, 7))
    (gradient,) = torch.autograd.grad(hooks.penalty(layer, torch.rand(1, 7), None), layer.weight)
    found = math.ldexp(float(torch.linalg.matrix_norm(gradient.double(), 2)), -exponent)
    assert found == pytest.approx(2 * sigma, rel=1e-4)
