"""From encoded images with labels to the splits of a data set: all decoded into memory, or streamed."""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from opnorm._core import files
from opnorm._core.caching import cache_folder
from opnorm._core.image_decoding import Encoded
from opnorm.data.cache import DecodedSplits, cached
from opnorm.data.dataset import Split, hold_out
from opnorm.data.decode import CHUNK, IN_MEMORY, budget, undecodable
from opnorm.data.streaming import EncodedRows, StreamedImages
from opnorm.errors import DataError, RunError

__all__ = ["EncodedPart", "EncodedSet", "Reading"]

NAMED = 10
"""Bad images that the warning names; all are in a file."""


class EncodedPart(NamedTuple):
    """Images of a part, by their rows in a source, and their labels."""

    source: EncodedRows
    rows: np.ndarray
    labels: Tensor

    @classmethod
    def whole(cls, source: EncodedRows, labels: Tensor) -> "EncodedPart":
        """All rows of a source."""
        return cls(source, np.arange(len(labels)), labels)

    def chunks(self) -> Iterator[list[Encoded]]:
        """The images in order, some at a time."""
        images = (encoded for _, encoded in self.source.read(self.rows))
        return iter(lambda: list(islice(images, CHUNK)), [])

    def without(self, bad: set[int]) -> "EncodedPart":
        """The part without some rows."""
        good = np.array([row not in bad for row in self.rows.tolist()], dtype=bool)
        return EncodedPart(self.source, self.rows[good], self.labels[torch.from_numpy(good)])


class EncodedSet(NamedTuple):
    """The parts "train" and, where there is one, "test", and the names of the classes."""

    parts: dict[str, EncodedPart]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Reading:
    """How a reader turns encoded images into a data set.

    Attributes:
        size: to which images are resized; None keeps all.
        stream: leave them on the disk.
        skip_bad: leave out what cannot be decoded.
    """

    size: int | None
    stream: bool
    skip_bad: bool

    def check_rows(self, name: str, rows: int) -> None:
        """DataError, before the labels are read, where the images could never be in memory."""
        if not self.stream:
            budget(name, rows)(self.size or 1, self.size or 1)

    def splits(
        self, name: str, key: Callable[[], dict[str, Any]], encoded: Callable[[], EncodedSet]
    ) -> DecodedSplits:
        """The splits of a data set called ``name``.

        Args:
            name: for messages.
            key: gives what the images depend on, as plain values.
            encoded: gives the images and the labels.
        """
        with _in_memory(name):
            if not self.stream and not self.skip_bad:
                return cached(key(), lambda: self._decoded(encoded(), name))
            found = encoded()
            if self.skip_bad:
                found = _without_bad(found, self.size, name, key())
            if self.stream:
                return _streamed(found, self.size, name)
            return cached(key() | {"skip_bad": True}, lambda: self._decoded(found, name))

    def _decoded(self, found: EncodedSet, name: str) -> DecodedSplits:
        labelled = {part: (own.chunks(), own.labels) for part, own in found.parts.items()}
        return DecodedSplits.decoded(labelled, self.size, name, found.classes)


@contextmanager
def _in_memory(name: str) -> Iterator[None]:
    """A block that reads a set: DataError where the system gives it too little memory, as under a limit of a process."""
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if isinstance(e, RuntimeError) and "allocate memory" not in str(e):
            raise
        raise DataError(
            f"{name} does not fit in the memory that this process may use: {str(e).splitlines()[0] or 'out of memory'}; "
            f"{IN_MEMORY}"
        ) from e


def _streamed(found: EncodedSet, size: int | None, name: str) -> DecodedSplits:
    images = [
        StreamedImages.opened(own.source, own.rows, f"{name}, {part}", size)
        for part, own in found.parts.items()
    ]
    channels = max(own.decoded_shape[0] for own in images)
    images = [replace(own, decoded_shape=(channels, *own.decoded_shape[1:])) for own in images]
    labels = [own.labels for own in found.parts.values()]
    splits = [Split(cast(Tensor, own), numbers) for own, numbers in zip(images, labels, strict=True)]
    train, test = splits if len(splits) > 1 else hold_out(*splits[0])
    return DecodedSplits(train, test, found.classes)


# ---------------------------------------------------------------- bad images


def _without_bad(found: EncodedSet, size: int | None, name: str, key: dict[str, Any]) -> EncodedSet:
    """The set without the images that cannot be decoded, which a warning counts and names.

    Every image is decoded once for it; what was found is kept in the cache, so that it is said again without decoding.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"bad-{digest[:32]}.json"
    bad = _kept(path, set(found.parts))
    if bad is None:
        bad = {
            part: undecodable(own.chunks(), len(own.rows), size, f"{name}, {part}")
            for part, own in found.parts.items()
        }
        _keep(path, bad)
    parts = {part: own.without(set(map(int, bad[part]))) for part, own in found.parts.items()}
    every = [message for own in bad.values() for message in own.values()]
    total = sum(len(own.rows) for own in found.parts.values())
    if len(every) == total:
        raise DataError(f"{name}: none of the {total:,} images can be decoded; the first: {every[0]}")
    if every:
        reasons = [message.partition("; expected ")[0] for message in every[:NAMED]]
        listed = "".join(f"\n  {reason:.300}" for reason in reasons)
        more = f"\n  and {len(every) - NAMED:,} others" if len(every) > NAMED else ""
        where = f"; {path} names all" if more and path.exists() else ""
        warnings.warn(
            f"{name}: {len(every):,} of {total:,} images cannot be decoded and are skipped{where}:{listed}{more}",
            stacklevel=4,
        )
    return EncodedSet(parts, found.classes)


def _kept(path: Path, parts: set[str]) -> dict[str, dict[str, str]] | None:
    if not path.exists():
        return None
    try:
        kept = files.read_json(path, checked=True)
    except RunError:
        return None  # made again
    return kept if kept.keys() == parts else None


def _keep(path: Path, bad: dict[str, dict[str, str]]) -> None:
    try:
        files.make_folder(path.parent)
        files.write_json(path, bad, checked=True)
    except RunError as e:
        warnings.warn(
            f"the names of bad images could not be kept in {path.parent} ({e.__cause__ or e}), so the next start decodes "
            "all images again. Likely cause: a full or read-only disk",
            RuntimeWarning,
            stacklevel=4,
        )
