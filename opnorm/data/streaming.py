"""Images that stay encoded on the disk: decoded by processes as training reaches them, or here where a few are asked for.

Every image has a row, and every order is a list of rows that is made before anything is read. So an order depends on
nothing but the generator that drew it, and a training goes on in the middle of an epoch by leaving out what it has had.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from opnorm._core.cores import available_cores
from opnorm._core.image_decoding import Encoded, decode_batch, decode_image
from opnorm._core.processes import in_order, process_pool
from opnorm.data.decode import budget
from opnorm.errors import DataError

__all__ = ["EncodedRows", "StreamedImages", "decoding_processes", "workers_for"]

CHUNK = 64
"""Images that a process decodes at a time."""

LOOKED_AT = 64
"""Images by which a set is found to be gray or in color."""

BUFFER, BUFFER_BYTES = 16_384, 2**27
"""The most images, and bytes of encoded ones, by which the shuffle moves an image from its place."""

WORKERS = "OPNORM_WORKERS"
"""The variable that states the number of decoding processes; 0 decodes in the process that trains."""


class EncodedRows(Protocol):
    """A reader of encoded images by row.

    Attributes:
        starts: the first row of each block, and the number of all rows: a block, such as a row group of a parquet file, is
            read from its beginning.
        buffer: by how many places the shuffle moves an image; 0 where any image can be read by itself.
    """

    starts: np.ndarray
    buffer: int

    def files_state(self) -> str:
        """A hash of the names, sizes and times of the last change of the files."""

    def read(self, rows: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Each row with its image, in this order; the rows of a block stand together, in ascending order."""


def buffer_for(bytes_per_image: float) -> int:
    """How many encoded images are held to be shuffled."""
    return int(min(BUFFER, max(CHUNK, BUFFER_BYTES / max(bytes_per_image, 1))))


@dataclass(frozen=True, eq=False)
class StreamedImages:
    """Images (N, C, H, W) that are decoded when they are asked for; used like a uint8 tensor along its first axis.

    ``images[a:b]`` and ``images[rows]`` are tensors, ``images.split(n)`` gives one after the other.

    Attributes:
        source: the encoded images.
        rows: those that belong to this part, as rows of the source (N,).
        name: for messages.
        decoded_shape: (C, H, W) of an image after decoding.
        size: to which images are resized; None keeps all.
        window: (top, left, height, width) of what is seen of an image; None for all.
    """

    source: EncodedRows
    rows: np.ndarray
    name: str
    decoded_shape: tuple[int, int, int]
    size: int | None = None
    window: tuple[int, int, int, int] | None = None

    dtype = torch.uint8
    device = torch.device("cpu")

    @classmethod
    def opened(cls, source: EncodedRows, rows: np.ndarray, name: str, size: int | None) -> "StreamedImages":
        """The images of some rows; the first ones tell the shape.

        Raises:
            DataError: there are none, or one of the first cannot be decoded.
        """
        if not len(rows):
            raise DataError(f"{name}: no images; expected at least 1. Likely cause: an empty file or split")
        check = budget(name, 1)
        first = [
            decode_image(*encoded, size, [], check) for _, encoded in source.read(np.sort(rows)[:LOOKED_AT])
        ]
        channels = 3 if any(image.ndim == 3 for image in first) else 1
        return cls(source, rows, name, (channels, *first[0].shape[:2]), size)

    @property
    def shape(self) -> torch.Size:
        """(N, C, H, W), as of a tensor."""
        height, width = self.window[2:] if self.window else self.decoded_shape[1:]
        return torch.Size((len(self.rows), self.decoded_shape[0], height, width))

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.rows)

    def dim(self) -> int:
        """4, as of a tensor."""
        return 4

    def numel(self) -> int:
        """How many values all images have together."""
        return self.shape.numel()

    def __getitem__(self, chosen: slice | Tensor | Sequence[int]) -> UInt8[Tensor, "n C H W"]:
        """Some of the images, decoded by the threads of this process.

        Raises:
            DataError: they take more than half of the free memory, or one of them cannot be decoded.
        """
        picked = chosen if isinstance(chosen, slice) else torch.as_tensor(chosen).cpu().numpy()
        rows, back = np.unique(self.rows[picked], return_inverse=True)
        _, height, width = self.decoded_shape
        budget(self.name, len(rows) * self.decoded_shape[0], "Ask for fewer, as --limit does")(height, width)
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="opnorm-decode") as pool:
            decoded = list(self._decoded(rows, pool, 2 * available_cores()))
        images = (
            torch.cat([self._seen(batch) for batch in decoded]) if decoded else self._seen(torch.empty(0))
        )
        return images if bool((np.diff(back) == 1).all()) else images[torch.from_numpy(back)]

    def split(self, count: int) -> Iterator[UInt8[Tensor, "n C H W"]]:
        """One tensor after the other of ``count`` images, the last of the rest."""
        return (self[start : start + count] for start in range(0, len(self), count))

    def fingerprint(self) -> str:
        """A text that changes with the files, the choice of the images and their size, without decoding them."""
        chosen = hashlib.sha256(self.rows.tobytes()).hexdigest()
        return repr((self.source.files_state(), chosen, self.decoded_shape, self.size, self.window))

    def sample(self, count: int) -> Iterator[UInt8[Tensor, "n C H W"]]:
        """A fixed random choice of at most so many images, some at a time."""
        chosen = self.shuffled(torch.Generator().manual_seed(0))[:count]
        with ThreadPoolExecutor(available_cores(), thread_name_prefix="opnorm-decode") as pool:
            yield from self.batches(chosen.split(CHUNK), pool, available_cores())

    def subset(self, chosen: Tensor) -> "StreamedImages":
        """Some of the images, still encoded: those at these places, or where a mask is true."""
        return replace(self, rows=self.rows[chosen.cpu().numpy()])

    def central(self, size: int) -> "StreamedImages":
        """The central size x size pixels of each image, still encoded."""
        _, _, height, width = self.shape
        top, left = self.window[:2] if self.window else (0, 0)
        return replace(self, window=(top + (height - size) // 2, left + (width - size) // 2, size, size))

    def shuffled(self, generator: torch.Generator) -> Int64[Tensor, " N"]:
        """A random order in which few blocks are read at a time.

        The blocks come in a random order, and an image at place i in that of its block gets the key i + B u, u uniform in
        [0, 1), where B is the source's buffer; the images are sorted by their keys. So at most B encoded images wait.
        """
        block = np.searchsorted(self.source.starts, self.rows, "right") - 1
        _, which = np.unique(block, return_inverse=True)
        rank = torch.randperm(int(which.max()) + 1, generator=generator).numpy()
        by_block = np.lexsort((self.rows, rank[which]))
        moved = torch.rand(len(self), generator=generator, dtype=torch.float64).numpy() * self.source.buffer
        return torch.from_numpy(by_block[np.argsort(np.arange(len(self)) + moved, kind="stable")])

    def batches(
        self, chunks: Sequence[Tensor], pool: Executor | None, workers: int
    ) -> Iterator[UInt8[Tensor, "n C H W"]]:
        """The images at the places that each chunk names, decoded in advance by processes; here without a pool.

        Raises:
            DataError: an image cannot be decoded, or a process has ended.
        """
        if not chunks:
            return
        lengths = [len(chunk) for chunk in chunks]
        ahead = 2 * workers + -(-max(lengths) // CHUNK)
        decoded = self._decoded(self.rows[torch.cat(list(chunks)).numpy()], pool, ahead)
        held, count = [], 0
        for length in lengths:
            while count < length:
                held.append(next(decoded))
                count += len(held[-1])
            joined = torch.cat(held) if len(held) > 1 else held[0]
            held, count = [joined[length:].clone()] if count > length else [], count - length
            yield self._seen(joined[:length])

    def _decoded(self, rows: np.ndarray, pool: Executor | None, ahead: int) -> Iterator[Tensor]:
        """The images of different rows, ``CHUNK`` at a time, without the window."""
        decode = partial(decode_batch, shape=self.decoded_shape, size=self.size)
        encoded = self._encoded(rows)
        pieces = iter(lambda: list(islice(encoded, CHUNK)), [])
        results = map(decode, pieces) if pool is None else in_order(pool, decode, pieces, ahead)
        try:
            for images, deep in results:
                if deep:
                    warnings.warn(
                        f"{self.name}: some images have more than 8 bits a pixel; gray is divided by 257, of color the high "
                        "byte is kept",
                        stacklevel=2,
                    )
                yield torch.from_numpy(images)
        except BrokenExecutor as e:
            raise DataError(
                f"{self.name}: a process that decodes images has ended unexpectedly; expected it to live as long as this. "
                "Likely cause: it was killed, the memory is full, or a script that trains without `if __name__ == "
                f"'__main__':` around its calls, which each new process reads; {WORKERS}=0 needs no processes"
            ) from e

    def _encoded(self, rows: np.ndarray) -> Iterator[Encoded]:
        """The encoded images of different rows, in this order; a block is opened when the first of its rows is due."""
        block = np.searchsorted(self.source.starts, rows, "right") - 1
        _, first, which = np.unique(block, return_index=True, return_inverse=True)
        reader = self.source.read(rows[np.lexsort((rows, first[which]))])
        held: dict[int, Encoded] = {}
        for row in rows.tolist():
            while row not in held:
                found, encoded = next(reader)
                held[found] = encoded
            yield held.pop(row)

    def _seen(self, images: Tensor) -> Tensor:
        if not len(images):
            return torch.empty((0, *self.shape[1:]), dtype=torch.uint8)
        if self.window is None:
            return images
        top, left, height, width = self.window
        return images[:, :, top : top + height, left : left + width]


def workers_for(threads: int) -> int:
    """The number of decoding processes: that of ``$OPNORM_WORKERS``, else one for each thread of torch, at most 8.

    Raises:
        DataError: the variable is no whole number.
    """
    text = os.environ.get(WORKERS, "")
    if not text:
        return min(8, max(1, threads))
    if not text.isdecimal():
        raise DataError(f"{WORKERS}={text!r}: expected a number of processes, such as 2, or 0 for none")
    return int(text)


@contextmanager
def decoding_processes(workers: int) -> Iterator[Executor | None]:
    """A pool of processes that decode; None for no workers."""
    if not workers:
        yield None
        return
    with process_pool(workers) as pool:
        yield pool
