"""Folders of image files, one folder for each class."""

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opnorm._core.data_paths import FOLDER, existing_path
from opnorm._core.data_settings import check_names, check_sides
from opnorm._core.image_decoding import Encoded
from opnorm._core.plain_text import file_name
from opnorm.data.cache import files_state, fingerprint
from opnorm.data.dataset import Dataset
from opnorm.data.decode import SUFFIXES
from opnorm.data.encoded_parts import EncodedPart, EncodedSet, Reading
from opnorm.errors import DataError, did_you_mean
from opnorm.spec import factory

__all__ = ["folder"]

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")

ANNOTATIONS = "val_annotations.txt"
"""A list of files in images/ with their classes, one a line: the validation part of Tiny-ImageNet as published."""

HIDDEN = (".", "__")
"""Beginnings of the names of files and folders that are left out at any depth, such as .ipynb_checkpoints, __MACOSX."""

Files = list[tuple[str, Path]]  # class, file


@factory("data set")
def folder(
    path: str | Path,
    size: int | None = None,
    *,
    center_crop: int | None = None,
    train: str | None = None,
    test: str | None = None,
    stream: bool = False,
    skip_bad: bool = False,
) -> Dataset:
    """Read image files from class folders: ``path/train/cat/1.png`` and ``path/test/cat/2.png``.

    Without a ``train`` folder the class folders are those of ``path`` itself. Without a test part (``test``, else
    ``val``, ``valid`` or ``validation``) a fixed stratified fifth is held out. The classes are the sorted names of the
    folders; images may lie in their subfolders, and other files and hidden ones are ignored. Decoded images are cached in
    ``$OPNORM_CACHE`` (else ``~/.cache/opnorm``) and decoded again when a file changes.

    Args:
        path: the folder.
        size: resize to a short side of this many pixels and crop the center; needed if the images differ in size.
        center_crop: evaluations see only the central square of this many pixels; see :meth:`Dataset.center_crop`.
        train: the name of the folder with the training part; None for the usual names.
        test: the name of the folder with the test part, such as "val"; None for the usual names.
        stream: leave the images on the disk and decode them as they are needed, for sets that do not fit in memory.
        skip_bad: leave out images that cannot be decoded, and say which they are; else the first one is an error.

    Returns:
        A data set of uint8 (N, C, H, W) images; C is 1 if all are gray, else 3. Its name is the folder's.

    Raises:
        DataError: no such folder, no class folders, a class without images or in the test part only, an image that
            cannot be decoded, images of different sizes and no ``size``.
    """
    check_sides(size=size, center_crop=center_crop)
    check_names(train=train, test=test)
    root = existing_path(path, FOLDER)
    if not root.is_dir():
        raise DataError(f"{path!r} is a file; expected {FOLDER}")
    parts = _find_parts(root, train, test)
    reading = Reading(size, stream, skip_bad)

    def key() -> dict[str, Any]:
        prints = {part: fingerprint([file for _, file in files], root) for part, files in parts.items()}
        return {"reader": "folder", "size": size, "files": prints}

    def encoded() -> EncodedSet:
        classes = {name: k for k, name in enumerate(sorted({name for name, _ in parts["train"]}))}
        names = tuple(file_name(name) for name in classes)
        found = {
            part: EncodedPart.whole(
                FileRows(root, [str(file.relative_to(root)) for _, file in files]),
                torch.tensor([classes[name] for name, _ in files]),
            )
            for part, files in parts.items()
        }
        return EncodedSet(found, names)

    splits = reading.splits(file_name(root.name), key, encoded)
    return Dataset(file_name(root.resolve().name), *splits).center_crop(center_crop)


class FileRows:
    """Image files by row, each a block of its own; see :class:`opnorm.data.streaming.EncodedRows`."""

    buffer = 0

    def __init__(self, root: Path, names: list[str]) -> None:
        self.root, self.names = root, names
        self.starts = np.arange(len(names) + 1)

    def files_state(self) -> str:
        """See :meth:`opnorm.data.streaming.EncodedRows.files_state`."""
        return files_state(self.root / name for name in self.names)

    def read(self, rows: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Each row with its image; see :meth:`opnorm.data.streaming.EncodedRows.read`."""
        for row in rows.tolist():
            yield row, (self.names[row], self.root / self.names[row])


def _find_parts(root: Path, train: str | None, test: str | None) -> dict[str, Files]:
    """The images of "train" and, where there is one, "test", by class."""
    parts = {child.name.lower(): child for child in _folders(root) if _folders(child)}
    for name in filter(None, (train, test)):
        if name.lower() not in parts:
            hint = did_you_mean(name, parts, "expected the name of a folder with class folders")
            raise DataError(f"{str(root)!r} has no part {name!r}{hint}")
    training = next(
        (parts[name.lower()] for name in ([train] if train else TRAIN) if name.lower() in parts), None
    )
    tests = [parts[name.lower()] for name in ([test] if test else TEST) if name.lower() in parts]
    if training is None and tests:
        raise DataError(f"{str(root)!r} has {tests[0].name}/ but no train/; expected {FOLDER}")
    found = _images(training or root, may_be_empty=False)
    if training is None or not tests:
        return {"train": found}
    classes = {name for name, _ in found}
    held_out = _images(tests[0], may_be_empty=True)
    if len(tests) > 1 and classes.isdisjoint(name for name, _ in held_out):
        warnings.warn(
            f"{root.name}: {tests[0].name}/ has no labels (no folder of a class), so {tests[1].name}/ is taken",
            stacklevel=3,
        )
        held_out = _images(tests[1], may_be_empty=True)
    for name, file in held_out:
        if name not in classes:
            hint = did_you_mean(name, classes, "Likely cause: test images not in class folders")
            raise DataError(
                f"{file}: the class {name!r} is not in {training.name}/; expected one of its {len(classes)}{hint}"
            )
    return {"train": found, "test": held_out}


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith(HIDDEN))


def _images(path: Path, may_be_empty: bool) -> Files:
    found: Files = []
    if (listed := path / ANNOTATIONS).is_file():
        rows = [line.split("\t") for line in listed.read_text(encoding="utf-8").splitlines()]
        return sorted((row[1], path / "images" / row[0]) for row in rows if len(row) > 1)
    for class_folder in _folders(path):
        files = []
        for where, folders, names in os.walk(class_folder):
            folders[:] = [name for name in folders if not name.startswith(HIDDEN)]
            names = [name for name in names if not name.startswith(HIDDEN)]
            files += [Path(where, name) for name in names if Path(name).suffix.lower() in SUFFIXES]
        if not files and not may_be_empty:
            raise DataError(
                f"{str(class_folder)!r} holds no images ({', '.join(sorted(SUFFIXES))}); expected "
                f"{FOLDER}. Likely cause: a path one folder too high, or a folder that is no class"
            )
        found += [(class_folder.name, file) for file in sorted(files)]
    if not found:
        raise DataError(f"{str(path)!r} holds no class folders with images; expected {FOLDER}")
    return found
