"""The 1,797 handwritten digits that come with the package: real data without a download."""

from importlib.resources import files

import numpy as np
import torch

from opnorm.data.dataset import Dataset, Split
from opnorm.spec import factory

__all__ = ["digits"]


@factory("data set")
def digits() -> Dataset:
    """Handwritten digits, 8x8 gray: 1,297 to train and 500 (50 of every class) to test.

    The test part of "Optical Recognition of Handwritten Digits" (E. Alpaydin and C. Kaynak, UCI, CC BY 4.0)
    as scikit-learn ships it; see ``digits.LICENSE.md`` beside this file. The original 17 gray levels v become
    round(255 v / 16). The split is a list in the file, so it is the same everywhere.

    Returns:
        A data set with train images uint8 (1297, 1, 8, 8), test images uint8 (500, 1, 8, 8) and classes "0"
        to "9".

    >>> digits()
    Dataset('digits': 1297 train, 500 test, 1x8x8, 10 classes)
    """
    with (
        files("opnorm.data").joinpath("digits.npz").open("rb") as f,
        np.load(f, allow_pickle=False) as stored,
    ):
        levels, labels, test_rows = stored["levels"], stored["labels"], stored["test_rows"]
    images = torch.from_numpy(np.rint(levels * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    numbers = torch.from_numpy(labels.astype(np.int64))
    is_test = torch.zeros(len(numbers), dtype=torch.bool)
    is_test[torch.from_numpy(test_rows.astype(np.int64))] = True
    train, test = (Split(images[rows], numbers[rows]) for rows in (~is_test, is_test))
    return Dataset("digits", train, test, tuple("0123456789"))
