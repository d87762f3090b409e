"""The rows of parquet files: labels as class numbers, and encoded images by row."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from opnorm._core.image_decoding import Encoded
from opnorm.data._parquet_columns import TWO_SETS, Columns, is_string, open_file, readable, value_type
from opnorm.data.cache import files_state
from opnorm.data.streaming import CHUNK, buffer_for
from opnorm.errors import DataError

__all__ = ["ParquetRows", "class_numbers", "raw_labels"]


def raw_labels(files: list[Path], column: str) -> list[np.ndarray]:
    """The raw labels of each file: all int64, or all strings."""
    parts: list[np.ndarray] = []
    for file in files:
        with readable(file):
            parts.append(_label_values(open_file(file).read(columns=[column]).column(column), file))
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

    kind = value_type(column.type)
    if column.null_count:
        row = int(np.flatnonzero(column.is_null().to_numpy())[0])
        raise refused(row, f"null (so are {column.null_count} rows)", "an image without a label")
    if is_string(kind):
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


def class_numbers(labels: np.ndarray, file: Path, classes: tuple[str, ...], columns: Columns) -> Tensor:
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


class ParquetRows:
    """The encoded images of parquet files; a block is a row group. See :class:`opnorm.data.streaming.EncodedRows`."""

    def __init__(self, files: list[Path], column: str) -> None:
        self.files, self.column = files, column
        self.groups: list[tuple[int, int, int]] = []  # file, row group in it, its first row in the file
        sizes, stored = [], 0
        for i, file in enumerate(files):
            metadata, before = open_file(file).metadata, 0
            for group in range(metadata.num_row_groups):
                about = metadata.row_group(group)
                self.groups.append((i, group, before))
                sizes.append(about.num_rows)
                before += about.num_rows
                stored += about.total_byte_size
        self.starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.buffer = buffer_for(stored / max(int(self.starts[-1]), 1))

    def files_state(self) -> str:
        """See :meth:`opnorm.data.streaming.EncodedRows.files_state`."""
        return files_state(self.files)

    def read(self, rows: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Each row with its image; see :meth:`opnorm.data.streaming.EncodedRows.read`."""
        blocks = np.searchsorted(self.starts, rows, "right") - 1
        cuts = np.flatnonzero(np.diff(blocks)) + 1
        for block, own in zip(blocks[[0, *cuts]] if len(rows) else (), np.split(rows, cuts), strict=False):
            start = int(self.starts[block])
            for at, encoded in self._read_block(int(block), own - start):
                yield start + at, encoded

    def _read_block(self, block: int, wanted: np.ndarray) -> Iterator[tuple[int, Encoded]]:
        """Some rows of a row group, counted from its beginning, which is read as far as they go."""
        number, group, before = self.groups[block]
        file, at, given = self.files[number], 0, 0
        with readable(file):
            opened = open_file(file)
            for batch in opened.iter_batches(CHUNK, row_groups=[group], columns=[self.column]):
                array = batch.column(0)
                if array.type.num_fields:  # a struct: its field "bytes", null also where the struct is null
                    array = array.flatten()[array.type.get_field_index("bytes")]
                here = wanted[given : np.searchsorted(wanted, at + len(array))]
                if len(here):
                    images = array.take(here - at).to_pylist()
                    for row, data in zip(here.tolist(), images, strict=True):
                        yield row, (f"{file}, row {before + row}", data)
                given, at = given + len(here), at + len(array)
                if given == len(wanted):
                    return
        raise DataError(
            f"{file} ends at row {before + at}, but row {before + int(wanted[given])} was there when it was opened; the "
            "same file was expected. Likely cause: it was written again in the meantime"
        )
