"""Decoding of one image, and of a batch of them in a process of its own.

Nothing here imports torch, so that such a process starts fast and takes little memory.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from opnorm.errors import DataError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "Encoded", "decode_batch", "decode_image"]

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")
"""The formats that are read. Pillow has more; one of them (EPS) starts another program on the file's contents."""

Encoded: TypeAlias = tuple[str, bytes | Path | None]
"""The origin of an image (for messages), and its bytes or its file."""


def decode_image(
    where: str,
    source: bytes | Path | None,
    size: int | None,
    deep: list[str],
    check: Callable[[int, int], None],
) -> np.ndarray:
    """One image as uint8: (H, W) in gray, (H, W, 3) in color; ``where`` is added to ``deep`` if it had more than 8 bits.

    ``check`` gets its width and height, where they are kept, before it is decoded.
    """
    import PIL.Image

    if source is None:
        raise DataError(
            f"{where}: the image is null; expected its encoded bytes. "
            "Likely cause: a gap in the data (skip_bad=True, on the command line --skip-bad, leaves such images out), or "
            "the file holds paths of images instead of the images"
        )
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        with PIL.Image.open(file, formats=FORMATS) as image:
            if size is None:
                check(*image.size)
            if image.mode.startswith("I") or ";16" in str(image.tile):
                deep.append(where)
            return _pixels(image, where, size)
    except DataError:
        raise
    except PIL.Image.DecompressionBombError as e:
        raise DataError(f"{where}: {e}; expected a photo. Likely cause: a damaged or hostile file") from e
    except Exception as e:
        unknown = isinstance(e, PIL.UnidentifiedImageError)
        why = "no image of a known format" if unknown else f"{e!s:.200}" or type(e).__name__
        length = f"{len(source)} bytes" if isinstance(source, bytes) else "the file"
        raise DataError(
            f"{where}: {length} cannot be decoded ({why}); expected a whole "
            f"{', '.join(FORMATS)} image. Likely cause: a truncated download or a damaged row; "
            "skip_bad=True, on the command line --skip-bad, leaves such images out"
        ) from e


def _pixels(image: "Image", where: str, size: int | None) -> np.ndarray:
    import PIL.Image
    import PIL.ImageOps

    if "exif" in image.info:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode not in ("L", "RGB"):
        image = _to_8_bit(image, where)
    short = min(image.size)
    left, top = (image.width - (size or 0)) // 2, (image.height - (size or 0)) // 2
    if size and size == short:
        image = image.crop((left, top, left + size, top + size))
    elif size:  # the central square directly to its final size: a very long image needs no more memory
        x, y = (image.width - short) / 2, (image.height - short) / 2
        bilinear = PIL.Image.Resampling.BILINEAR
        image = image.resize((size, size), bilinear, box=(x, y, x + short, y + short))
    return np.asarray(image)


def _to_8_bit(image: "Image", where: str) -> "Image":
    """Any other mode as "L" or "RGB"."""
    import PIL.Image

    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode in ("P", "PA"):
        color = image.convert("RGBA").convert("RGB")
        red, green, blue = (np.asarray(c) for c in color.split())
        return color.getchannel(0) if (red == green).all() and (red == blue).all() else color
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise DataError(
                f"{where}: gray levels from {levels.min()} to {levels.max()}; expected 8 or 16 bits a pixel"
            )
        return PIL.Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        raise DataError(f"{where}: float pixels; expected 8 or 16 bits a pixel, as their range is not known")
    return image.convert("RGB")


def decode_batch(
    images: Sequence[Encoded], shape: tuple[int, int, int], size: int | None
) -> tuple[np.ndarray, list[str]]:
    """Images of one shape (C, H, W) as one uint8 array (N, C, H, W), and the origins of those of more than 8 bits a pixel.

    Gray images become RGB where C is 3.

    Args:
        images: their origins and their bytes or files.
        shape: the expected (C, H, W).
        size: as of the readers: the side to which they are resized; None keeps all.

    Raises:
        DataError: an image is null or damaged, has another size, or is in color where C is 1.
    """
    out = np.empty((len(images), *shape), np.uint8)
    deep: list[str] = []
    channels, height, width = shape
    for i, (where, source) in enumerate(images):

        def check(w: int, h: int, where: str = where) -> None:
            if {w, h} != {width, height}:  # before it is decoded; it may be turned
                raise _other_size(where, (w, h), (width, height))

        image = decode_image(where, source, size, deep, check)
        if image.shape[:2] != (height, width):
            raise _other_size(where, image.shape[1::-1], (width, height))
        if image.ndim == 3 and channels == 1:
            raise DataError(
                f"{where}: an image in color; expected a gray one, as the first images of the set are. A streamed set is "
                "gray or in color as a whole: convert the images, or read them without stream=True"
            )
        out[i] = image if image.ndim == 2 else image.transpose(2, 0, 1)
    return out, deep


def _other_size(where: str, size: tuple[int, ...], expected: tuple[int, int]) -> DataError:
    return DataError(
        f"{where}: an image of {size[0]} x {size[1]} pixels, but the first one has {expected[0]} x {expected[1]}; expected "
        "one size. size=64 resizes every image to a short side of 64 pixels and crops the center"
    )
