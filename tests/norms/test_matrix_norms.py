"""All norms of one matrix of weights."""

import math

import numpy as np
import pytest
import torch

from opnorm.norms.matrix_norms import WeightNorms, diagonal_norms, matrix_norms
from opnorm.norms.spectral.large_matrix import PanelMatrix

ORDS = (1, 2, math.inf, "rms")


def row(kind: str = "matrix") -> WeightNorms:
    return WeightNorms("w", kind, (3, 5), "float32")


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (600, 550), (1, 4)])
def test_norms_equal_those_of_numpy(shape):
    W = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    M = W.double().numpy()
    got = matrix_norms(row(), PanelMatrix.of(W), ORDS, condition=True)
    assert float(got.norms[1]) == pytest.approx(np.linalg.norm(M, 1), rel=1e-13)
    assert float(got.norms[math.inf]) == pytest.approx(np.linalg.norm(M, np.inf), rel=1e-13)
    assert got.frobenius == pytest.approx(np.linalg.norm(M), rel=1e-13)
    values = np.linalg.svd(M, compute_uv=False)
    for interval, truth in (
        ((got.norms[2].lower, got.norms[2].upper), values[0]),
        ((got.norms["rms"].lower, got.norms["rms"].upper), values[0] * math.sqrt(shape[1] / shape[0])),
        (got.stable_rank, (values**2).sum() / values[0] ** 2),
        (got.condition, values[0] / values[-1]),
    ):
        assert interval[0] <= truth * (1 + 1e-13)
        assert interval[1] >= truth * (1 - 1e-13)


def test_an_embedding_maps_one_hot_vectors():
    W = torch.tensor([[1.0, 2.0], [3.0, -4.0], [0.0, 0.0]])  # three words
    got = matrix_norms(row("embedding"), PanelMatrix.of(W), ORDS)
    as_map = matrix_norms(row(), PanelMatrix.of(W.T.contiguous()), ORDS)
    assert float(got.norms[1]) == 7
    assert all(torch.allclose(got.norms[p].upper, as_map.norms[p].upper) for p in ORDS)


def test_a_lost_rank_has_no_known_condition():
    got = matrix_norms(row(), PanelMatrix.of(torch.ones(4, 4)), (2,), condition=True)
    assert got.condition[1] == math.inf
    assert got.as_dict()["condition"]["upper"] is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_not_finite_are_said(bad):
    W = torch.ones(3, 4)
    W[1, 2] = bad
    got = matrix_norms(row(), PanelMatrix.of(W), ORDS)
    assert not got.norms
    assert "1 of 12" in got.note
    assert "1 of 4" in diagonal_norms(row(), W[1], ORDS).note


def test_a_gain_is_a_diagonal_map():
    got = diagonal_norms(row("diagonal"), torch.tensor([1.0, -3.0]), ORDS)
    assert {float(n) for n in got.norms.values()} == {3.0}
    assert got.stable_rank[0] == pytest.approx(10 / 9)
