"""A disk cache of decoded images, so that a data set is decoded once: one safetensors file per data set."""

import hashlib
import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from opnorm._core.caching import cache_folder
from opnorm._core.files import atomic_write, make_folder, read_tensors, remove_partial_files
from opnorm._core.image_decoding import Encoded
from opnorm.data.dataset import Split, hold_out
from opnorm.data.decode import decode
from opnorm.errors import DataError, RunError

__all__ = ["DecodedSplits", "cached", "fingerprint"]

VERSION = 1
"""Of the readers: raise it when the same files give other tensors."""


class DecodedSplits(NamedTuple):
    """The result of a reader."""

    train: Split
    test: Split
    classes: tuple[str, ...]

    @classmethod
    def decoded(
        cls,
        parts: Mapping[str, tuple[Iterable[list[Encoded]], Tensor]],
        size: int | None,
        name: str,
        classes: tuple[str, ...],
    ) -> "DecodedSplits":
        """From the encoded images and the labels of "train" and, where there is one, "test"; else a fixed fifth is held out.

        Gray images become RGB where those of the other part are RGB.
        """
        labels = [numbers for _, numbers in parts.values()]
        images = [
            decode(chunks, len(numbers), size, f"{name}, {part}") for part, (chunks, numbers) in parts.items()
        ]
        if len(images) == 1:
            return cls(*hold_out(images[0], labels[0]), classes)
        if images[0].shape[1] != images[1].shape[1]:
            images = [x.expand(-1, 3, -1, -1).contiguous() for x in images]
        train, test = map(Split, images, labels)
        return cls(train, test, classes)


def cached(key: dict[str, Any], read: Callable[[], DecodedSplits]) -> DecodedSplits:
    """The result of ``read()`` for an equal ``key``, from disk if it is there, whole and readable.

    A cache that cannot be written costs one warning; a damaged file is written again. Two processes may do this at
    once. The tensors are private to this process: changing them changes no file.
    """
    digest = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"data-{digest[:32]}.safetensors"
    splits = _load(path)
    if splits is None:
        splits = read()
        _save(splits, path)
    return splits


def fingerprint(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    """Of each file its place below ``root``, real path, size and modification time: a changed file changes them."""
    rows: list[list[str | int]] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as e:
            raise DataError(
                f"{file} cannot be read ({e}); expected a file. Likely cause: a broken link"
            ) from e
        if not file.is_file():
            raise DataError(
                f"{file} is no file but a device, a pipe or a socket; expected an image or a parquet file"
            )
        place = str(file.relative_to(root)) if file != root else file.name
        rows.append([place, str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    return rows


def files_state(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of the last change of files."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _load(path: Path) -> DecodedSplits | None:
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_tensors(path)
        stored = json.loads(metadata["opnorm"])
        if stored["checksum"] != _checksum(tensors):
            return None
        train, test = (
            Split(tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test")
        )
        return DecodedSplits(train, test, tuple(stored["classes"]))
    except (RunError, KeyError, TypeError, ValueError):
        return None


def _save(splits: DecodedSplits, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{part}_{field}": tensor.contiguous()
        for part, split in (("train", splits.train), ("test", splits.test))
        for field, tensor in split._asdict().items()
    }
    metadata = json.dumps({"classes": list(splits.classes), "checksum": _checksum(tensors)})
    try:
        make_folder(path.parent)
        remove_partial_files(path.parent)
        with atomic_write(path) as part:
            save_file(tensors, part, metadata={"opnorm": metadata})
    except (RunError, SafetensorError) as e:
        warnings.warn(
            f"the decoded images could not be cached in {path.parent} ({e.__cause__ or e}), so the next start decodes "
            "them again. Likely cause: a full or read-only disk; the variable OPNORM_CACHE names another folder",
            RuntimeWarning,
            stacklevel=2,
        )


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].numpy().data, checksum)
    return checksum
