"""Norms of the Jacobian at a point, against explicit matrices and brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm.errors import ModelError, NormError
from opnorm.jacobian import features, jacobian_norm, linearized, lp_norm, random_start
from opnorm.jacobian import point_norms as module
from tests.jacobian.maps import CELLS, INF, brute, gauss, nets, points, truth
from tests.property_tests import examples

EASY = [(p, q) for p, q in CELLS if p == 1 or q == INF or p == q == 2]


def amplified(model, x, found, p, q):
    with linearized(model, x) as J:
        image = J @ found.v
    assert torch.allclose(lp_norm(found.v, p), torch.ones(len(x)).double(), rtol=1e-12)
    return lp_norm(image, q)


@pytest.mark.parametrize("name", nets())
@pytest.mark.parametrize(("p", "q"), CELLS)
def test_it_holds_the_truth_and_v_is_amplified_by_the_lower_end(name, p, q):
    model, x = nets()[name].double().train(), points(5)
    found = jacobian_norm(model, x, p, q)
    assert torch.allclose(amplified(model, x, found, p, q), found.lower, rtol=1e-11)
    assert model.training
    if (p, q) == (INF, 2):
        assert found.method.startswith(
            "NP-hard in general: lower by power iteration with 8 restarts, upper by"
        )
        assert (found.lower <= found.upper).all()
        assert (found.upper < 2 * found.lower).all()
        return
    want = torch.stack([brute(A, p, q) for A in truth(model, x)])
    assert (want > 0.01).all()
    assert torch.allclose(found.lower, want, rtol=1e-11)
    assert (found.lower <= want * (1 + 1e-14)).all()
    assert (found.upper >= want * (1 - 1e-14)).all()
    assert (found.upper <= found.lower * (1 + 1e-11)).all()
    assert found.residual.isnan().all() == ((p, q) != (2, 2))


@pytest.mark.parametrize(("p", "q"), [(INF, 2), (INF, 1), (2, 1)])
@pytest.mark.parametrize("shape", [(14, 9), (15, 4)])
def test_hard_cells_bracket_the_truth_where_outputs_are_many(p, q, shape):
    """Both shapes have more than 12 outputs; the truth is found by the signs of one side."""
    model = nn.Linear(shape[1], shape[0], bias=False).double()
    model.weight.data = gauss(*shape, seed=2)
    x = gauss(2, shape[1])
    found = jacobian_norm(model, x, p, q)
    want = brute(model.weight.data, p, q)
    assert (found.lower <= want * (1 + 1e-12)).all()
    assert (found.lower > 0.95 * want).all()
    assert (found.upper >= want * (1 - 1e-12)).all()


@pytest.mark.parametrize(
    ("p", "q"),
    [(2, 2), (INF, 1), *(pytest.param(p, q, marks=pytest.mark.slow) for p, q in ((INF, 2), (2, 1)))],
)
def test_by_products_alone(p, q, monkeypatch):
    model, x = nets()["residual"].double(), points(4)
    want = jacobian_norm(model, x, p, q)
    monkeypatch.setattr(module, "BYTES", 0)
    found = jacobian_norm(model, x, p, q)
    assert torch.allclose(amplified(model, x, found, p, q), found.lower, rtol=1e-11)
    assert torch.allclose(found.lower, want.lower, rtol=1e-9 if p == q else 0.02)
    assert (found.upper >= want.lower).all()
    assert "1 - 1e-09" in found.method
    if p == q == 2:
        assert (found.residual < 1e-6).all()
    # too few steps: no bound, and the residual shows it
    rough = jacobian_norm(model, x, p, q, steps=1)
    assert rough.upper.isinf().all()
    assert rough.residual.isnan().all() or (rough.residual > 1e-3).all()


@pytest.mark.parametrize(("p", "q"), EASY)
def test_a_hidden_layer_and_one_point(p, q):
    model, x = nets()["residual"].double(), points(1)
    want = brute(truth(model, x, "features")[0], p, q)
    f = features(model, x, "features")
    found = jacobian_norm(f, x, p, q)
    assert torch.isclose(found.lower[0], want, rtol=1e-11)
    assert torch.allclose(amplified(f, x, found, p, q), found.lower, rtol=1e-11)


def test_points_do_not_depend_on_their_batch():
    model, x = nets()["residual"].double(), points(70)
    for p, q in ((2, 2), (INF, 2), (1, 1), (2, INF)):
        whole, part = (
            jacobian_norm(model, x, p, q, restarts=2),
            jacobian_norm(model, x[66:68], p, q, restarts=2),
        )
        assert torch.allclose(whole.lower[66:68], part.lower, rtol=1e-10)
        assert whole.v.shape == x.shape


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_a_zero_jacobian(p, q):
    model = nn.Linear(6, 3, bias=False).double()
    nn.init.zeros_(model.weight)
    found = jacobian_norm(model, gauss(2, 6), p, q)
    assert torch.equal(found.lower, torch.zeros(2).double())
    assert torch.equal(found.upper, torch.zeros(2).double())
    assert torch.allclose(lp_norm(found.v, p), torch.ones(2).double())


def test_float32_models_give_float32_directions_and_honest_values():
    model, x = nets()["residual"], points(5, torch.float32)
    for p, q in CELLS:
        found = jacobian_norm(model, x, p, q)
        assert found.v.dtype == torch.float32
        assert found.lower.dtype == torch.float64
        exact = jacobian_norm(model.double(), x.double(), p, q)
        model.float()
        assert torch.allclose(found.lower, exact.lower, rtol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"p": 0.5}, "p=0.5: expected a number of at least 1"),
        ({"q": math.nan}, "q=nan"),
        ({"steps": 0}, "steps=0: expected a whole number, at least 1"),
        ({"restarts": True}, "restarts=True"),
    ],
)
def test_bad_settings(given, message):
    with pytest.raises(NormError, match=message):
        jacobian_norm(nets()["residual"].double(), points(2), **given)


def test_points_that_are_coupled():
    model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), nn.Flatten())
    with pytest.raises(ModelError, match="couples the points"):
        jacobian_norm(model, points(2, torch.float32))


def test_iteration_where_it_is_quicker_than_the_matrix():
    """27 features, each a backward pass, against six steps."""
    model, x = nets()["residual"].double(), points(4)
    f = features(model, x, "features")
    exact, quick = jacobian_norm(f, x), jacobian_norm(f, x, steps=6)
    assert exact.method.startswith("exact")
    assert quick.method.startswith("Lanczos, 6 steps")
    assert quick.upper.isinf().all()
    assert torch.allclose(quick.lower, exact.lower, rtol=0.1)
    assert (quick.lower <= exact.upper).all()
    assert (quick.residual > exact.residual).all()


def test_memory_does_not_grow_with_the_batch():
    model, most = nets()["residual"].double(), []
    model.stem.register_forward_pre_hook(lambda m, args: most.append(len(args[0])))
    jacobian_norm(model, points(200))
    assert max(most) <= 64


# ---------------------------------------------------------------- the iteration as published


@pytest.mark.parametrize(("p", "q"), CELLS)
def test_the_iteration_of_any_step_length_stays_below_and_converges(p, q):
    """Roth's Eq. 11 by hand, and its limit; even where a formula is known."""
    model, x = nets()["residual"].double(), points(4)
    want = jacobian_norm(model, x, p, q).upper
    for alpha in (1e-2, 1.0, INF):
        found = jacobian_norm(model, x, p, q, alpha=alpha, steps=3, restarts=1)
        assert (found.lower <= want * (1 + 1e-12)).all()
        assert found.upper.isinf().all()
        assert torch.allclose(amplified(model, x, found, p, q), found.lower, rtol=1e-11)
        assert ("α" in found.method) == (alpha < INF)
    if p == q == 2:
        far = jacobian_norm(model, x, alpha=INF, steps=500, restarts=1)
        assert torch.allclose(far.lower, want, rtol=1e-6)
        A, v = truth(model, x), random_start(x, 2).flatten(1)
        for _ in range(3):
            u = torch.nn.functional.normalize((A @ v[:, :, None]).squeeze(2))
            v = torch.nn.functional.normalize(v + 0.1 * (A.mT @ u[:, :, None]).squeeze(2))
        found = jacobian_norm(model, x, alpha=0.1, steps=3, restarts=1)
        assert torch.allclose(found.v.flatten(1), v, rtol=1e-10)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0}, "alpha=0: expected a step length"),
        ({"alpha": True}, "alpha=True"),
        ({"alpha": 1, "p": 3}, "p=3"),
    ],
)
def test_bad_step_lengths(given, message):
    with pytest.raises(NormError, match=message):
        jacobian_norm(nets()["linear"].double(), points(2), **given)


# ---------------------------------------------------------------- every scale


def linear_layer(W):
    layer = nn.Linear(W.shape[1], W.shape[0], bias=False, dtype=W.dtype)
    layer.weight.data = W
    return layer


def bounds(W, p, q):
    """A lower and an upper bound on ‖W‖_{p→q} by other means, both exact but for rounding where that is known."""
    if p == 1 or q == INF or p == q == 2:
        return (brute(W, p, q),) * 2
    sigma, (m, n) = torch.linalg.matrix_norm(W, 2), W.shape
    vectors = torch.linalg.svd(W).Vh[:8]
    gains = lp_norm(vectors @ W.T, q) / lp_norm(vectors, p)
    return gains.max(), sigma * n ** max(0.0, 0.5 - 1 / p) * m ** max(0.0, 1 / q - 0.5)


@given(
    st.integers(-996, 996),  # 2^-996 is about 1e-300
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from([*CELLS, (3, 1.5), (1.5, 4)]),
    st.sampled_from([(14, 20), (3, 20), (260, 270)]),  # by all signs, by matrices, by products alone
)
@examples(200)
def test_every_scale_and_dtype(exponent, dtype, cell, shape):
    """The interval holds the norm of the weights at any scale; within the range of the type it is as narrow as for 1."""
    exponent = exponent if dtype == torch.float64 else exponent % 300 - 150
    W = torch.ldexp(gauss(*shape, seed=3), torch.tensor(float(exponent))).to(dtype)
    x = torch.rand(1, shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
    try:
        found = jacobian_norm(linear_layer(W), x, *cell, restarts=2)
    except ModelError:
        assert not (x @ W.T).isfinite().all()
        return
    unit = 2.0 ** min(max(exponent, -1000), 1000)
    below, above = bounds(W.double() / unit, *cell)
    rounding = 1 + 30 * torch.finfo(dtype).eps
    lower, upper = float(found.lower) / unit, float(found.upper) / unit
    assert lower <= float(above) * rounding
    assert upper >= float(below) / rounding
    assert lower <= upper
    limits = torch.finfo(dtype)
    if limits.tiny / limits.eps < unit < limits.max / 1e3:
        assert upper < math.inf
        assert lower > 0.7 * float(below)


@pytest.mark.each_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-30, 1e-12, 3e-11, 1.0, 1e10, 1e30])
@pytest.mark.parametrize("at", [(0, 0), (5, 9)])
def test_one_entry_above_a_multiple_of_the_identity(scale, dtype, at):
    W = scale * torch.eye(300, dtype=dtype)
    W[at] = 3 * scale
    want = torch.linalg.matrix_norm((W / scale).double(), 2) * scale
    found = jacobian_norm(linear_layer(W), torch.rand(1, 300, dtype=dtype))
    assert float(found.lower) == pytest.approx(float(want), rel=1e-5)
    assert found.lower <= want * (1 + 1e-6)
    assert found.upper >= want


@pytest.mark.parametrize(
    ("dtype", "entry"), [(torch.float16, 6e-8), (torch.float32, 1e-44), (torch.float64, 1e-310)]
)
def test_one_entry_near_the_smallest_number_is_not_taken_for_zero(dtype, entry):
    for column in range(0, 300, 60):
        W = torch.zeros(290, 300, dtype=dtype)
        W[5, column] = entry
        found = jacobian_norm(linear_layer(W), torch.rand(1, 300).to(dtype), steps=20)
        assert found.upper >= W.double().max() > 0


def test_a_deep_stack_at_the_default_initialization():
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(32) for m in (nn.Linear(256, 256), nn.ReLU())])
    x = torch.rand(3, 256)
    found = jacobian_norm(model, x)
    want = torch.linalg.matrix_norm(truth(model.double(), x.double()), 2)
    assert (want < 1e-11).all()
    assert torch.allclose(found.lower, want, rtol=1e-4)
    assert (found.upper >= want).all()


class Root(nn.Module):
    def forward(self, x):
        return x.sqrt()


@pytest.mark.each_value
@pytest.mark.parametrize(("p", "q"), [*CELLS, (3, 1.5)])
@pytest.mark.parametrize("features", [4, 20, 300])
def test_an_infinite_derivative_is_not_known_and_spares_the_other_points(features, p, q):
    x = 0.5 + torch.rand(2, features).double() / 2
    want = jacobian_norm(Root(), x, p, q)
    x[0, 1] = 0
    found = jacobian_norm(Root(), x, p, q)
    assert (float(found.lower[0]), float(found.upper[0])) == (0, INF)
    assert found.v.isfinite().all()
    assert torch.allclose(found.lower[1], want.lower[1])
    assert torch.allclose(found.upper[1], want.upper[1])


def test_a_network_that_needs_contiguous_memory():
    """Channels last cannot be viewed as rows; the result does not depend on that."""

    class View(nn.Module):
        def forward(self, x):
            return x.view(len(x), -1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), View(), nn.Linear(48, 4))
    x = torch.randn(3, 2, 6, 6)
    found = jacobian_norm(model, x)
    want = torch.linalg.matrix_norm(truth(model.double(), x.double()), 2)
    assert torch.allclose(found.lower, want, rtol=1e-5)
    assert found.v.is_contiguous()
