"""The distance of the classes of a data set: the smallest one between two points of different classes, exactly.

Points are taken in the order of their contrast: the nearest pairs usually have little of it, so t, the smallest distance so
far, is small early. Each point is compared with all earlier ones by a few numbers that bound the distance from below; a pair
whose bound is not below t is excluded. ℓ∞: the pixels in which the most pairs differ by t. ℓ1 and ℓ2: sums over blocks of
pixels, coarse ones first,

    |Σ_block (a - b)| ≤ Σ_block |a - b|,    (Σ_block (a - b))² / size ≤ Σ_block (a - b)².

The remaining pairs are compared pixel by pixel in whole numbers.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm._core.settings import check_choice
from opnorm.data import Dataset
from opnorm.data.dataset import check_dataset
from opnorm.errors import DataError

__all__ = ["ClassSeparation", "separation"]

FIRST = 256  # points compared in full: from their pairs comes the first t
DENSE = 12  # pixels in which every pair is compared for ℓ∞
STRIDE = 64  # pixels of each further comparison of the remaining pairs
SAMPLE = 4096  # random pairs by which the pixels are ordered
GRIDS = (2, 4, 8)  # blocks a side, for ℓ1 and ℓ2
CHUNK = 2**22  # numbers compared at a time
SUM_ERROR = 1e-5  # relative, far above that of a few hundred sums in float32

Progress = Callable[[float, float], None]
Nearer = Callable[[int, float], tuple[np.ndarray, np.ndarray]]
"""(i, t) -> the rows before i of other classes that are nearer than t, and their distances."""


class ClassSeparation(NamedTuple):
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
        """Half the distance: the balls of a smaller radius around points of different classes are disjoint."""
        return self.distance / 2


def separation(
    data: Dataset | tuple[Tensor, Tensor],
    norm: float = math.inf,
    split: str = "train",
    progress: Progress | None = None,
) -> ClassSeparation:
    """The smallest ‖x_i - x_j‖_p over all pairs of points of different classes: exact, with a pair of this distance.

    Args:
        data: a data set, or uint8 images (N, ...) and int64 labels (N,).
        norm: p: 1, 2 or inf.
        split: of a data set: "train", "test", or "all" for both (rows of test after those of train).
        progress: called with the share of pairs that are done and the smallest distance so far, pixels in [0, 1].

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
    check_choice("norm", norm, (1, 2, math.inf))
    order = _contrast_order(images)
    make = _nearer_by_pixels if norm == math.inf else _nearer_by_blocks
    nearer = make(images[order], labels[order], norm)
    best, pair = math.inf, (0, 0)

    def distance() -> float:
        return (math.sqrt(best) if norm == 2 else best) / 255

    for i in range(1, len(order)):
        rows, levels = nearer(i, best)
        if len(levels):
            at = int(levels.argmin())
            best, pair = int(levels[at]), (int(order[rows[at]]), int(order[i]))
        if progress and i % 256 == 0:
            progress((i / len(order)) ** 2, distance())
        if best == 0:
            break
    if progress:
        progress(1.0, distance())
    a, b = sorted(pair)
    return ClassSeparation(norm, distance(), int(best), (a, b), (int(labels[a]), int(labels[b])), len(order))


def _points(data: Dataset | tuple[Tensor, Tensor], split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (N, C, H, W) and labels."""
    check_choice("split", split, ("train", "test", "all"))
    if not isinstance(data, tuple):
        check_dataset(data)
    if isinstance(data, Dataset):
        parts = [data.train, data.test] if split == "all" else [getattr(data, split)]
        images = torch.cat([part.images[:] for part in parts])
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
    images = images.reshape(len(images), *(1,) * (4 - images.ndim), *images.shape[1:])
    return images.cpu().numpy(), labels.cpu().numpy()


def _contrast_order(images: np.ndarray) -> np.ndarray:
    """Rows in the order of the standard deviation of their pixels."""
    flat = images.reshape(len(images), -1)
    step = max(1, CHUNK // flat.shape[1])
    contrast = [flat[i : i + step].std(1, dtype=np.float32) for i in range(0, len(flat), step)]
    return np.argsort(np.concatenate(contrast), kind="stable")


def _nearer_by_pixels(images: np.ndarray, labels: np.ndarray, norm: float) -> Nearer:
    """ℓ∞: pixel by pixel, those in which the most pairs differ first."""
    pixels = images.reshape(len(images), -1)
    dense: np.ndarray | None = None  # (DENSE, N), made as soon as there is a t

    def nearer(i: int, best: float) -> tuple[np.ndarray, np.ndarray]:
        nonlocal pixels, dense
        candidate = labels[:i] != labels[i]
        if i >= FIRST and best < 256:
            if dense is None:
                pixels = pixels[:, _separating_pixels(pixels, int(best))]
                dense = np.ascontiguousarray(pixels[:, :DENSE].T)
            reach = int(best) - 1
            for column, value in zip(dense, pixels[i, :DENSE].tolist(), strict=True):
                low = max(0, value - reach)
                # uint8 wraps around: values below ``low`` become larger than every allowed one
                candidate &= column[:i] - np.uint8(low) <= np.uint8(min(255, value + reach) - low)
        rows = np.flatnonzero(candidate)
        levels = np.zeros(len(rows), np.uint8)
        for start in range(0, pixels.shape[1], STRIDE):
            if not len(rows):
                break
            a, b = pixels[rows, start : start + STRIDE], pixels[i, start : start + STRIDE]
            levels = np.maximum(levels, (np.maximum(a, b) - np.minimum(a, b)).max(1))
            near = levels < best
            rows, levels = rows[near], levels[near]
        return rows, levels

    return nearer


def _separating_pixels(pixels: np.ndarray, best: int) -> np.ndarray:
    """An order of the pixels: greedily, the one in which the most pairs differ by ``best`` that so far do not."""
    a, b = pixels[np.random.default_rng(0).integers(0, len(pixels), (2, SAMPLE))]
    differ = (np.maximum(a, b) - np.minimum(a, b)) >= best
    count = differ.sum(0)
    order: list[int] = []
    rest = np.ones(SAMPLE, bool)
    for _ in range(min(DENSE, pixels.shape[1])):
        gain = differ[rest].sum(0) + count / (
            SAMPLE + 1
        )  # among equals, the one in which more pairs differ at all
        gain[order] = -1
        order.append(int(gain.argmax()))
        rest &= ~differ[:, order[-1]]
    others = np.argsort(-count, kind="stable")
    return np.concatenate([order, others[~np.isin(others, order)]])


def _nearer_by_blocks(images: np.ndarray, labels: np.ndarray, norm: float) -> Nearer:
    """ℓ1 and ℓ2: sums over ever finer blocks, then pixels."""
    pixels, power = images.reshape(len(images), -1), int(norm)
    grids = [block_sums(images, side, power) for side in GRIDS if side < max(images.shape[2:])]
    sums, weights = grids.pop(0) if grids else (pixels[:, :0], np.zeros(0))
    coarse = list(zip(np.ascontiguousarray(sums.T), weights.tolist(), strict=True))

    def powered(difference: np.ndarray) -> np.ndarray:
        """|difference|^p, in place."""
        if power == 1:
            return np.abs(difference, out=difference)
        return np.multiply(difference, difference, out=difference)

    def nearer(i: int, best: float) -> tuple[np.ndarray, np.ndarray]:
        limit = best * (1 + SUM_ERROR)
        candidate = labels[:i] != labels[i]
        if best < math.inf and coarse:
            total = np.zeros(i, coarse[0][0].dtype)
            for sums, weight in coarse:
                total += powered(sums[:i] - sums[i]) * weight
            candidate &= total < limit
        rows = np.flatnonzero(candidate)
        for sums, weights in grids if best < math.inf else ():
            rows = rows[powered(sums[rows] - sums[i]) @ weights < limit]
        own, step = pixels[i].astype(np.int32), max(1, CHUNK // pixels.shape[1])
        levels = np.concatenate([
            np.zeros(0, np.int64),
            *(powered(pixels[rows[k : k + step]] - own).sum(1, dtype=np.int64) for k in range(0, len(rows), step)),
        ])  # fmt: skip
        near = levels < best
        return rows[near], levels[near]

    return nearer


def block_sums(images: np.ndarray, side: int, power: int) -> tuple[np.ndarray, np.ndarray]:
    """(N, blocks), sums over side x side blocks of each channel, exact; and (blocks,), 1 for ℓ1, 1/size for ℓ2."""
    area = images.shape[2] * images.shape[3]
    exact = np.float32 if 255 * area < 2**24 else np.float64
    cuts = [np.unique(np.linspace(0, n, side + 1).astype(int)[:-1]) for n in images.shape[2:]]

    def summed(x: np.ndarray) -> np.ndarray:
        down = np.add.reduceat(x, cuts[0], axis=-2, dtype=exact)
        return np.add.reduceat(down, cuts[1], axis=-1, dtype=exact)

    step = max(1, CHUNK // (images.shape[1] * area))
    sums = np.concatenate([summed(images[k : k + step]) for k in range(0, len(images), step)])
    sizes = summed(np.ones(images.shape[1:], exact)).reshape(-1)
    return sums.reshape(len(images), -1), sizes ** (1 - power)
