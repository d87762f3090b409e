"""Parquet files in the Hugging Face hub's layout: an image column of encoded bytes and a label column."""

import difflib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from opnorm.data.cache import Loaded, cached, fingerprint
from opnorm.data.dataset import Dataset, Split, hold_out
from opnorm.data.decode import CHUNK, Encoded, check_size, decode, existing, same_channels
from opnorm.errors import DataError
from opnorm.spec import factory

__all__ = ["parquet"]

EXPECTED = "a .parquet file, or a folder with train-*.parquet and test-*.parquet (or valid-*, val-*)"
KEYWORD = re.compile(r"(?:^|[^a-z])(train|test|val)")  # also training, testing, valid, validation


@factory("data set")
def parquet(
    path: str, image: str | None = None, label: str | None = None, size: int | None = None
) -> Dataset:
    """Read images from parquet files as the Hugging Face hub keeps them.

    A folder is searched with all its subfolders. A file belongs to the training or the test part by the word
    in its name, else in a folder's name: ``train...``, ``test...`` or, if there is no test, ``val...`` (other
    files, such as an ``extra`` part, are then passed over). A single file, or files without a test part, have
    a fixed stratified fifth held out. Decoded images are kept in ``$OPNORM_CACHE`` (else ``~/.cache/opnorm``)
    and made again when a file changes.

    Args:
        path: a folder, or one file.
        image: the image column; found from the schema if there is only one.
        label: the label column, of integers or strings; found from the schema if there is only one.
        size: resize to a short side of so many pixels and crop the centre; needed if the images differ in
            size.

    Returns:
        A data set of uint8 (N, C, H, W) images; C is 1 if all are grey, else 3. The classes are named by the
        schema's metadata, else by the sorted labels. Its name is the folder's, or the file's without its
        ending.

    Raises:
        DataError: no such path, no or damaged parquet files, no or several columns that fit, an image or a
            label that is null, damaged or out of range (with file and row), different sizes and no ``size``.
    """
    check_size(size)
    return read(existing(path, EXPECTED), image, label, size)


def read(
    root: Path, image: str | None, label: str | None, size: int | None, name: str | None = None
) -> Dataset:
    """As :func:`parquet`, under another name."""
    train, test = _find(root)
    files = fingerprint(train + test, root)
    arguments = {"image": image, "label": label, "size": size}
    key = {"reader": "parquet", **arguments, "files": files}
    real = root.resolve()
    name = name or (real.name if real.is_dir() else root.stem)
    return Dataset(name, *cached(key, lambda: _read(name, train, test, image, label, size)))


# ---------------------------------------------------------------- files


def _find(root: Path) -> tuple[list[Path], list[Path]]:
    """The files of the training and of the test part; without a test part the second list is empty."""
    if root.is_file():
        return [root], []
    files = sorted(
        p
        for p in root.rglob("*.parquet")
        if p.is_file() and not any(_hidden(n) for n in p.relative_to(root).parts)
    )
    if not files:
        inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir())
        listed = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") or "nothing"
        raise DataError(f"{str(root)!r} holds no .parquet files but {listed}; expected {EXPECTED}")
    parts: dict[str, list[Path]] = {}
    for file in files:
        parts.setdefault(_part(file.relative_to(root)), []).append(file)
    if set(parts) == {""}:
        train, test = parts[""], []
    elif "train" in parts:
        train, test = parts["train"], parts.get("test") or parts.get("val") or []
    else:
        known = ", ".join(str(file.relative_to(root)) for part in parts for file in parts[part][:3])
        raise DataError(f"{str(root)!r} has no training part but {known}; expected {EXPECTED}")
    variants = sorted({_variant(file.relative_to(root)) for file in train + test})
    if len(variants) > 1:
        raise DataError(
            f"{str(root)!r} holds several data sets, in the folders {', '.join(variants)}; expected one. "
            f"Read one of them: parquet({str(root / variants[-1])!r}), or hf(..., config={variants[-1]!r})"
        )
    return train, test


def _hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _part(file: Path) -> str:
    """Which part a file belongs to: "train", "test", "val", or "" when neither it nor a folder says so."""
    for name in (file.stem, *reversed(file.parent.parts)):
        if found := KEYWORD.search(name.lower()):
            return found[1]
    return ""


def _variant(file: Path) -> str:
    """The folder of a variant (the hub's "config"): the parents down to the one that names a part."""
    parents = list(file.parent.parts)
    named = [i for i, name in enumerate(parents) if KEYWORD.search(name.lower())]
    return "/".join(parents[: named[0]] if named else parents) or "."


# ---------------------------------------------------------------- columns


class Columns(NamedTuple):
    """The columns to read, and the names of the classes where the schema has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def _columns(schema: Any, where: str, image: str | None, label: str | None) -> Columns:
    import pyarrow.types as t

    features = _features(schema)
    by_type: dict[str, list[str]] = {"image": [], "integer": [], "string": [], "other": []}
    for field in schema:
        kind = field.type.value_type if t.is_dictionary(field.type) else field.type
        if _is_image(field.type):
            by_type["image"].append(field.name)
        elif t.is_integer(kind):
            by_type["integer"].append(field.name)
        elif t.is_string(kind) or t.is_large_string(kind):
            by_type["string"].append(field.name)
        elif t.is_floating(kind) or t.is_boolean(kind):
            by_type["other"].append(field.name)

    def said(kind: str) -> list[str]:
        return [
            name
            for name, feature in features.items()
            if feature.get("_type") == kind and name in schema.names
        ]

    labels = said("ClassLabel") or by_type["integer"] or by_type["string"] or by_type["other"]
    image = _choose("image", image, said("Image") or by_type["image"], schema, where)
    if not _is_image(schema.field(image).type):
        raise DataError(
            f"{where}: the image column {image!r} is {schema.field(image).type}; expected encoded images "
            "(PNG, JPEG, ...) as binary, or as a struct with a binary field "
            f"'bytes'{_candidates('image', by_type['image'])}"
        )
    label = _choose("label", label, [name for name in labels if name != image], schema, where)
    feature = features.get(label, {})
    names = feature.get("names") if feature.get("_type") == "ClassLabel" else None
    return Columns(image, label, tuple(str(n) for n in names) if isinstance(names, list) and names else None)


def _is_image(kind: Any) -> bool:
    import pyarrow.types as t

    if t.is_struct(kind):
        return any(f.name == "bytes" and _is_image(f.type) and not t.is_struct(f.type) for f in kind)
    return bool(t.is_binary(kind) or t.is_large_binary(kind))


def _choose(kind: str, wanted: str | None, found: list[str], schema: Any, where: str) -> str:
    if wanted is not None:
        if wanted not in schema.names:
            close = difflib.get_close_matches(wanted, schema.names, n=1)
            hint = f"did you mean {kind}={close[0]!r}?" if close else f"it has {', '.join(schema.names)}"
            raise DataError(f"{where} has no column {wanted!r}, given as {kind}=; {hint}")
        return wanted
    if len(found) == 1:
        return found[0]
    if found:
        raise DataError(
            f"{where}: {len(found)} columns could be the {kind}: {', '.join(found)}; expected one. "
            f'Say which: {kind}="{found[0]}"'
        )
    columns = ", ".join(f"{f.name} ({f.type})" for f in schema) or "none"
    form = "encoded bytes" if kind == "image" else "integers or strings"
    raise DataError(
        f"{where}: no column could be the {kind}; expected one of {form}, the columns are {columns}. "
        f"Likely cause: not an image classification set, or another layout; {kind}=... names the column"
    )


def _candidates(kind: str, names: list[str]) -> str:
    return f"; {kind}={names[0]!r} would fit" if names else ""


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What the Hugging Face ``datasets`` library wrote about the columns; {} if absent or damaged."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    if not isinstance(features, dict):
        return {}
    return {name: feature for name, feature in features.items() if isinstance(feature, dict)}


# ---------------------------------------------------------------- rows


class Labels(NamedTuple):
    """A part's raw labels, int64 or strings, which all files agree on; and where each of them stands."""

    values: np.ndarray
    files: list[Path]
    counts: list[int]

    def where(self, index: int) -> str:
        """The file and the row in it."""
        ends = np.cumsum(self.counts)
        file = int(np.searchsorted(ends, index, side="right"))
        return f"{self.files[file]}, row {index - (int(ends[file]) - self.counts[file])}"


def _read(
    name: str, train: list[Path], test: list[Path], image: str | None, label: str | None, size: int | None
) -> Loaded:
    columns = _columns(_open(train[0]).schema_arrow, str(train[0]), image, label)
    for file in train[1:] + test:
        _check_same(file, columns, train[0])
    first = _labels(train, columns.label)
    classes = columns.classes or _classes(first)
    numbers = [_numbers(first, classes, columns)]
    if test:  # every label is checked before the images are decoded, which takes longer
        numbers.append(_numbers(_labels(test, columns.label), classes, columns))
    images = decode(_images(train, columns.image), len(numbers[0]), size, f"{name}, train")
    if not test:
        return Loaded(*hold_out(images, numbers[0]), classes)
    test_images = decode(_images(test, columns.image), len(numbers[1]), size, f"{name}, test")
    images, test_images = same_channels(images, test_images)
    return Loaded(Split(images, numbers[0]), Split(test_images, numbers[1]), classes)


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Say which file is damaged."""
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


def _check_same(file: Path, columns: Columns, first: Path) -> None:
    schema = _open(file).schema_arrow
    for column in (columns.image, columns.label):
        if column not in schema.names:
            raise DataError(
                f"{file} has no column {column!r}, but {first} has; it has "
                f"{', '.join(schema.names) or 'none'}. Likely cause: files of two data sets in one folder"
            )
    if not _is_image(schema.field(columns.image).type):
        raise DataError(
            f"{file}: the column {columns.image!r} is {schema.field(columns.image).type}; expected encoded "
            f"images as in {first}. Likely cause: files of two data sets in one folder"
        )
    feature = _features(schema).get(columns.label, {})
    if (
        columns.classes
        and isinstance(feature.get("names"), list)
        and tuple(feature["names"]) != columns.classes
    ):
        raise DataError(
            f"{file} names the classes of {columns.label!r} {feature['names']!r:.120}, but {first} names "
            f"them {list(columns.classes)!r:.120}; expected the same. Likely cause: files of two data sets "
            "in one folder"
        )


def _labels(files: list[Path], column: str) -> Labels:
    parts: list[np.ndarray] = []
    for file in files:
        with _readable(file):
            part = _label_values(_open(file).read(columns=[column]).column(column).combine_chunks(), file)
        if parts and part.dtype != parts[0].dtype:
            kinds = ["strings" if p.dtype == object else "numbers" for p in (part, parts[0])]
            raise DataError(
                f"{file}: the labels are {kinds[0]}, but {kinds[1]} in {files[0]}; expected the same. "
                "Likely cause: files of two data sets in one folder"
            )
        parts.append(part)
    labels = Labels(np.concatenate(parts), files, [len(p) for p in parts])
    if not len(labels.values):
        raise DataError(
            f"{', '.join(str(f) for f in files[:3])}: 0 rows; expected at least 1. Likely cause: an empty "
            "shard"
        )
    return labels


def _label_values(array: Any, file: Path) -> np.ndarray:
    """One file's labels as int64 or as an object array of strings."""
    import pyarrow as pa

    def refuse(row: int, value: object, cause: str) -> DataError:
        return DataError(
            f"{file}, row {row}: the label is {value}; expected a class. Likely cause: {cause}, or the wrong "
            "column"
        )

    if isinstance(array, pa.ChunkedArray):  # what combine_chunks gives for no rows at all, in some versions
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if array.null_count:
        row = int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise refuse(row, f"null (so are {array.null_count} rows)", "an image without a label")
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return np.array([*array.to_pylist(), None], dtype=object)[:-1]
    if pa.types.is_boolean(kind):
        return np.asarray(array.to_pylist(), dtype=np.int64)
    if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise DataError(
            f"{file}: the labels are {kind}; expected integers or strings. Likely cause: the wrong column; "
            "label=... names another"
        )
    values = array.to_numpy(zero_copy_only=False)
    wrong = ~(np.abs(values.astype(np.float64)) < 2**53)  # NaN is not below it
    if values.dtype.kind == "f":
        wrong |= values != np.floor(values)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise refuse(row, values[row].item(), "an image without a label (NaN), a measurement or an id")
    return values.astype(np.int64)


def _classes(labels: Labels) -> tuple[str, ...]:
    """The names of the classes where the schema has none: the sorted labels."""
    distinct, first = np.unique(labels.values, return_index=True)
    if labels.values.dtype != object:
        wrong = np.flatnonzero((distinct < 0) | (distinct >= len(distinct)))
        if len(wrong):
            row = int(first[wrong[0]])
            raise DataError(
                f"{labels.where(row)}: the label is {labels.values[row]}, but there are {len(distinct)} "
                f"different labels and no class names; expected 0 to {len(distinct) - 1} without gaps. "
                "Likely cause: labels that count from 1, -1 for a hidden label, or a column that is no "
                "label"
            )
    return tuple(str(value) for value in distinct)


def _numbers(labels: Labels, classes: tuple[str, ...], columns: Columns) -> Tensor:
    """The labels as class numbers, each checked."""
    if labels.values.dtype == object:
        number = {name: k for k, name in enumerate(classes)}
        numbers = np.array([number.get(value, -1) for value in labels.values], dtype=np.int64)
    else:
        numbers = labels.values
    wrong = np.flatnonzero((numbers < 0) | (numbers >= len(classes)))
    if len(wrong):
        row = int(wrong[0])
        source = "the schema's metadata names" if columns.classes else "the training part has"
        raise DataError(
            f"{labels.where(row)}: the label in {columns.label!r} is {labels.values[row]!s:.60} "
            f"({len(wrong)} such rows); expected one of the {len(classes)} classes that {source}: "
            f"{_some(classes, labels)}. Likely cause: -1 for a hidden label (a test part for a competition), "
            "or a damaged row"
        )
    return torch.from_numpy(numbers)


def _some(classes: tuple[str, ...], labels: Labels) -> str:
    if labels.values.dtype != object:
        return f"0 to {len(classes) - 1}"
    return ", ".join(classes[:8]) + (", ..." if len(classes) > 8 else "")


def _images(files: list[Path], column: str) -> Iterator[list[Encoded]]:
    for file in files:
        row = 0
        batches = iter(_open(file).iter_batches(CHUNK, columns=[column]))
        while True:
            with _readable(file):
                batch = next(batches, None)
                if batch is None:
                    break
                array = batch.column(0)
                if array.type.num_fields:  # a struct: its field "bytes", null also where the struct is null
                    array = array.flatten()[array.type.get_field_index("bytes")]
                encoded = array.to_pylist()
            yield [(f"{file}, row {row + i}", data) for i, data in enumerate(encoded)]
            row += len(encoded)
