import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.data import Dataset, Split
from opnorm.data.dataset import hold_out, stratified
from opnorm.errors import DataError
from tests.property_tests import examples

CLASSES = ("cat", "dog", "owl")


def split(n=6, shape=(3, 4, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n) % len(CLASSES))


def make(train=None, test=None, classes=CLASSES):
    return Dataset("mine", train or split(), test or split(4, seed=1), classes)


def test_properties():
    data = make()
    assert data.num_classes == 3
    assert data.image_shape == (3, 4, 5)
    assert data.describe() == {
        "name": "mine",
        "train": 6,
        "test": 4,
        "image_shape": [3, 4, 5],
        "classes": 3,
    }
    assert repr(data) == "Dataset('mine': 6 train, 4 test, 3x4x5, 3 classes)"
    assert len({data, data}) == 1


@examples(25)
@given(n=st.integers(1, 600), c=st.integers(1, 4), h=st.integers(1, 6), seed=st.integers(0, 1000))
def test_mean_and_std_are_those_of_float64(n, c, h, seed):
    data = make(split(n, (c, h, 3), seed), split(1, (c, h, 3)))
    x = data.train.images.double() / 255
    assert data.mean == pytest.approx(x.mean((0, 2, 3)).tolist(), rel=1e-13)
    assert data.std == pytest.approx(x.std((0, 2, 3), correction=0).tolist(), rel=1e-12, abs=1e-15)


def test_std_of_constant_images_is_exactly_zero():
    images = torch.full((1000, 1, 3, 3), 201, dtype=torch.uint8)
    data = make(Split(images, torch.zeros(1000, dtype=torch.int64)), split(2, (1, 3, 3)))
    assert data.std == (0.0,)
    assert data.mean == (201 / 255,)


def test_moments_are_computed_once(monkeypatch):
    data = make()
    first = data.mean
    monkeypatch.setattr(torch.Tensor, "split", None)
    assert data.mean is first
    assert len(data.std) == 3


class TestLimit:
    def test_gives_a_subset_with_its_labels(self):
        images = torch.arange(200, dtype=torch.uint8).reshape(200, 1, 1, 1)
        labels = torch.arange(200) % 3
        data = make(Split(images, labels), Split(images[:30], labels[:30])).limit(50)
        assert len(data.train.labels) == 50
        assert len(data.test.labels) == 30
        rows = data.train.images.flatten().long()
        assert (rows.diff() > 0).all()
        assert torch.equal(data.train.labels, rows % 3)

    def test_is_fixed_and_nested_and_follows_the_seed(self):
        data = make(split(200), split(100))
        rows = {(n, s): self.rows(data.limit(n, s)) for n in (20, 60) for s in (0, 1)}
        assert rows[20, 0] == self.rows(data.limit(20))
        assert rows[20, 0] < rows[60, 0]
        assert rows[20, 0] != rows[20, 1]

    @staticmethod
    def rows(data):
        return {image.numpy().tobytes() for image in data.train.images}

    def test_draws_train_and_test_apart(self):
        images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)
        same = Split(images, torch.arange(100) % 3)
        data = make(same, same).limit(10)
        assert not torch.equal(data.train.images, data.test.images)

    @pytest.mark.parametrize("n", [0, -3])
    def test_below_one_is_refused(self, n):
        with pytest.raises(DataError, match=f"limit={n}: .*at least 1"):
            make().limit(n)


@examples(30)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=200))
def test_stratified_takes_its_share_of_each_class(labels):
    labels = np.array(labels)
    rows = stratified(labels, lambda n: n // 2)
    assert (np.diff(rows) > 0).all()
    assert (np.bincount(labels[rows], minlength=5) == np.bincount(labels, minlength=5) // 2).all()


def test_hold_out_keeps_every_row_once():
    labels = torch.tensor([0] * 50 + [1] * 5 + [2] * 2 + [3])
    images = torch.arange(58, dtype=torch.uint8).reshape(58, 1, 1, 1)
    train, test = hold_out(images, labels)
    assert torch.bincount(test.labels, minlength=4).tolist() == [10, 1, 1, 0]
    assert torch.bincount(train.labels, minlength=4).tolist() == [40, 4, 1, 1]
    assert sorted([*train.images.flatten().tolist(), *test.images.flatten().tolist()]) == list(range(58))


def changed(**fields):
    return split()._replace(**fields)


def nan_images():
    images = torch.zeros(6, 3, 4, 5)
    images[2, 1, 0, 3], images[4, 0, 0, 0] = math.nan, math.inf
    return images


REFUSED = {
    "float": (
        {"train": changed(images=torch.zeros(6, 3, 4, 5))},
        r"train images are torch.float32; expected",
    ),
    "nan": (
        {"train": changed(images=nan_images())},
        r"float32 with 2 NaN or infinite values, the first \(nan\) at index \(2, 1, 0, 3\)",
    ),
    "int": (
        {"test": changed(images=torch.zeros(6, 3, 4, 5).int())},
        r"test images are torch.int32; expected",
    ),
    "1-d": (
        {"train": changed(images=split().images[:, 0, 0, 0])},
        r"shape \(6,\); expected a row for each point: images \(N, C, H, W\), vectors",
    ),
    "array": ({"train": changed(images=split().images.numpy())}, "train images are a ndarray"),
    "no rows": ({"test": split(0)}, r"test images: none; expected"),
    "no width": ({"train": split(6, (3, 4, 0))}, r"\(6, 3, 4, 0\); expected no dimension of size 0"),
    "other shape": ({"test": split(6, (1, 4, 5))}, "training images are 3x4x5 but test images are 1x4x5"),
    "label count": ({"train": changed(labels=torch.zeros(5).long())}, r"shape \(5,\) for 6 images"),
    "one-hot": ({"train": changed(labels=torch.zeros(6, 3).long())}, r"shape \(6, 3\) for 6 images"),
    "float labels": ({"train": changed(labels=torch.zeros(6))}, "train labels are torch.float32; expected"),
    "list labels": ({"train": changed(labels=[0] * 6)}, "train labels are a list"),
    "too high": (
        {"test": changed(labels=torch.tensor([0, 1, 3, 0, 7, 0]))},
        r"test labels: row 2 is 3; expected 0 to 2.*2 such rows",
    ),
    "negative": (
        {"train": changed(labels=torch.tensor([0, -1, 2, 0, 0, 0]))},
        "row 1 is -1; expected 0 to 2",
    ),
    "one class": ({"classes": ("cat",)}, r"1 class\(es\).*at least 2"),
    "no class": ({"classes": ()}, r"0 class\(es\)"),
}


@pytest.mark.parametrize(("arguments", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses(arguments, message):
    with pytest.raises(DataError, match=message) as error:
        make(**arguments)
    assert str(error.value).startswith("mine")


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 9, 3), (64, 64, 4)])
def test_channels_that_are_last_are_named(shape):
    with pytest.warns(UserWarning, match=r"Is the axis of the channels last\? images.permute\(0, 3, 1, 2\)"):
        make(split(6, shape), split(4, shape))


@pytest.mark.parametrize(
    "shape",
    [(3, 8, 8), (1, 8, 8), (3, 8, 3), (64, 3, 3), (22, 100, 1), (22, 1, 1), (9,), (4, 9), (8, 8, 8, 1)],
)
def test_channels_that_are_first_are_taken_without_a_word(shape, recwarn):
    make(split(6, shape), split(4, shape))
    assert not recwarn.list
