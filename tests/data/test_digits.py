import hashlib

import torch

from opnorm import spec
from opnorm.data import digits


def test_shapes_and_split():
    data = digits()
    assert data.train.images.shape == (1297, 1, 8, 8)
    assert data.test.images.shape == (500, 1, 8, 8)
    assert data.train.images.dtype == torch.uint8
    assert data.train.labels.dtype == torch.int64
    assert torch.bincount(data.test.labels).tolist() == [50] * 10
    assert data.classes == tuple("0123456789")
    assert data.name == "digits"


def test_pixels_are_the_17_levels():
    data = digits()
    levels = torch.cat([data.train.images, data.test.images]).unique().tolist()
    assert levels == [round(v * 255 / 16) for v in range(17)]


def test_nothing_ever_changes():
    data = digits()
    digest = hashlib.sha256()
    for tensor in (*data.train, *data.test):
        digest.update(tensor.numpy().tobytes())
    assert digest.hexdigest()[:16] == "36c2567c387109a7"


def test_the_first_digit_is_the_zero_that_everyone_knows():
    data = digits()
    zero = torch.tensor([0, 0, 5, 13, 9, 1, 0, 0]) * 255 / 16  # its first line
    rows = torch.cat([data.train.images, data.test.images])[:, 0, 0]
    hit = (rows == zero.round().to(torch.uint8)).all(1).nonzero()[:, 0]
    assert torch.cat([data.train.labels, data.test.labels])[hit].tolist().count(0) >= 1


def test_no_overlap_between_train_and_test():
    data = digits()
    train = {image.numpy().tobytes() for image in data.train.images}
    assert not any(image.numpy().tobytes() in train for image in data.test.images)


def test_remembers_its_call_and_is_built_from_text():
    assert str(spec.spec_of(digits())) == "digits()"
    assert spec.build("digits", "data set").image_shape == (1, 8, 8)
    assert {"digits", "folder", "hf", "parquet"} <= set(spec.names("data set"))
