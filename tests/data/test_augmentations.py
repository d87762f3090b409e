"""Each augmentation against an implementation that takes one image at a time, in plain numpy or torch."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from opnorm import spec
from opnorm.data.augmentations import boxes, crop, flip, random_resized_crop
from opnorm.errors import DataError, SpecError
from tests.property_tests import examples


def batch(b=8, c=3, h=9, w=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (b, c, h, w), dtype=torch.uint8, generator=generator)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(image, padding):
    """Every crop of one padded image, by numpy slices: {bytes: (top, left)}."""
    _, h, w = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    places = [(i, j) for i in range(2 * padding + 1) for j in range(2 * padding + 1)]
    return {padded[:, i : i + h, j : j + w].tobytes(): (i, j) for i, j in places}


@examples(30)
@given(
    b=st.integers(1, 9),
    c=st.integers(1, 3),
    h=st.integers(1, 9),
    w=st.integers(1, 9),
    padding=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_crop_cuts_a_window_out_of_each_padded_image(b, c, h, w, padding, seed):
    x = batch(b, c, h, w, seed)
    y = crop(padding)(x, rng(seed))
    assert y.shape == x.shape
    assert y.dtype == torch.uint8
    for before, after in zip(x, y, strict=True):
        assert after.contiguous().numpy().tobytes() in windows(before, padding)


def test_crop_uses_every_offset_equally():
    x = batch(1, 1, 16, 16).expand(5000, -1, -1, -1)
    known = windows(x[0], 2)
    counts = np.zeros((5, 5))
    for image in crop(2)(x, rng()):
        counts[known[image.numpy().tobytes()]] += 1
    assert ((counts - 200) ** 2 / 200).sum() < 52  # chi-square, 24 degrees of freedom, p = 0.001


@examples(20)
@given(p=st.sampled_from([0.0, 0.3, 1.0]), b=st.integers(1, 20), w=st.integers(1, 8), seed=st.integers(0, 99))
def test_flip_mirrors_whole_images(p, b, w, seed):
    x = batch(b, 3, 4, w, seed)
    y = flip(p)(x, rng(seed))
    for before, after in zip(x.numpy(), y.numpy(), strict=True):
        mirrored = before[:, :, ::-1]
        same, turned = np.array_equal(after, before), np.array_equal(after, mirrored)
        assert {0.0: same, 1.0: turned}.get(p, same or turned)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_flip_happens_with_probability_p(p):
    x = batch(1, 1, 4, 4).expand(4000, -1, -1, -1)
    turned = (flip(p)(x, rng()) != x).flatten(1).any(1).float().mean()
    assert turned == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / 4000))


@examples(25)
@given(
    h=st.integers(1, 40),
    w=st.integers(1, 40),
    size=st.integers(1, 30),
    seed=st.integers(0, 99),
    scale=st.sampled_from([(0.08, 1.0), (0.5, 0.5), (1.0, 1.0), (1e-4, 1e-3)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (1.0, 1.0), (5.0, 6.0)]),
)
def test_random_resized_crop_is_interpolate_on_the_box(h, w, size, seed, scale, ratio):
    x = batch(5, 3, h, w, seed)
    y = random_resized_crop(size, scale, ratio)(x, rng(seed))
    assert y.shape == (5, 3, size, size)
    assert y.dtype == torch.uint8
    for i, (top, left, height, width) in enumerate(
        zip(*boxes(5, h, w, scale, ratio, rng(seed)), strict=True)
    ):
        box = x[i : i + 1, :, int(top) : int(top + height), int(left) : int(left + width)].double()
        expected = F.interpolate(box, (size, size), mode="bilinear", align_corners=False)[0]
        assert (y[i] - expected).abs().max() <= 0.5 + 0.01  # rounding, and float32 near a half


@examples(50)
@given(
    h=st.integers(1, 70),
    w=st.integers(1, 70),
    seed=st.integers(0, 999),
    scale=st.sampled_from([(0.08, 1.0), (0.9, 1.0), (1e-6, 1e-5)]),
    ratio=st.sampled_from([(3 / 4, 4 / 3), (0.1, 0.2), (5.0, 9.0)]),
)
def test_boxes_lie_inside_the_image(h, w, seed, scale, ratio):
    top, left, height, width = boxes(20, h, w, scale, ratio, rng(seed))
    for start, length, total in ((top, height, h), (left, width, w)):
        assert (start == start.round()).all()
        assert (length >= 1).all()
        assert (start >= 0).all()
        assert (start + length <= total).all()


def test_boxes_have_the_share_and_the_shape_asked_for():
    top, left, height, width = boxes(4000, 1000, 1000, (0.1, 0.5), (0.5, 1.0), rng())
    share, shape = height * width / 1e6, width / height
    assert 0.099 < share.min() < 0.11
    assert 0.49 < share.max() < 0.501
    assert share.mean() == pytest.approx(0.3, abs=0.01)
    assert shape.min() == pytest.approx(0.5, abs=0.01)
    assert shape.max() == pytest.approx(1, abs=0.01)
    assert shape.log().mean() == pytest.approx(math.log(0.5) / 2, abs=0.01)
    for start, length in ((top, height), (left, width)):  # at a uniform place
        assert (start / (1000 - length)).mean() == pytest.approx(0.5, abs=0.02)


def test_boxes_reach_both_edges_equally():
    top, left, *_ = boxes(3000, 4, 4, (0.25, 0.25), (1.0, 1.0), rng())  # 2 x 2 in 4 x 4
    for start in (top, left):
        counts = torch.bincount(start.long()).double()
        assert len(counts) == 3
        assert ((counts - 1000) ** 2 / 1000).sum() < 13.8  # chi-square, 2 degrees of freedom, p = 0.001


def test_boxes_fall_back_to_the_center():
    top, left, height, width = boxes(3, 100, 10, (1.0, 1.0), (1.0, 1.0), rng())
    assert [int(v[0]) for v in (top, left, height, width)] == [45, 0, 10, 10]
    top, left, height, width = boxes(3, 10, 100, (1.0, 1.0), (1.0, 2.0), rng())
    assert [int(v[0]) for v in (top, left, height, width)] == [0, 40, 10, 20]


ALL = pytest.mark.parametrize(
    "augment", [crop(), flip(), random_resized_crop(5)], ids=["crop", "flip", "rrc"]
)


@ALL
def test_depends_on_the_generator_alone(augment):
    x = batch(40)
    before = x.clone()
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first, again, other = augment(x, rng(3)), augment(x, rng(3)), augment(x, rng(4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, before)
    assert torch.equal(torch.random.get_rng_state(), state)


@ALL
def test_images_get_draws_of_their_own(augment):
    y = augment(batch(1).expand(40, -1, -1, -1), rng())
    assert len({image.contiguous().numpy().tobytes() for image in y}) > 1


@ALL
@pytest.mark.parametrize("x", [batch().float(), batch()[0]], ids=["float", "3-d"])
def test_refuses_other_batches(augment, x):
    with pytest.raises(DataError, match=r"the batch to augment is .* expected torch.uint8 \(B, C, H, W\)"):
        augment(x, rng())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crop(padding=-1)", "padding=-1: expected a whole number of pixels, at least 0"),
        ("flip(p=50.0)", "p=50.0: expected a probability"),
        ("flip(p=-0.1)", "probability"),
        ("random_resized_crop(size=0)", "size=0: .*at least 1"),
        ("random_resized_crop(scale=(0.0, 1.0))", r"scale=\(0.0, 1.0\).*0 < low <= high <= 1"),
        ("random_resized_crop(scale=(0.5, 2.0))", "high <= 1"),
        ("random_resized_crop(scale=(0.9, 0.5))", "low <= high"),
        ("random_resized_crop(ratio=(2.0, 1.0))", r"ratio=\(2.0, 1.0\).*0 < low <= high"),
        ("random_resized_crop(ratio=(1.0, inf))", "ratio"),
    ],
)
def test_refuses_arguments(text, message):
    with pytest.raises(SpecError, match=message):
        spec.build(text, "augmentation")


def test_remembers_its_call():
    assert str(spec.spec_of(crop(padding=2))) == "crop(padding=2)"
    assert {"crop", "flip", "random_resized_crop"} <= set(spec.names("augmentation"))
