"""A layer as a linear map: its adjoint, its matrix, and layers that only look linear."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.layers import overrides
from opnorm._core.linear_map import LinearMap, linear_map
from opnorm.errors import NormError
from opnorm.norms import operator_norm
from tests.norms.cases import (
    PADDED_CASES,
    TRANSPOSED_CASES,
    WEIGHTLESS_CASES,
    convolutions,
    matrix,
    on_all_cases,
    on_cases,
    transposed_convolutions,
)
from tests.property_tests import examples


def check_map(layer, shape):
    linear = linear_map(layer, shape)
    M = matrix(layer, shape)
    assert torch.allclose(linear.to_dense(), M, rtol=1e-12, atol=1e-13)
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(3, *linear.in_shape, generator=generator, dtype=torch.float64)
    u = torch.randn(3, *linear.out_shape, generator=generator, dtype=torch.float64)
    left = ((linear @ v) * u).flatten(1).sum(1)
    right = (v * (linear.T @ u)).flatten(1).sum(1)
    assert torch.allclose(left, right, rtol=1e-11, atol=1e-11)
    assert torch.allclose((linear.T @ u).flatten(1), u.flatten(1) @ M, rtol=1e-11, atol=1e-11)


def test_the_same_map_in_scipy():
    from scipy.sparse.linalg import svds  # a second for every process that collects this file

    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    A = linear_map(conv, (2, 5, 4))
    M, operator = A.to_dense().numpy(), A.to_scipy()
    assert operator.shape == A.shape == M.shape
    X = np.random.default_rng(0).standard_normal((M.shape[1], 3))
    np.testing.assert_allclose(operator @ X, M @ X, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(operator.T @ (M @ X), M.T @ M @ X, rtol=1e-12, atol=1e-12)
    assert svds(operator, 1, return_singular_vectors=False, random_state=0) == pytest.approx(
        np.linalg.norm(M, 2), rel=1e-9
    )


def test_one_map_for_each_row():
    generator = torch.Generator().manual_seed(0)
    M = torch.randn(4, 3, 6, generator=generator)

    def product(matrices):
        return lambda v: (matrices @ v.flatten(1)[:, :, None]).squeeze(2)

    A = LinearMap(product(M), lambda u: product(M.mT)(u).view(-1, 2, 3), (2, 3), (3,), dtype=M.dtype, batch=4)
    assert torch.equal(A.to_dense(), M)
    assert torch.equal(A.T.to_dense(), M.mT)
    x = torch.randn(24, generator=generator)
    expected = (torch.block_diag(*M) @ x).numpy()
    np.testing.assert_allclose(A.to_scipy() @ x.numpy(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(NormError, match=r"vectors of shape \(3, 2, 3\); expected \(4, 2, 3\)"):
        A @ torch.zeros(3, 2, 3)
    with pytest.raises(NormError, match="4 x 3 x 6; at most 71 entries"):
        A.to_dense(71)


def test_vectors_of_another_shape():
    with pytest.raises(NormError, match=r"vectors of shape \(1, 2\); expected \(1, 3\)"):
        linear_map(nn.Linear(3, 2), (3,)) @ torch.zeros(1, 2).double()


@on_all_cases(pytest.mark.parametrize)
def test_adjoint_and_matrix(layer, shape):
    check_map(layer, shape)


@given(convolutions())
@examples(60)
def test_adjoint_and_matrix_of_any_convolution(case):
    check_map(*case)


@on_cases(PADDED_CASES + TRANSPOSED_CASES + WEIGHTLESS_CASES)
def test_adjoint_and_matrix_of_other_layers(layer, shape):
    check_map(layer, shape)


@given(st.one_of(convolutions(modes=("circular", "reflect", "replicate")), transposed_convolutions()))
@examples(100)
def test_adjoint_and_matrix_of_padded_and_transposed_convolutions(case):
    check_map(*case)


def test_compiled_and_lazy_layers():
    layer = nn.Linear(3, 2).double()
    assert torch.equal(linear_map(torch.compile(layer), (3,)).to_dense(), layer.weight)
    for lazy, shape in ((nn.LazyConv2d(2, 3), (1, 5, 5)), (nn.LazyBatchNorm1d(), (3,))):
        with pytest.raises(NormError, match="lazy"):
            linear_map(lazy, shape)
    with pytest.raises(NormError, match="meta device"):
        linear_map(nn.ConvTranspose2d(2, 2, 3, device="meta"), (2, 3, 3))


def test_nan_weights_of_a_layer_without_an_entry():
    layer = Standardized(1, 1, 3)
    layer.weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(NormError, match="Standardized gives NaN"):
        linear_map(layer, (1, 4, 4))


def test_a_forward_set_on_one_layer_is_seen():
    layer = nn.Linear(3, 3).double()
    layer.forward = lambda x: F.linear(x, layer.weight / 2)
    assert overrides(layer, nn.Linear)
    assert not overrides(nn.Linear(3, 3), nn.Linear)
    copied = nn.Linear(3, 3)
    copied.forward = copied.forward
    assert not overrides(copied, nn.Linear)


class Standardized(nn.Conv2d):
    """A convolution of standardized weights, as timm's StdConv2d: its weight is not what it applies."""

    def forward(self, x):
        weight = (self.weight - self.weight.mean()) / self.weight.std()
        return self._conv_forward(x, weight, self.bias)


class Affine(nn.Module):
    def forward(self, x):
        return F.pad(x, (1, 0)).flip(-1).cumsum(-1) + 5


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.AvgPool2d(2), (2, 5, 4)),
        (nn.ConvTranspose2d(2, 3, 3, stride=2, padding=1), (2, 3, 3)),
        (nn.BatchNorm2d(2), (2, 3, 3)),
        (nn.Flatten(), (2, 3)),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Dropout(), nn.Flatten(), nn.Linear(8, 3)), (1, 4, 4)),
        (Standardized(2, 3, 3), (2, 4, 4)),
        (Affine(), (2, 3)),
        (nn.Identity(), (2,)),
    ],
)
def test_any_affine_layer_goes_through_autograd(layer, shape):
    check_map(layer, shape)


def test_the_adjoint_through_autograd_in_inference_mode_under_transforms_and_differentiated():
    adjoint = linear_map(Affine(), (2, 3)).T
    M, u = adjoint.to_dense(), torch.rand(4, *adjoint.in_shape, dtype=torch.float64, requires_grad=True)
    expected = (u.flatten(1) @ M.T).detach()
    with torch.inference_mode():
        torch.testing.assert_close((adjoint @ u.detach()).flatten(1), expected)
    torch.testing.assert_close(
        torch.func.vmap(lambda row: adjoint @ row[None])(u.detach()).flatten(1), expected
    )
    (gradient,) = torch.autograd.grad((adjoint @ u).sum(), u)
    torch.testing.assert_close(gradient.flatten(1), M.sum(0).expand(4, -1))


class Constant(nn.Module):
    """The same for every input."""

    def __init__(self, trained):
        super().__init__()
        self.value = nn.Parameter(torch.ones(2), requires_grad=trained)

    def forward(self, x):
        return self.value.expand(len(x), 2).clone()


@pytest.mark.parametrize("trained", [False, True])
def test_the_adjoint_of_a_constant_is_zero_and_has_no_graph(trained):
    linear = linear_map(Constant(trained), (3,))
    found = linear.T @ torch.ones(4, 2, dtype=torch.float64)
    assert not found.requires_grad
    assert found.tolist() == [[0.0] * 3] * 4
    assert linear.to_scipy().rmatvec(np.ones(2)).tolist() == [0.0] * 3


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ReLU(), (3,)),
        (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)), (3,)),
        (nn.Hardtanh(-10, 10), (3,)),
        (nn.Hardshrink(1e-3), (3,)),
        (nn.MaxPool2d(2), (1, 4, 4)),
        (nn.InstanceNorm2d(2), (2, 4, 4)),
        (nn.LayerNorm(4), (4,)),
        (nn.Softmax(-1), (4,)),
    ],
)
def test_layers_that_are_not_linear_are_found_out(layer, shape):
    with pytest.raises(NormError, match=r"(is not linear|does not take)"):
        linear_map(layer, shape)


def test_the_layer_itself_is_left_alone():
    layer = nn.Sequential(nn.BatchNorm2d(2), nn.ConvTranspose2d(2, 2, 3)).train()
    before = {k: v.clone() for k, v in layer.state_dict().items()}
    linear_map(layer, (2, 4, 4))
    assert layer.training
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in layer.parameters())


def test_dense_refuses_what_would_fill_the_memory():
    with pytest.raises(NormError, match=r"1,638,400 x 307,200; at most 134,217,728"):
        linear_map(nn.Conv2d(3, 16, 3, padding=1), (3, 320, 320)).to_dense()
    with pytest.raises(NormError, match="at most 5 entries"):
        linear_map(nn.Linear(2, 3), (2,)).to_dense(limit=5)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (nn.Linear(4, 2), (3,), "Linear takes 4 features"),
        (nn.Conv2d(2, 2, 3), (1, 5, 5), "takes 2 channels"),
        (nn.ConvTranspose2d(2, 2, 3), (1, 5, 5), "takes 2 channels"),
        (nn.Embedding(3, 2), (5,), "Embedding"),
        (nn.GRU(3, 2), (4, 3), "GRU returns tuple"),
        (nn.Bilinear(2, 2, 2), (2,), "Bilinear does not take"),
    ],
)
def test_inputs_that_do_not_fit(layer, shape, message):
    with pytest.raises(NormError, match=message):
        linear_map(layer, shape)


# ---------------------------------------------------------------- a gradient that is not the adjoint


class WithoutGradient(nn.Module):
    def forward(self, x):
        with torch.no_grad():
            return F.conv2d(x, torch.ones(1, 1, 3, 3).to(x) / 9, padding=1)


class HalfDetached(nn.Module):
    def forward(self, x):
        return x + 2 * x.flip(-1).detach()


class ByNumpy(nn.Module):
    def forward(self, x):
        return torch.from_numpy(x.detach().numpy()[..., ::-1].copy()) * 3


class OneEntryDetached(nn.Module):
    def forward(self, x):
        return torch.cat([x[..., :-1], 5 * x[..., -1:].detach()], -1)


class ScaledGradient(nn.Module):
    """A forward of 4 and a gradient of 0.5, as of a gradient that is reversed or scaled on purpose."""

    def forward(self, x):
        return (4 * x).detach() + 0.5 * (x - x.detach())


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 9, 7)])
@pytest.mark.parametrize(
    "layer",
    [WithoutGradient(), HalfDetached(), ByNumpy(), OneEntryDetached(), ScaledGradient(), nn.LPPool2d(1, 2)],
)
def test_the_adjoint_is_not_taken_from_a_gradient_that_is_not(layer, shape):
    A = linear_map(layer, shape)
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    M = layer(basis).detach().flatten(1).T
    assert torch.allclose(A.to_dense(), M)
    assert torch.allclose(A.T.to_dense(), M.T)
    truth = float(torch.linalg.matrix_norm(M, 2))
    for ord, exact in ((1, M.abs().sum(0).max()), (2, truth), (math.inf, M.abs().sum(1).max())):
        norm = operator_norm(layer, ord, shape)
        assert norm.lower * (1 - 1e-12) <= exact <= norm.upper * (1 + 1e-12)
        assert norm.upper <= exact * (1 + 1e-2)


def test_a_large_layer_without_an_adjoint_is_refused():
    with pytest.raises(NormError, match="gradient of WithoutGradient is not its adjoint"):
        linear_map(WithoutGradient(), (1, 80, 80))


def test_a_layer_that_mixes_the_points_of_a_batch_is_refused():
    class Centered(nn.Module):
        def forward(self, x):
            return x - x.mean(0)

    class Flat(nn.Module):
        def forward(self, x):
            return x.flatten()

    with pytest.raises(NormError, match="Centered mixes the points"):
        linear_map(Centered(), (3,))
    with pytest.raises(NormError, match="expected the batch axis first"):
        linear_map(Flat(), (3,))
