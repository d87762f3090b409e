"""Times of norms: what is defined for which layer, values beside the norms themselves."""

import importlib

import pytest
import torch
from torch import nn

from opnorm.analyses import norm_times
from opnorm.errors import ModelError
from opnorm.norms import l1, linf, spectral_norm
from tests.analyses.toys import data

torch.manual_seed(0)
STRIDED = nn.Conv2d(1, 3, 3, stride=2, padding=1)
MODEL = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), STRIDED, nn.Flatten(), nn.LazyLinear(3))


@pytest.fixture(scope="module")
def rows():
    toy = data()
    MODEL(toy.test.images[:1] / 255)
    return norm_times(seconds=0.0)(MODEL, toy)


def test_values_are_the_norms(rows):
    for row, layer in zip(rows, (MODEL[0], STRIDED, MODEL[3]), strict=True):
        shape = tuple(row["in_shape"])
        assert row["values"]["l1"] == pytest.approx(float(l1(layer, shape).detach()))
        assert row["values"]["linf"] == pytest.approx(float(linf(layer, shape).detach()))
        assert row["values"]["certified"] == pytest.approx(float(spectral_norm(layer, shape).upper))
        assert row["values"]["vs"] <= row["values"]["certified"] * (1 + 1e-5)


def test_sgl_is_for_convolutions_without_stride(rows):
    assert [row["times"]["sgl"] is not None for row in rows] == [True, False, False]
    assert all(row["times"][key] > 0 for row in rows for key in ("vs", "l1", "linf", "certified"))


def test_exact_norms_are_those_of_the_matrix(rows):
    assert rows[2]["differences"] is None
    for row in rows[:2]:
        assert max(row["differences"].values()) < 1e-6
    for row in rows:  # at the whole input, linear layers included
        assert max(row["whole_differences"].values()) < 1e-6


def test_a_wrong_norm_is_seen(monkeypatch):
    """At the whole input, where no explicit matrix is made."""
    module = importlib.import_module("opnorm.analyses._norm_times")
    monkeypatch.setattr(module, "linf", lambda layer, shape: 1.1 * linf(layer, shape))
    toy = data()
    row = norm_times(seconds=0.0)(MODEL, toy)[0]
    assert row["whole_differences"]["linf"] == pytest.approx(0.1, rel=1e-4)
    assert row["whole_differences"]["l1"] < 1e-6


def test_sums_of_absolute_values_are_no_norm_where_padding_repeats_pixels():
    model = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    assert norm_times(seconds=0.0)(model, data())[0]["whole_differences"] is None


def test_display(rows):
    assert (
        norm_times(seconds=0.0).chart([{**row, "method": "a", "seed": 0} for row in rows], ["a"]).key
        == "norm-times"
    )
    assert "exact ℓ₁" in norm_times().sentence(rows)


def test_a_network_without_such_layers():
    with pytest.raises(ModelError, match="no linear or convolutional layer"):
        norm_times()(nn.Flatten(), data())


class Tokens(nn.Module):
    """A linear layer on the two halves of an image, each a vector of its own."""

    def __init__(self):
        super().__init__()
        self.halves = nn.Linear(8, 3)

    def forward(self, x):
        return self.halves(x.view(-1, 2, 8)).flatten(1)


@pytest.mark.parametrize(
    "model",
    [
        Tokens(),
        nn.Sequential(nn.Upsample(size=(6, 6)), nn.Conv2d(1, 2, 6)),
        nn.Sequential(nn.Upsample(size=(9, 9)), nn.Conv2d(1, 2, 3, dilation=3)),
        nn.Sequential(nn.Upsample(size=(7, 7)), nn.Conv2d(1, 1, 9, padding=5, padding_mode="reflect")),
        nn.Sequential(nn.Upsample(size=(7, 7)), nn.Conv2d(1, 1, 11, padding="same", padding_mode="circular")),
    ],
    ids=["halves", "kernel", "dilation", "reflect", "circular"],
)
def test_norms_are_checked_on_the_smallest_input_that_the_layer_takes(model):
    (row,) = norm_times(seconds=0.0)(model, data())
    assert max(row["differences"].values()) < 1e-6
