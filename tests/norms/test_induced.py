"""‖A‖_{p→q}: closed formulae where there are some, and elsewhere an interval that holds the truth."""

import importlib
import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from opnorm._core.linear_map import linear_map
from opnorm.errors import NormError
from opnorm.norms.induced import induced, induced_norm
from tests.norms.cases import CASES, PADDED_CASES, TRANSPOSED_CASES, WEIGHTLESS_CASES, matrix, on_cases
from tests.property_tests import examples

module = importlib.import_module("opnorm.norms.induced")  # the package may have a function of that name
INF = math.inf
ORDERS = (1, 1.2, 1.5, 2, 2.7, 4, 10, INF)


def random_matrix(m, n, seed, kind="normal"):
    A = torch.randn(m, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {
        "normal": A,
        "positive": A.abs(),
        "signs": A.sign(),
        "sparse": A * (A.abs() > 1),
        "low": A[:, :1] * A[:1],
    }[kind]


matrices = st.builds(
    random_matrix,
    st.integers(1, 6),
    st.integers(1, 6),
    st.integers(0, 10**6),
    st.sampled_from(["normal", "positive", "signs", "sparse", "low"]),
)
orders = st.one_of(st.sampled_from(ORDERS), st.floats(1, 30))


def norm(x, r, axis=-1):
    return torch.linalg.vector_norm(x, r, axis)


def by_search(A, p, q, seed=0):
    """The largest of very many ratios, climbed by gradient: a lower bound that is nearly always the truth."""
    g = torch.Generator().manual_seed(seed)
    v = torch.randn(200, A.shape[1], generator=g, dtype=torch.float64)
    v = torch.cat([v, v.sign(), torch.eye(A.shape[1], dtype=torch.float64)])
    return float((norm(v @ A.T, q) / norm(v, p)).max())


@given(matrices, orders, orders)
@examples(400)
def test_interval_holds_every_ratio(A, p, q):
    found = induced(A, p, q)
    assert found.lower <= found.upper
    assert by_search(A, p, q) <= found.upper * (1 + 1e-14)


@given(st.integers(1, 5), st.integers(0, 10**6), orders, orders)
@examples(300)
def test_two_columns_on_the_whole_circle(m, seed, p, q):
    """With two inputs every direction can be tried."""
    A = random_matrix(m, 2, seed)
    angles = torch.linspace(0, math.pi, 20_001, dtype=torch.float64)
    v = torch.stack([angles.cos(), angles.sin()], 1)
    v = torch.cat([v, torch.eye(2, dtype=torch.float64)])
    truth = float((norm(v @ A.T, q) / norm(v, p)).max())
    found = induced(A, p, q)
    assert found.upper >= truth * (1 - 1e-14)
    assert found.lower <= truth * (1 + 1e-3)  # the circle has gaps
    assert found.lower >= truth * (1 - 1e-3)


@pytest.mark.slow
@given(matrices, orders, orders)
@examples(5000)
def test_interval_holds_every_ratio_in_thousands(A, p, q):
    found = induced(A, p, q)
    assert found.lower <= found.upper
    assert by_search(A, p, q) <= found.upper * (1 + 1e-14)


@given(matrices, orders)
@examples(100)
def test_columns_and_rows(A, r):
    for q, M, value in ((r, A, induced(A, 1, r)), (r, A.T, induced(A, r / (r - 1) if r > 1 else INF, INF))):
        assert value.exact
        assert float(value.lower) == pytest.approx(float(norm(M, q, 0).max()), rel=1e-12)


@given(matrices, st.sampled_from([1, 1.5, 2, 3, INF]))
@examples(100)
def test_signs(A, q):
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=A.shape[1])), dtype=torch.float64)
    truth = float(norm(signs @ A.T, q).max())
    found = induced(A, INF, q)
    assert found.lower <= truth * (1 + 1e-14)
    assert found.upper >= truth * (1 - 1e-14)
    assert found.relative_width < 1e-10
    dual = induced(A.T, q / (q - 1) if 1 < q < INF else {1: INF, INF: 1}[q], 1)
    assert float(dual.upper) == pytest.approx(truth, rel=1e-10)


@pytest.mark.parametrize(("p", "q"), [(INF, 1), (INF, 2), (2, 1), (INF, 1.5), (3, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_bounds_without_enumeration_hold_the_truth(monkeypatch, p, q, seed):
    A = random_matrix(9, 8, seed)
    truth = induced(A, p, q)
    assert truth.relative_width < 1e-10
    monkeypatch.setattr(module, "SIGNS", 0)
    found = induced(A, p, q)
    assert found.lower <= truth.upper
    assert found.upper >= truth.lower
    assert found.lower >= 0.99 * truth.lower
    assert found.upper <= 2 * truth.upper
    assert "NP-hard" in found.method
    assert "16 restarts" in found.method


def test_two_to_two():
    A = random_matrix(20, 30, 0)
    found = induced(A, 2, 2)
    assert found.lower <= torch.linalg.svdvals(A)[0] <= found.upper
    assert found.relative_width < 1e-11


@given(matrices, orders, orders)
@examples(150)
def test_duality_scaling_and_permutation(A, p, q):
    dual = {1: INF, INF: 1}
    p_dual, q_dual = (dual.get(r) or r / (r - 1) for r in (p, q))
    found, adjoint = induced(A, p, q), induced(A.T, q_dual, p_dual)
    for a, b in ((found, adjoint), (adjoint, found)):
        assert a.lower <= b.upper * (1 + 1e-9)
    scaled = induced(-1e-200 * A, p, q)
    assert float(scaled.upper) == pytest.approx(1e-200 * float(found.upper), rel=1e-9)
    permuted = induced(A.flip(0, 1), p, q)
    assert float(permuted.upper) == pytest.approx(float(found.upper), rel=1e-9)
    assert permuted.lower <= found.upper


@given(matrices, matrices, orders, orders, orders)
@examples(100)
def test_composition(A, B, p, q, r):
    k = min(A.shape[1], B.shape[0])
    A, B = A[:, :k], B[:k]
    bound = float(induced(A, q, r).upper) * float(induced(B, p, q).upper)
    assert float(induced(A @ B, p, r).lower) <= bound * (1 + 1e-12)


@given(matrices, orders)
@examples(60)
def test_positive_matrices_reach_their_norm(A, p):
    """For A >= 0 and p = q the iteration finds the maximum: it has no other critical point (Boyd 1974)."""
    A = A.abs() + 0.01
    v = torch.rand(500, A.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = induced(A, p, p)
    assert found.lower >= (norm(v @ A.T, p) / norm(v, p)).max() * (1 - 1e-6)
    assert found.upper >= found.lower


def test_zero_and_tiny_matrices():
    for p, q in itertools.product(ORDERS, ORDERS):
        assert induced(torch.zeros(3, 2), p, q)[:2] == (0, 0)
        one = induced(torch.tensor([[-2.5]]), p, q)
        assert (float(one.lower), float(one.upper)) == pytest.approx((2.5, 2.5), rel=1e-12)
    assert float(induced(torch.zeros(0, 3), 2, 1).upper) == 0


@pytest.mark.parametrize(
    ("A", "p", "q", "message"),
    [
        (torch.ones(2, 2), 0.5, 1, "p=0.5"),
        (torch.ones(2, 2), 1, math.nan, "q=nan"),
        (torch.ones(2, 2), "2", 1, "p='2'"),
        (torch.ones(2), 1, 1, "expected a matrix"),
        (torch.ones(2, 2, dtype=torch.int64), 1, 1, "expected a matrix of floating point"),
        (torch.tensor([[math.nan, 1.0]]), 2, 1, "1 entries that are NaN"),
    ],
)
def test_bad_input(A, p, q, message):
    with pytest.raises(NormError, match=message):
        induced(A, p, q)


# ---------------------------------------------------------------- layers


@on_cases(CASES + PADDED_CASES + TRANSPOSED_CASES + WEIGHTLESS_CASES)
def test_layers(layer, shape):
    M = matrix(layer, shape)
    for p, q in ((1, 1), (1, 1.5), (1, 2), (1, INF), (1.5, INF), (2, INF), (INF, INF)):
        found = induced_norm(layer, p, q, shape)
        want = induced(M, p, q)
        assert float(found.lower) == pytest.approx(float(want.lower), rel=1e-11), (p, q)
        assert found.exact, (p, q)
    two = induced_norm(layer, 2, 2, shape)
    sigma = float(torch.linalg.matrix_norm(M, 2))
    assert two.lower <= sigma * (1 + 1e-12)
    assert two.upper >= sigma * (1 - 1e-12)


@pytest.mark.each_value
@pytest.mark.parametrize(("p", "q"), [(2, 1), (INF, 2), (INF, 1), (3, 1.5), (1.5, 3), (4, 4)])
@on_cases([*CASES[3:6], PADDED_CASES[0], TRANSPOSED_CASES[1], WEIGHTLESS_CASES[9]])
def test_large_layers_are_intervals(monkeypatch, layer, shape, p, q):
    exact = induced(matrix(layer, shape), p, q)
    monkeypatch.setattr(module, "DENSE", 0)
    found = induced_norm(layer, p, q, shape)
    assert found.lower <= exact.upper
    assert found.upper >= exact.lower
    assert found.lower >= 0.9 * exact.lower
    assert found.upper < INF
    assert "NP-hard" in found.method


def test_linear_maps_and_what_has_no_upper_bound(monkeypatch):
    linear = linear_map(nn.Linear(3, 2).double(), (3,))
    assert induced_norm(linear, INF, 1).relative_width < 1e-10
    monkeypatch.setattr(module, "DENSE", 0)
    found = induced_norm(linear, INF, 1)
    assert found.upper == INF
    assert "no upper bound is known" in found.method
    with pytest.raises(NormError, match="is not linear"):
        induced_norm(nn.ReLU(), 2, 1, (3,))


def test_compiled_and_low_precision_layers():
    layer = nn.Conv2d(2, 3, 3).bfloat16()
    want = induced(matrix(nn.Conv2d(2, 3, 3).double(), (2, 4, 4)), 1, 2)
    found = induced_norm(torch.compile(layer), 1, 2, (2, 4, 4))
    K = layer.weight.detach().double()
    assert float(found.lower) <= float(norm(K.flatten(2), 2).norm(dim=0).max()) * (1 + 1e-12)
    assert found.exact
    assert layer.weight.dtype == torch.bfloat16
    assert want.exact
