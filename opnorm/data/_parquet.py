"""Parquet files in the Hugging Face hub's layout: an image column of encoded bytes and a label column."""

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm._core.plain_text import file_name
from opnorm.data._parquet_files import EXPECTED, find_parts
from opnorm.data.cache import DecodedSplits, cached, fingerprint
from opnorm.data.dataset import Dataset
from opnorm.data.decode import CHUNK, Encoded, budget, check_names, check_size, existing_path
from opnorm.errors import DataError, did_you_mean
from opnorm.spec import factory

__all__ = ["parquet"]

TWO_SETS = "Likely cause: files of several data sets in one folder"


@factory("data set")
def parquet(
    path: str,
    image: str | None = None,
    label: str | None = None,
    size: int | None = None,
    *,
    center_crop: int | None = None,
    train: str | None = None,
    test: str | None = None,
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

    Returns:
        A data set of uint8 (N, C, H, W) images; C is 1 if all are gray, else 3. The classes have the names of the
        schema's metadata, else the sorted labels. Its name is the folder's, or the file's without its suffix.

    Raises:
        DataError: no such path, no or damaged parquet files, no or several columns that fit, an image or a label that
            is null, damaged or out of range (with file and row), different sizes and no ``size``.
    """
    check_size(size)
    check_names(image=image, label=label, train=train, test=test)
    root = existing_path(path, EXPECTED)
    name = file_name(root.resolve().name if root.is_dir() else root.stem)
    return read_parquet(root, name, (image, label), size, (train, test)).center_crop(center_crop)


def read_parquet(
    root: Path,
    name: str,
    columns_wanted: tuple[str | None, str | None],
    size: int | None,
    parts_wanted: tuple[str | None, str | None],
) -> Dataset:
    """As :func:`parquet`, of an existing path: a data set called ``name``."""
    image, label = columns_wanted
    parts = find_parts(root, *parts_wanted)
    if spare := parts.pop("spare", None):
        _, label_column, _ = _common_columns(parts["test"], image, label)
        if all((labels == -1).all() for labels in _labels(parts["test"], label_column)):
            warnings.warn(
                f"{name}: every label of the test part is -1 (hidden), so the validation part is taken",
                stacklevel=3,
            )
            parts["test"] = spare
    files = {part: fingerprint(own, root) for part, own in parts.items()}
    key = {"reader": "parquet", "image": image, "label": label, "size": size, "files": files}

    def read() -> DecodedSplits:
        every = [file for own in parts.values() for file in own]
        columns = _common_columns(every, image, label)
        rows = sum(_open(file).metadata.num_rows for file in every)
        budget(name, rows)(size or 1, size or 1)
        labels = {part: _labels(own, columns.label) for part, own in parts.items()}
        classes = columns.classes or tuple(map(str, np.unique(np.concatenate(labels["train"]))))
        numbers = {  # before the images, which take longer
            part: torch.cat([_class_numbers(*of_file, classes, columns) for of_file in zip(labels[part], own, strict=True)])
            for part, own in parts.items()
        }  # fmt: skip
        encoded = {part: (_images(own, columns.image), numbers[part]) for part, own in parts.items()}
        return DecodedSplits.decoded(encoded, size, name, _distinct(classes, name))

    return Dataset(name, *cached(key, read))


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


# ---------------------------------------------------------------- files


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """DataError with the file's name for what pyarrow cannot read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"{file} ({file.stat().st_size} bytes) cannot be read as parquet ({reason:.200}); expected a "
            "whole parquet file. Likely cause: a truncated download, another format, or a Git LFS pointer "
            "(run git lfs pull)"
        ) from e


def _open(file: Path) -> Any:
    import pyarrow.parquet

    with _readable(file):
        return pyarrow.parquet.ParquetFile(file)


# ---------------------------------------------------------------- columns


class Columns(NamedTuple):
    """The columns to read, and the names of the classes where the schema has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def _common_columns(files: list[Path], image: str | None, label: str | None) -> Columns:
    """Those of the first file, which all must have, with the same classes."""
    columns = _columns(_open(files[0]).schema_arrow, str(files[0]), image, label)
    for file in files[1:]:
        own = _columns(_open(file).schema_arrow, str(file), columns.image, columns.label).classes
        if columns.classes and own and own != columns.classes:
            raise DataError(
                f"{file} names the classes of {columns.label!r} {list(own)!r:.120}, but {files[0]} names them "
                f"{list(columns.classes)!r:.120}; expected the same. {TWO_SETS}"
            )
    return columns


def _columns(schema: Any, where: str, image: str | None, label: str | None) -> Columns:
    import pyarrow.types as t

    features = _features(schema)

    def candidates(feature: str, *fits: Callable[[Any], bool]) -> list[str]:
        """The columns that the metadata name, else those of the first kind of type that occurs."""
        declared = [name for name in schema.names if features.get(name, {}).get("_type") == feature]
        by_type = ([f.name for f in schema if fit(_value_type(f.type))] for fit in fits)
        return declared or next((names for names in by_type if names), [])

    images = candidates("Image", _is_image)
    labels = candidates(
        "ClassLabel", t.is_integer, _is_string, lambda kind: t.is_floating(kind) or t.is_boolean(kind)
    )
    image = _choose("image", image, images, schema, where)
    if not _is_image(schema.field(image).type):
        fitting = [field.name for field in schema if _is_image(field.type)]
        raise DataError(
            f"{where}: the image column {image!r} is {schema.field(image).type}; expected encoded images "
            "(PNG, JPEG, ...) as binary, or as a struct with a binary field 'bytes'"
            + (f"; image={fitting[0]!r} would fit" if fitting else "")
        )
    label = _choose("label", label, [name for name in labels if name != image], schema, where)
    feature = features.get(label, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return Columns(image, label, tuple(map(str, names)) if isinstance(names, list) and names else None)


def _value_type(kind: Any) -> Any:
    import pyarrow.types

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def _is_string(kind: Any) -> bool:
    import pyarrow.types as t

    return bool(t.is_string(kind) or t.is_large_string(kind))


def _is_image(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(f.name == "bytes" and _is_image(f.type) and not t.is_struct(f.type) for f in kind)
    return bool(t.is_binary(kind) or t.is_large_binary(kind))


def _choose(kind: str, wanted: str | None, found: list[str], schema: Any, where: str) -> str:
    if wanted is not None:
        _check_single(wanted, schema, where)
        if wanted not in schema.names:
            hint = did_you_mean(
                wanted, schema.names, f"it has {', '.join(schema.names)}", lambda name: f"{kind}={name!r}"
            )
            raise DataError(f"{where} has no column {wanted!r} for the {kind}{hint}")
        return wanted
    if found:
        _check_single(found[0], schema, where)
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where}: {len(found)} columns could be the {kind}: {', '.join(map(repr, found))}; expected one. "
            f'Name it: {kind}="{found[0]}"'
        )
    columns = ", ".join(f"{f.name!r} ({f.type})" for f in schema) or "none"
    form = "encoded bytes" if kind == "image" else "integers or strings"
    raise DataError(
        f"{where}: no column could be the {kind}; expected one of {form}, the columns are {columns}. "
        f"Likely cause: not an image classification set, or another layout; {kind}=... names the column"
    )


def _check_single(name: str, schema: Any, where: str) -> None:
    """DataError for a column that stands in the file more than once, so that its name does not choose one."""
    if schema.names.count(name) > 1:
        raise DataError(
            f"{where} has several columns called {name!r}; expected one. Rename or drop the others: "
            "table.rename_columns(...) and pyarrow.parquet.write_table(...)"
        )


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """The description of the columns by the Hugging Face ``datasets`` library; {} if absent or damaged."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return {}


# ---------------------------------------------------------------- rows


def _labels(files: list[Path], column: str) -> list[np.ndarray]:
    """The raw labels of each file: all int64, or all strings."""
    parts: list[np.ndarray] = []
    for file in files:
        with _readable(file):
            parts.append(_label_values(_open(file).read(columns=[column]).column(column), file))
        if parts[-1].dtype != parts[0].dtype:
            kinds = ["strings" if p.dtype == object else "numbers" for p in (parts[-1], parts[0])]
            raise DataError(
                f"{file}: the labels are {kinds[0]}, but {kinds[1]} in {files[0]}; expected the same. {TWO_SETS}"
            )
    if not any(map(len, parts)):
        raise DataError(
            f"{', '.join(map(str, files[:3]))}: 0 rows; expected at least 1. Likely cause: an empty shard"
        )
    return parts


def _label_values(column: Any, file: Path) -> np.ndarray:
    """One file's labels as int64 or as an object array of strings."""
    import pyarrow.types as t

    def refused(row: int, value: object, cause: str) -> DataError:
        return DataError(
            f"{file}, row {row}: the label is {value}; expected a class. Likely cause: {cause}, or the wrong column"
        )

    kind = _value_type(column.type)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise refused(row, f"null (so are {column.null_count} rows)", "an image without a label")
    if _is_string(kind):
        return np.array(column.to_pylist(), dtype=object)
    if not (t.is_integer(kind) or t.is_floating(kind) or t.is_boolean(kind)):
        raise DataError(
            f"{file}: the labels are {kind}; expected integers or strings. Likely cause: the wrong column; "
            "label=... names another"
        )
    values = column.to_numpy()
    wrong = ~(np.abs(values.astype(np.float64)) < 2**53)  # NaN is not below it
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise refused(row, values[row].item(), "an image without a label (NaN), a measurement or an id")
    return values.astype(np.int64)


def _class_numbers(labels: np.ndarray, file: Path, classes: tuple[str, ...], columns: Columns) -> Tensor:
    """One file's labels as class numbers, each checked."""
    numbers, known = labels, f"0 to {len(classes) - 1}"
    if labels.dtype == object:
        number = {name: k for k, name in enumerate(classes)}
        if len(number) < len(classes):
            raise DataError(
                f"{file}: the labels are names, and two classes of the metadata have the same; expected others"
            )
        numbers = np.array([number.get(value, -1) for value in labels], dtype=np.int64)
        known = ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(wrong):
        source = "the schema's metadata names" if columns.classes else "the training part has"
        raise DataError(
            f"{file}, row {wrong[0]}: the label in {columns.label!r} is {labels[wrong[0]]!s:.60} ({len(wrong)} such "
            f"rows); expected one of the {len(classes)} classes that {source}: {known}. Likely cause: -1 for a hidden "
            "label, labels that count from 1 or leave out numbers, a damaged row, or the wrong column"
        )
    return torch.from_numpy(numbers)


def _images(files: list[Path], column: str) -> Iterator[list[Encoded]]:
    for file in files:
        row = 0
        with _readable(file):
            for batch in _open(file).iter_batches(CHUNK, columns=[column]):
                array = batch.column(0)
                if array.type.num_fields:  # a struct: its field "bytes", null also where the struct is null
                    array = array.flatten()[array.type.get_field_index("bytes")]
                yield [(f"{file}, row {row + i}", data) for i, data in enumerate(array.to_pylist())]
                row += len(array)
