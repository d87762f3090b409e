import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from opnorm.data import digits, parquet
from opnorm.data.class_separation import block_sums, separation
from opnorm.errors import DataError, SpecError

NORMS = [1, 2, math.inf]


def brute(images, labels, norm):
    """The least distance in whole numbers, pair by pair."""
    x = images.reshape(len(images), -1).astype(np.int64)
    d = np.abs(x[:, None] - x[None])
    levels = {1: d.sum(2), 2: (d * d).sum(2), math.inf: d.max(2)}[norm]
    return int(levels[labels[:, None] != labels[None]].min()), levels


@pytest.mark.parametrize("norm", NORMS)
@given(
    seed=st.integers(0, 10**6),
    shape=st.sampled_from([(1,), (5,), (17, 3), (1, 9, 9), (3, 5, 16), (2, 1, 40), (1, 2, 3, 4)]),
    spread=st.sampled_from([1, 20, 255]),
    classes=st.integers(2, 4),
)
def test_is_what_all_pairs_give(norm, seed, shape, spread, classes):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 256 - spread)
    images = rng.integers(low, low + spread + 1, (40, *shape), dtype=np.uint8)
    labels = np.concatenate([[0, 1], rng.integers(0, classes, 38)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opnorm.data.class_separation.FIRST", 4)
        patch.setattr("opnorm.data.class_separation.CHUNK", 100)
        found = separation((torch.from_numpy(images), torch.from_numpy(labels)), norm)
    least, levels = brute(images, labels, norm)
    assert found.levels == least == levels[found.pair]
    assert found.labels == (labels[found.pair[0]], labels[found.pair[1]])
    assert found.labels[0] != found.labels[1]
    assert found.pair[0] < found.pair[1]
    assert found.distance == pytest.approx((math.sqrt(least) if norm == 2 else least) / 255, rel=1e-15)
    assert found.eps == found.distance / 2


@pytest.mark.each_value
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_digits(norm, split):
    """Enough points that every shortcut is taken."""
    data = digits()
    x, y = {"train": data.train, "test": data.test, "all": (
        torch.cat([data.train.images, data.test.images]), torch.cat([data.train.labels, data.test.labels])
    )}[split]  # fmt: skip
    flat = x.flatten(1).double()
    d = torch.cdist(flat, flat, p=norm, compute_mode="donot_use_mm_for_euclid_dist")
    least = d[y[:, None] != y[None]].min() ** (2 if norm == 2 else 1)
    found = separation(data, norm, split)
    assert found.levels == round(float(least))
    assert found.points == len(y)
    i, j = found.pair
    assert int(y[i]) == found.labels[0] != found.labels[1] == int(y[j])


@pytest.mark.parametrize("norm", NORMS)
def test_a_planted_pair_among_many(norm):
    """One nearest pair, among the images of the highest contrast, where it comes last."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (1500, 3, 16, 16), dtype=np.uint8)
    images[700] = 255 * rng.integers(0, 2, (3, 16, 16))
    images[3] = images[700] ^ (images[700] == 0)  # every zero is a one
    labels = torch.arange(1500) % 7
    found = separation((torch.from_numpy(images), labels), norm)
    assert found.pair == (3, 700)
    zeros = int((images[700] == 0).sum())
    assert found.levels == (1 if norm == math.inf else zeros)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_images_of_two_classes(norm):
    images = torch.randint(0, 256, (400, 1, 6, 6), dtype=torch.uint8, generator=torch.manual_seed(0))
    images[399] = images[0]
    found = separation((images, (torch.arange(400) > 200).long()), norm)
    assert found.levels == found.distance == 0
    assert found.pair == (0, 399)


def test_equal_images_of_one_class_do_not_count():
    images = torch.tensor([[0, 0], [0, 0], [9, 4]], dtype=torch.uint8)
    assert separation((images, torch.tensor([0, 0, 1])), 1).levels == 13


def test_no_overflow_at_the_extremes():
    images = torch.stack(
        [torch.zeros(3, 300, 300), torch.full((3, 300, 300), 255), torch.ones(3, 300, 300)]
    ).to(torch.uint8)
    labels = torch.tensor([0, 1, 1])
    assert separation((images[:2], labels[:2]), 2).levels == 255**2 * 270_000
    assert separation((images[:2], labels[:2]), 1).levels == 255 * 270_000
    assert separation((images[:2], labels[:2])).levels == 255
    assert separation((images, labels), 2).levels == 270_000


@pytest.mark.parametrize("side", [40, 1100])
def test_sums_over_blocks_are_exact(side):
    """A rounded sum could exclude the nearest pair; 255 · 550² has more digits than float32."""
    rows = np.random.default_rng(0).integers(200, 256, (2, 1, side, side), dtype=np.uint8)
    half = side // 2
    expected = rows.reshape(2, 2, half, 2, half).sum((2, 4), dtype=np.int64).reshape(2, 4)
    for power, weight in ((1, 1), (2, 1 / half**2)):
        sums, weights = block_sums(rows, 2, power)
        assert (sums == expected).all()
        assert weights == pytest.approx([weight] * 4)


def test_progress():
    reports = []
    separation(digits(), 2, progress=lambda share, distance: reports.append((share, distance)))
    shares, distances = zip(*reports, strict=True)
    assert sorted(shares) == list(shares)
    assert shares[-1] == 1
    assert sorted(distances, reverse=True) == list(distances)
    assert len(reports) > 3


@pytest.mark.parametrize(
    ("data", "options", "error", "says"),
    [
        ((torch.rand(4, 2), torch.tensor([0, 1, 0, 1])), {}, DataError, "float32 of shape"),
        ((torch.zeros(4, 2, dtype=torch.uint8), torch.tensor([0, 1])), {}, DataError, "one for each of 4"),
        ((torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([0.0, 1.0])), {}, DataError, "float32"),
        ((torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, 1])), {}, DataError, "one class"),
        ((torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, 0])), {"norm": 3}, SpecError, "norm=3"),
        ((torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, 0])), {"norm": True}, SpecError, "True"),
        ((torch.zeros(2, 2, dtype=torch.uint8), torch.tensor([1, 0])), {"split": "x"}, SpecError, "'x'"),
    ],
)
def test_says_what_is_wrong(data, options, error, says):
    with pytest.raises(error, match=says):
        separation(data, **options)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("norm", NORMS)
def test_cifar10(data_folder, norm):
    data = parquet(str(data_folder / "cifar10"))
    found = separation(data, norm)
    x, y = data.train
    i, j = found.pair
    assert y[i] != y[j]
    d = (x[i].long() - x[j].long()).abs()
    assert found.levels == int({1: d.sum(), 2: (d * d).sum(), math.inf: d.max()}[norm])
    part = (
        torch.cat([x[::25], x[[i, j]]]),
        torch.cat([y[::25], y[[i, j]]]),
    )  # every pair of a sample, with this one
    flat = part[0].flatten(1).float()
    apart = torch.cdist(flat, flat, p=norm, compute_mode="donot_use_mm_for_euclid_dist")
    least = float(apart[part[1][:, None] != part[1][None]].min())
    assert least ** (2 if norm == 2 else 1) == pytest.approx(found.levels, rel=1e-5)
    without = part[0][:-2], part[1][:-2]
    expected = float(apart[:-2, :-2][part[1][:-2, None] != part[1][None, :-2]].min())
    assert separation(without, norm).levels == pytest.approx(expected ** (2 if norm == 2 else 1), rel=1e-5)
