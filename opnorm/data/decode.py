"""Decoding of images (PNG, JPEG, ...) into one uint8 tensor, for the parquet and the folder reader."""

import itertools
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from opnorm._core.cores import available_cores
from opnorm._core.image_decoding import Encoded, decode_image
from opnorm._core.memory import available_memory, gigabytes
from opnorm._core.processes import in_order
from opnorm.errors import DataError

R = TypeVar("R")

CHUNK = 256
"""Images decoded by one thread at a time."""

LABEL_BYTES = 64
"""Of memory for each label, where labels are read, compared and shuffled."""

SUFFIXES = frozenset(
    [".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"]
)


def decode(
    chunks: Iterable[list[Encoded]], total: int, size: int | None, name: str
) -> UInt8[Tensor, "N C H W"]:
    """Decode images on all cores, with a progress bar when stderr is a terminal.

    C is 1 if all images are gray; one color image makes all RGB. Palettes are resolved, transparency is dropped, and a photo
    is turned as its EXIF data demand. Of more than 8 bits a pixel, gray is divided by 257 and color keeps the high byte;
    one warning says so.

    Args:
        chunks: the images in order, best about ``CHUNK`` at a time.
        total: their number.
        size: resize to a short side of this many pixels (bilinear, antialiased) and crop the center; None keeps all.
        name: of the images, for the progress bar and for messages.

    Raises:
        DataError: an image is null, damaged or too large, all together need more than half of the free memory, or they
            differ in size and ``size`` is None.
    """
    import PIL.Image

    from opnorm._core.progress_bar import progress_bar

    PIL.Image.init()  # here: the threads would race
    check = budget(name, total)
    if size is not None:
        check(size, size)
    out = np.empty((0, 1, 1, 1), np.uint8)
    sizes: Counter[tuple[int, ...]] = Counter()
    row = 0
    deep: list[str] = []  # images of more than 8 bits a pixel
    with progress_bar() as bar:
        task = bar.add_task(f"decoding {name}", total=total, note="")
        for images in _in_order(
            lambda chunk: [decode_image(*image, size, deep, check) for image in chunk], chunks
        ):
            sizes.update(image.shape[:2] for image in images)
            if len(sizes) > 1:
                raise _different_sizes(name, sizes)
            if not len(out):
                out = np.empty((total, 1, *images[0].shape[:2]), np.uint8)
            if out.shape[1] == 1 and any(image.ndim == 3 for image in images):
                out = out.repeat(3, axis=1)
            for image in images:
                out[row] = image if image.ndim == 2 else image.transpose(2, 0, 1)
                row += 1
            bar.advance(task, len(images))
    if not row:
        raise DataError(f"{name}: no images; expected at least 1. Likely cause: an empty file or split")
    if deep:
        warnings.warn(
            f"{name}: {len(deep)} images have more than 8 bits a pixel, such as {min(deep)}; gray was divided by 257 (65535 "
            "becomes 255), of color the high byte was kept",
            stacklevel=2,
        )
    return torch.from_numpy(out)


def undecodable(chunks: Iterable[list[Encoded]], total: int, size: int | None, name: str) -> dict[str, str]:
    """The images that cannot be decoded: the place of each in the order, as text for JSON, and what is wrong with it.

    Args:
        chunks: the images in order.
        total: their number.
        size: as of :func:`decode`.
        name: of the images, for the progress bar.
    """
    import PIL.Image

    from opnorm._core.progress_bar import progress_bar

    PIL.Image.init()

    def faults(chunk: list[Encoded]) -> list[str]:
        found = []
        for image in chunk:
            try:
                decode_image(*image, size, [], budget(name, 1))
                found.append("")
            except DataError as e:
                found.append(str(e))
        return found

    bad: dict[str, str] = {}
    row = 0
    with progress_bar() as bar:
        task = bar.add_task(f"checking {name}", total=total, note="")
        for messages in _in_order(faults, chunks):
            bad |= {str(row + i): message for i, message in enumerate(messages) if message}
            row += len(messages)
            bar.advance(task, len(messages))
    return bad


IN_MEMORY = (
    "stream=True in the call of the data decodes them as they are needed; a smaller size=... shrinks them; a file with "
    "fewer rows holds a part of them"
)


def budget(name: str, total: int, remedy: str = IN_MEMORY) -> Callable[[int, int], None]:
    """A check of the width and height of images: so many of them, and their labels, must fit in half of the free memory.

    One byte a pixel: color images take three times as much. It raises DataError, with a remedy.
    """
    free = available_memory()

    def check(width: int, height: int) -> None:
        needed = total * (width * height + LABEL_BYTES)
        if free is not None and needed > free / 2:
            of = f" of {width} x {height} pixels" if width * height > 1 else ""
            raise DataError(
                f"{name}: {total:,} images{of} take at least {gigabytes(needed)}; expected at most {gigabytes(free / 2)}, "
                f"half of the free memory. {remedy}"
            )

    return check


# ---------------------------------------------------------------- many images


def _different_sizes(name: str, sizes: Counter[tuple[int, ...]]) -> DataError:
    listed = ", ".join(f"{w}x{h} ({n} times)" for (h, w), n in sizes.most_common(5))
    more = f" and {len(sizes) - 5} others" if len(sizes) > 5 else ""
    return DataError(
        f"{name}: images of different sizes (width x height) among the first {sizes.total()}: {listed}{more}; expected one "
        "size. size=64 resizes every image to a short side of 64 pixels and crops the center"
    )


def _in_order(
    function: Callable[[list[Encoded]], list[R]], chunks: Iterable[list[Encoded]]
) -> Iterator[list[R]]:
    """``map`` on threads that reads only a few chunks in advance and stops at the first error."""
    ahead = iter(chunks)
    first = next(ahead, None)
    if first is None:
        return
    sizes = [s.stat().st_size if isinstance(s, Path) else len(s or b"") for _, s in first]
    small = sum(sizes) < 4096 * len(first)  # their decoding holds Python's lock most of the time
    workers = 1 if small else available_cores()
    with ThreadPoolExecutor(workers, thread_name_prefix="opnorm-decode") as pool:
        yield from in_order(pool, function, itertools.chain([first], ahead), 2 * workers)
