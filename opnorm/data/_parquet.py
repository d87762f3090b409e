"""Parquet files in the Hugging Face hub's layout: an image column of encoded bytes and a label column."""

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from opnorm._core.data_paths import PARQUET, existing_path
from opnorm._core.data_settings import check_names, check_sides
from opnorm._core.plain_text import file_name
from opnorm.data._parquet_columns import common_columns
from opnorm.data._parquet_files import find_parts
from opnorm.data._parquet_rows import ParquetRows, class_numbers, raw_labels
from opnorm.data.cache import fingerprint
from opnorm.data.dataset import Dataset
from opnorm.data.encoded_parts import EncodedPart, EncodedSet, Reading
from opnorm.spec import factory

__all__ = ["parquet", "read_parquet"]


@factory("data set")
def parquet(
    path: str | Path,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    *,
    center_crop: int | None = None,
    train: str | None = None,
    test: str | None = None,
    stream: bool = False,
    skip_bad: bool = False,
) -> Dataset:
    """Read images from parquet files in the layout of the Hugging Face hub.

    All subfolders of a folder are searched. A file belongs to the training or the test part by the word in its
    name, else in a folder's name: ``train...``, ``test...`` or, without a test part, ``val...``; other files, such
    as an ``extra`` part, are ignored. Without a test part a fixed stratified fifth is held out. Decoded images are
    cached in ``$OPNORM_CACHE`` (else ``~/.cache/opnorm``) and decoded again when a file changes.

    Args:
        path: a folder, or one file.
        image: the image column; found from the schema if there is only one.
        label: the label column, of integers or strings; found from the schema if there is only one.
        size: resize to a short side of this many pixels and crop the center; needed if the images differ in size.
        center_crop: evaluations see only the central square of this many pixels; see :meth:`Dataset.center_crop`.
        train: the name of the training part, of its files or their folder, such as "train_small"; None as above.
        test: the name of the test part, such as "validation"; None as above, but the validation part, with a warning,
            where every test label is -1 (hidden).
        stream: leave the images on the disk and decode them as they are needed, for sets that do not fit in memory.
        skip_bad: leave out images that cannot be decoded, and say which they are; else the first one is an error.

    Returns:
        A data set of uint8 (N, C, H, W) images; C is 1 if all are gray, else 3. The classes have the names of the
        schema's metadata, else the sorted labels. Its name is the folder's, or the file's without its suffix.

    Raises:
        DataError: no such path, no or damaged parquet files, one that is missing of several ("-00001-of-00004"), no or
            several columns that fit, an image or a label that is null, damaged or out of range (with file and row),
            different sizes and no ``size``.
    """
    check_sides(size=size, center_crop=center_crop)
    check_names(image=image, label=label, train=train, test=test)
    root = existing_path(path, PARQUET)
    name = file_name(root.resolve().name if root.is_dir() else root.stem)
    reading = Reading(size, stream, skip_bad)
    return read_parquet(root, name, (image, label), reading, (train, test)).center_crop(center_crop)


def read_parquet(
    root: Path,
    name: str,
    columns_wanted: tuple[str | None, str | None],
    reading: Reading,
    parts_wanted: tuple[str | None, str | None],
) -> Dataset:
    """As :func:`parquet`, of an existing path: a data set called ``name``."""
    image, label = columns_wanted
    parts = find_parts(root, *parts_wanted)
    if spare := parts.pop("spare", None):
        _, label_column, _ = common_columns(parts["test"], image, label)
        if all((labels == -1).all() for labels in raw_labels(parts["test"], label_column)):
            warnings.warn(
                f"{name}: every label of the test part is -1 (hidden), so the validation part is taken",
                stacklevel=3,
            )
            parts["test"] = spare
    files = {part: fingerprint(own, root) for part, own in parts.items()}
    key = {"reader": "parquet", "image": image, "label": label, "size": reading.size, "files": files}

    def encoded() -> EncodedSet:
        columns = common_columns([file for own in parts.values() for file in own], image, label)
        sources = {part: ParquetRows(own, columns.image) for part, own in parts.items()}
        reading.check_rows(name, sum(int(source.starts[-1]) for source in sources.values()))
        labels = {part: raw_labels(own, columns.label) for part, own in parts.items()}
        classes = columns.classes or tuple(map(str, np.unique(np.concatenate(labels["train"]))))
        numbers = {  # before the images, which take longer
            part: torch.cat([class_numbers(*of_file, classes, columns) for of_file in zip(labels[part], own, strict=True)])
            for part, own in parts.items()
        }  # fmt: skip
        found = {part: EncodedPart.whole(source, numbers[part]) for part, source in sources.items()}
        return EncodedSet(found, _distinct(classes, name))

    return Dataset(name, *reading.splits(name, lambda: key, encoded))


def _distinct(classes: tuple[str, ...], name: str) -> tuple[str, ...]:
    """The names of the classes; those of several classes with their numbers behind, of which a warning tells."""
    twice = {one for one, count in Counter(classes).items() if count > 1}
    if not twice:
        return classes
    warnings.warn(
        f"{name}: {len(twice)} class names occur twice, such as {sorted(twice)[0]!r}; their numbers are added",
        stacklevel=2,
    )
    return tuple(f"{one} ({k})" if one in twice else one for k, one in enumerate(classes))
