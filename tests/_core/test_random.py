"""Random numbers by hash: fixed for ever, and evenly mixed."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from opnorm._core.random import permutation
from tests.property_tests import examples


@examples(30)
@given(st.integers(0, 3000), st.integers(-(10**12), 10**12))
def test_every_index_is_there_once(n, seed):
    assert sorted(permutation(n, seed).tolist()) == list(range(n))


def test_permutation_never_changes():
    assert permutation(10, 0).tolist() == [5, 7, 4, 9, 2, 0, 1, 8, 6, 3]
    assert permutation(10, 1).tolist() == [5, 3, 9, 8, 1, 4, 7, 0, 6, 2]


def test_permutation_is_evenly_mixed():
    """Over 2,000 seeds each index is first equally often (chi-square with 9 degrees of freedom)."""
    counts = np.bincount([permutation(10, seed)[0] for seed in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 28  # p = 0.001
