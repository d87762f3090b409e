"""How far the classes of a data set are apart: the smallest distance between two points of different classes, exactly.

All pairs count, but few are looked at in full. Points are taken in the order of their contrast, so that the smooth ones,
among which the nearest pairs usually are, come first, and t, the least distance so far, is small early. Each point is
compared with all earlier ones on a few numbers that bound the distance from below; where the bound reaches t, the pair is
out. ℓ∞: the pixels that part the most pairs. ℓ1 and ℓ2: sums over blocks of pixels, coarse ones first, as

    |Σ_block (a - b)| ≤ Σ_block |a - b|,    (Σ_block (a - b))² / size ≤ Σ_block (a - b)².

What is left is compared pixel by pixel in whole numbers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm.data import Dataset
from opnorm.errors import DataError, SpecError

__all__ = ["Separation", "separation"]

FIRST = 256  # points compared in full: from their pairs comes the first t
DENSE = 12  # pixels on which every pair is compared for ℓ∞
STRIDE = 64  # pixels a further look at the pairs that are left
SAMPLE = 4096  # random pairs that tell which pixels part the most
GRIDS = (2, 4, 8)  # blocks a side, for ℓ1 and ℓ2
CHUNK = 2**22  # numbers at a time where pairs are compared
ROUNDING = 1e-5  # relative, far above that of a few hundred sums in float32

Watch = Callable[[float, float], None]


class Separation(NamedTuple):
    """The nearest two points of different classes.

    Attributes:
        norm: 1, 2 or inf.
        distance: ‖x_i - x_j‖, pixels in [0, 1]; Liang's Assumption 2 holds for ε < distance / 2.
        levels: the same in whole numbers, pixels 0 to 255: ‖·‖_1, ‖·‖_2² or ‖·‖_∞; exact.
        pair: i < j, the rows of one such pair.
        labels: of these rows.
        points: how many there are.
    """

    norm: float
    distance: float
    levels: int
    pair: tuple[int, int]
    labels: tuple[int, int]
    points: int

    @property
    def eps(self) -> float:
        """Half the distance: below it the balls around points of different classes do not meet."""
        return self.distance / 2


def separation(
    data: Dataset | tuple[Tensor, Tensor],
    norm: float = math.inf,
    split: str = "train",
    watch: Watch | None = None,
) -> Separation:
    """The least ‖x_i - x_j‖_p over all pairs of points of different classes: exact, with a pair that attains it.

    Args:
        data: a data set, or uint8 images (N, ...) and int64 labels (N,).
        norm: p: 1, 2 or inf.
        split: of a data set: "train", "test", or "all" for the two together (rows of test after those of train).
        watch: told now and then the share of pairs that are done and the least distance so far, pixels in [0, 1].

    Returns:
        The distance, as a float and in whole numbers, and the pair.

    Raises:
        SpecError: another norm or split.
        DataError: images that are not uint8, other labels, or fewer than 2 classes among them.

    Source: Liang & Huang 2021, Assumption 2; Yang et al. 2020 measured it for image data sets.

    Example:
        >>> from opnorm.data import digits
        >>> separation(digits(), norm=float("inf")).levels
        111
    """
    images, labels = _points(data, split)
    if isinstance(norm, bool) or norm not in (1, 2, math.inf):
        raise SpecError(f"norm={norm!r}: expected 1, 2 or inf")
    order = _by_contrast(images)
    pixels, classes = images[order], labels[order]
    search = (_Pixels if norm == math.inf else _Blocks)(pixels, classes, norm)
    best, pair = math.inf, (0, 0)
    for i in range(1, len(order)):
        rows, levels = search.nearer(i, best)
        if len(levels):
            at = int(levels.argmin())
            best, pair = int(levels[at]), (int(order[rows[at]]), int(order[i]))
        if watch and i % 256 == 0:
            watch((i / len(order)) ** 2, _distance(best, norm))
        if best == 0:
            break
    if watch:
        watch(1.0, _distance(best, norm))
    a, b = sorted(pair)
    found = int(best)
    return Separation(
        norm, _distance(found, norm), found, (a, b), (int(labels[a]), int(labels[b])), len(order)
    )


def _distance(levels: float, norm: float) -> float:
    return (math.sqrt(levels) if norm == 2 else levels) / 255


def _points(data: Dataset | tuple[Tensor, Tensor], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and labels."""
    if split not in ("train", "test", "all"):
        raise SpecError(f"split={split!r}: expected 'train', 'test' or 'all'")
    if isinstance(data, Dataset):
        parts = [data.train, data.test] if split == "all" else [getattr(data, split)]
        images = torch.cat([part.images for part in parts])
        labels = torch.cat([part.labels for part in parts])
    else:
        images, labels = data
    if images.dtype != torch.uint8 or images.ndim < 2:
        raise DataError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; expected torch.uint8 (N, ...), 0 to 255: "
            "the distance is exact because it is a whole number"
        )
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; expected int64, one for each of {len(images)} images"
        )
    if len(labels.unique()) < 2:
        raise DataError(f"all {len(labels)} points are of one class; expected at least 2")
    if images.ndim > 4:
        images = images.flatten(3)
    return images.reshape(
        len(images), *(1,) * (4 - images.ndim), *images.shape[1:]
    ).cpu().numpy(), labels.cpu().numpy()


def _by_contrast(images: np.ndarray) -> np.ndarray:
    """Rows in the order of the standard deviation of their pixels."""
    flat = images.reshape(len(images), -1)
    step = max(1, CHUNK // flat.shape[1])
    spread = [flat[i : i + step].std(1, dtype=np.float32) for i in range(0, len(flat), step)]
    return np.argsort(np.concatenate(spread), kind="stable")


class _Pixels:
    """ℓ∞: pixel by pixel, those that part the most pairs first."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, norm: float) -> None:
        self.pixels, self.labels = images.reshape(len(images), -1), labels
        self.dense: np.ndarray | None = None  # (DENSE, N), made when there is a t to choose by

    def nearer(self, i: int, best: float) -> tuple[np.ndarray, np.ndarray]:
        """The rows before i of other classes that are nearer than ``best``, and how near."""
        alive = self.labels[:i] != self.labels[i]
        if i >= FIRST and best < 256:
            if self.dense is None:
                self.pixels = self.pixels[:, _telling(self.pixels, self.labels, int(best))]
                self.dense = np.ascontiguousarray(self.pixels[:, :DENSE].T)
            reach = int(best) - 1
            for column, value in zip(self.dense, self.pixels[i, :DENSE].tolist(), strict=True):
                low = max(0, value - reach)
                # uint8 wraps around, so that what lies below ``low`` comes out above every allowed value
                alive &= column[:i] - np.uint8(low) <= np.uint8(min(255, value + reach) - low)
        rows = np.flatnonzero(alive)
        levels = np.zeros(len(rows), np.uint8)
        for start in range(0, self.pixels.shape[1], STRIDE):
            if not len(rows):
                break
            a, b = self.pixels[rows, start : start + STRIDE], self.pixels[i, start : start + STRIDE]
            levels = np.maximum(levels, (np.maximum(a, b) - np.minimum(a, b)).max(1))
            near = levels < best
            rows, levels = rows[near], levels[near]
        return rows, levels


def _telling(pixels: np.ndarray, labels: np.ndarray, best: int) -> np.ndarray:
    """The order in which to look at pixels: greedily, the one that parts the most of the pairs still together."""
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, len(pixels), (2, SAMPLE))
    a, b = pixels[a], pixels[b]
    parted = (np.maximum(a, b) - np.minimum(a, b)) >= best
    count = parted.sum(0)
    order: list[int] = []
    together = np.ones(SAMPLE, bool)
    for _ in range(min(DENSE, pixels.shape[1])):
        gain = parted[together].sum(0) + count / (SAMPLE + 1)  # then by how many it parts at all
        gain[order] = -1
        order.append(int(gain.argmax()))
        together &= ~parted[:, order[-1]]
    rest = np.argsort(-count, kind="stable")
    return np.concatenate([order, rest[~np.isin(rest, order)]])


class _Blocks:
    """ℓ1 and ℓ2: sums over ever finer blocks, then pixels."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, norm: float) -> None:
        self.pixels, self.labels, self.power = images.reshape(len(images), -1), labels, int(norm)
        self.grids = [_blocks(images, side, self.power) for side in GRIDS if side < max(images.shape[2:])]
        sums, weights = self.grids.pop(0) if self.grids else (self.pixels[:, :0], np.zeros(0))
        self.coarse = list(zip(np.ascontiguousarray(sums.T), weights.tolist(), strict=True))

    def nearer(self, i: int, best: float) -> tuple[np.ndarray, np.ndarray]:
        """The rows before i of other classes that are nearer than ``best``, and how near."""
        limit = best * (1 + ROUNDING)
        alive = self.labels[:i] != self.labels[i]
        if best < math.inf and self.coarse:
            total = np.zeros(i, self.coarse[0][0].dtype)
            for sums, weight in self.coarse:
                total += self._raised(sums[:i] - sums[i]) * weight
            alive &= total < limit
        rows = np.flatnonzero(alive)
        for sums, weights in self.grids if best < math.inf else ():
            rows = rows[self._raised(sums[rows] - sums[i]) @ weights < limit]
        own, step = self.pixels[i].astype(np.int32), max(1, CHUNK // self.pixels.shape[1])
        levels = [
            self._raised(self.pixels[rows[k : k + step]] - own).sum(1, dtype=np.int64)
            for k in range(0, len(rows), step)
        ]
        found = np.concatenate(levels) if levels else np.zeros(0, np.int64)
        near = found < best
        return rows[near], found[near]

    def _raised(self, difference: np.ndarray) -> np.ndarray:
        """|difference|^p, in place."""
        if self.power == 1:
            return np.abs(difference, out=difference)
        return np.multiply(difference, difference, out=difference)


def _blocks(images: np.ndarray, side: int, power: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, blocks), sums over side x side blocks of each channel, exact; and (blocks,), 1 for ℓ1, 1/size for ℓ2."""
    plane = images.shape[2] * images.shape[3]
    exact = np.float32 if 255 * plane < 2**24 else np.float64
    cuts = [np.unique(np.linspace(0, n, side + 1).astype(int)[:-1]) for n in images.shape[2:]]

    def added(x: np.ndarray) -> np.ndarray:
        down = np.add.reduceat(x, cuts[0], axis=-2, dtype=exact)
        return np.add.reduceat(down, cuts[1], axis=-1, dtype=exact)

    step = max(1, CHUNK // (images.shape[1] * plane))
    sums = np.concatenate([added(images[k : k + step]) for k in range(0, len(images), step)])
    sizes = added(np.ones(images.shape[1:], exact)).reshape(-1)
    return sums.reshape(len(images), -1), sizes ** (1 - power)
