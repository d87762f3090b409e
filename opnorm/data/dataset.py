"""The result of every reader: a training and a test split of uint8 images, in memory and checked once."""

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from opnorm._core.argument_checks import named
from opnorm._core.random import permutation
from opnorm._core.settings import check_count, check_seed
from opnorm.data.streaming import StreamedImages
from opnorm.errors import DataError

__all__ = ["Dataset", "Split", "as_pixels", "check_dataset"]


SAMPLE = 2048
"""Images of a streamed set by which its mean and standard deviation are found."""


class Split(NamedTuple):
    """Images and their labels, row by row: ``images, labels = data.train``.

    Attributes:
        images: uint8 (N, C, H, W), pixels 0 to 255; or vectors (N, F), sequences (N, C, T), volumes (N, C, D, H, W), of
            which networks, attacks and analyses get the same number of axes in [0, 1]. Of a streamed set a
            :class:`~opnorm.data.streaming.StreamedImages`: ``images[a:b]`` and ``images.split(n)`` are decoded then.
        labels: int64 (N,), each in [0, number of classes).
    """

    images: UInt8[Tensor, "N *shape"]
    labels: Int64[Tensor, " N"]


def as_pixels(images: UInt8[Tensor, "N *shape"]) -> Tensor:
    """Uint8 images as float32 pixels in [0, 1], of the same shape."""
    return images.float().div_(255)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with the names of the classes; everything is checked when it is made.

    Attributes:
        name: for tables.
        train: the training split, as evaluations see it.
        test: the test split, images of the same shape.
        classes: the name of every class, in the order of the labels.
        uncropped: the training split of a cropped set before cropping, for the training loop; see :meth:`center_crop`.

    Raises:
        DataError: a wrong dtype, NaN or infinite pixels, a wrong or different shape, labels that are missing
            or out of range, an empty split, fewer than 2 classes, or two of one name.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    uncropped: Split | None = None

    def __post_init__(self) -> None:
        """Check everything, so that nothing later has to."""
        if not isinstance(self.classes, tuple | list) or not all(
            isinstance(name, str) for name in self.classes
        ):
            raise DataError(
                f"{self.name}: classes={self.classes!r:.60}; expected the names of the classes, such as ('cat', 'dog')"
            )
        object.__setattr__(self, "classes", tuple(self.classes))
        if twice := [name for name, count in Counter(self.classes).items() if count > 1]:
            raise DataError(
                f"{self.name}: {len(twice)} class names occur twice, such as {twice[0]!r}; expected different ones. "
                "Likely cause: metadata of another set, or short names of longer ones"
            )
        if len(self.classes) < 2:
            raise DataError(
                f"{self.name}: {len(self.classes)} class(es), {self.classes!r}; expected at least 2. Likely "
                "cause: the wrong label column, or images one folder too high or too low"
            )
        for part, split in (("train", self.train), ("test", self.test)):
            if not isinstance(split, tuple) or len(split) != 2:
                raise DataError(f"{self.name}: {part} is {named(split)}; expected Split(images, labels)")
            split = Split(*split)
            object.__setattr__(self, part, split)
            _check_images(f"{self.name}, {part} images", split.images)
            _check_labels(f"{self.name}, {part} labels", split, self.classes)
        train, test = tuple(self.train.images.shape[1:]), tuple(self.test.images.shape[1:])
        if train != test:
            raise DataError(
                f"{self.name}: training images are {_by(train)} but test images are {_by(test)} (channels x "
                "height x width); expected equal shapes. Likely cause: the splits come from different "
                "sources, or one is gray and the other in color; a reader's size=... makes heights and "
                "widths equal"
            )

    @property
    def for_training(self) -> Split:
        """The training split as augmentations get it: before cropping."""
        return self.uncropped or self.train

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W) of every image, as evaluations see it; (F,) of vectors, (C, T) of sequences, (C, D, H, W) of volumes."""
        return tuple(self.train.images.shape[1:])

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean of each channel over all training pixels, scaled to [0, 1]; exact but for one rounding.

        Of a streamed set it is, as the standard deviation, that of a fixed random choice of 2,048 images.
        """
        return self._moments[0]

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation of each channel over the training pixels, scaled to [0, 1]; divides by N."""
        return self._moments[1]

    @functools.cached_property
    def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        images: Any = self.for_training.images
        n, channels = 0, images.shape[1]
        counts = np.zeros((channels, 256), np.int64)  # whole numbers, so that no order of summing matters
        for chunk in images.sample(SAMPLE) if isinstance(images, StreamedImages) else images.split(256):
            n += chunk.numel() // channels
            for c in range(channels):
                counts[c] += np.bincount(chunk[:, c].reshape(-1).cpu().numpy(), minlength=256)
        level = np.arange(256)
        total, squares = (counts @ level).tolist(), (counts @ level**2).tolist()
        mean = tuple(s / (255 * n) for s in total)
        std = tuple(math.sqrt((n * q - s * s) / (255 * n) ** 2) for s, q in zip(total, squares, strict=True))
        return mean, std

    def limit(self, n: int, seed: int = 0) -> "Dataset":
        """A fixed random subset of at most ``n`` training and ``n`` test points, in their old order.

        The same ``n`` and ``seed`` give the same points on every machine; a smaller ``n`` gives a subset of them.

        Raises:
            DataError: ``n`` is below 1.
        """
        check_count("limit", n, unit="points", error=DataError)
        check_seed(seed, DataError)

        def some(split: Split, stream: int) -> Split:
            if len(split.labels) <= n:
                return split
            return subset(split, _kept(len(split.labels), n, 2 * seed + stream).to(split.labels.device))

        train, test = some(self.train, 0), some(self.test, 1)
        return Dataset(self.name, train, test, self.classes, self.uncropped and some(self.uncropped, 0))

    def test_index(self, n: int | None, seed: int = 0) -> Tensor:
        """Which test points ``limit(n, seed)`` keeps, in their order; all of them when None."""
        points = len(self.test.labels)
        return torch.arange(points) if n is None or points <= n else _kept(points, n, 2 * seed + 1)

    def center_crop(self, size: int | None) -> "Dataset":
        """The same set, of which evaluations see the central size x size pixels of each image; None leaves it as it is.

        Training draws from the whole images, for an augmentation such as ``random_resized_crop(size)``. The test images,
        ``train`` and ``image_shape`` are cropped, without a copy; mean and std remain those of the whole images.

        Raises:
            DataError: images smaller than ``size``, or a size that is no whole number of at least 1.

        Source: Wen et al. 2020, Appendix D.2: Tiny-ImageNet with a single central crop of 56 x 56.
        """
        if size is None:
            return self
        check_count("center_crop", size, unit="pixels", error=DataError)
        if len(self.image_shape) != 3:
            raise DataError(
                f"center_crop={size}: the points of {self.name} have shape {self.image_shape}; expected images (C, H, W)"
            )
        if size > min(self.image_shape[1:]):
            raise DataError(
                f"center_crop={size}: the images of {self.name} are {_by(self.image_shape)}; expected fewer pixels"
            )
        train, test = _central(self.train, size), _central(self.test, size)
        return Dataset(self.name, train, test, self.classes, uncropped=self.for_training)

    def describe(self) -> dict[str, Any]:
        """The name, the counts, the image shape and the number of classes, ready for JSON."""
        return {
            "name": self.name,
            "train": len(self.train.labels),
            "test": len(self.test.labels),
            "image_shape": list(self.image_shape),
            "classes": self.num_classes,
        } | ({} if self.uncropped is None else {"uncropped_shape": list(self.uncropped.images.shape[1:])})

    def __repr__(self) -> str:
        """One line, without the tensors."""
        inside = f"{len(self.train.labels)} train, {len(self.test.labels)} test, {_by(self.image_shape)}"
        if self.uncropped is not None:
            inside += f" (of {_by(tuple(self.uncropped.images.shape[1:]))})"
        return f"Dataset({self.name!r}: {inside}, {self.num_classes} classes)"


def check_dataset(data: object) -> None:
    """DataError for what is no :class:`Dataset`."""
    if not isinstance(data, Dataset):
        raise DataError(
            f"data is {named(data)}; expected an opnorm.data.Dataset, as digits(), parquet(path) and folder(path) return, "
            "or Dataset(name, Split(images, labels), Split(images, labels), classes)"
        )


def stratified(labels: np.ndarray, count: Callable[[int], int], seed: int = 0) -> np.ndarray:
    """The rows of a fixed stratified test part, sorted: ``count(size of the class)`` rows of every class."""
    shuffled = permutation(len(labels), seed)
    classes = (shuffled[labels[shuffled] == k] for k in np.unique(labels))
    rows = [own[: count(len(own))] for own in classes]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def hold_out(images: Tensor, labels: Tensor) -> tuple[Split, Split]:
    """Split 80 to 20 by class, always in the same way; a class of 2 or more images has some in either part."""
    rows = stratified(labels.numpy(), lambda n: max(round(n / 5), min(1, n - 1)))
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    is_test[torch.from_numpy(rows)] = True
    whole = Split(images, labels)
    return subset(whole, ~is_test), subset(whole, is_test)


def subset(split: Split, chosen: Tensor) -> Split:
    """Some of the points: those at these places, or where a mask is true. Those of a streamed set remain encoded."""
    images: Any = split.images
    kept: Any = images.subset(chosen) if isinstance(images, StreamedImages) else images[chosen]
    return Split(kept, split.labels[chosen])


def _kept(points: int, n: int, stream: int) -> Tensor:
    """Which n of so many points are kept, in their order."""
    return torch.from_numpy(np.sort(permutation(points, stream)[:n]))


def _central(split: Split, size: int) -> Split:
    """The central size x size pixels of each image, as views."""
    images: Any = split.images
    if isinstance(images, StreamedImages):
        return Split(cast(Tensor, images.central(size)), split.labels)
    top, left = ((n - size) // 2 for n in images.shape[2:])
    return split._replace(images=images[:, :, top : top + size, left : left + size])


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(s) for s in shape)


def _check_images(what: str, images: object) -> None:
    if isinstance(images, StreamedImages) and len(images):
        return  # each is checked when it is decoded
    if not isinstance(images, Tensor):
        raise DataError(
            f"{what} are a {type(images).__name__}; expected a torch.Tensor; see torch.from_numpy"
        )
    if images.dtype != torch.uint8:
        raise DataError(
            f"{what} are {images.dtype}{_not_finite(images)}; expected torch.uint8, 0 to 255. Likely cause: images "
            "already scaled to [0, 1]; (images * 255).round().to(torch.uint8) converts them"
        )
    if images.dim() < 2:
        raise DataError(
            f"{what} have shape {tuple(images.shape)}; expected a row for each point: images (N, C, H, W), vectors (N, F), "
            "sequences (N, C, T) or volumes (N, C, D, H, W)"
        )
    if images.shape[0] == 0:
        raise DataError(f"{what}: none; expected at least 1. Likely cause: a filter that keeps no row")
    if images.numel() == 0:
        raise DataError(f"{what} have shape {tuple(images.shape)}; expected no dimension of size 0")
    if _channels_are_last(images.shape):
        warnings.warn(
            f"{what} have shape {tuple(images.shape)}, taken as (N, C, H, W): {images.shape[1]} channels of "
            f"{images.shape[2]} x {images.shape[3]} pixels. Is the axis of the channels last? images.permute(0, 3, 1, 2) "
            "makes it the second",
            stacklevel=4,
        )


def _channels_are_last(shape: Sequence[int]) -> bool:
    """Whether a shape (N, a, b, c) is that of color images or square gray ones as (N, H, W, C)."""
    if len(shape) != 4 or min(shape[1:3]) <= 4:
        return False
    return shape[3] in (3, 4) or (shape[3] == 1 and shape[1] == shape[2])


def _not_finite(images: Tensor) -> str:
    """The part of the message on NaN and infinite pixels; empty where there are none."""
    bad = (~torch.isfinite(images)).nonzero().tolist()  # integers are finite
    if not bad:
        return ""
    first = tuple(bad[0])
    return f" with {len(bad)} NaN or infinite values, the first ({images[first].item()}) at index {first}"


def _check_labels(what: str, split: Split, classes: tuple[str, ...]) -> None:
    labels = split.labels
    if not isinstance(labels, Tensor):
        raise DataError(f"{what} are a {type(labels).__name__}; expected a torch.Tensor; see torch.tensor")
    if labels.dtype != torch.int64:
        raise DataError(
            f"{what} are {labels.dtype}; expected torch.int64, one class number a row. "
            "Likely cause: one-hot or float labels, or numpy's int32; labels.long() converts whole numbers"
        )
    if labels.dim() != 1 or len(labels) != len(split.images):
        raise DataError(
            f"{what} have shape {tuple(labels.shape)} for {len(split.images)} images; expected "
            f"({len(split.images)},). Likely cause: one-hot labels, or rows were dropped from one of the two"
        )
    wrong = (labels < 0) | (labels >= len(classes))
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0])
        raise DataError(
            f"{what}: row {row} is {int(labels[row])}; expected 0 to {len(classes) - 1}, as there are "
            f"{len(classes)} classes ({int(wrong.sum())} such rows). "
            "Likely cause: labels that count from 1, -1 for a hidden label, or class names are missing"
        )
