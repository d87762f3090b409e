"""The columns of a parquet file that hold the images and the labels, and the names of the classes in its schema."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from opnorm.errors import DataError, did_you_mean

__all__ = ["TWO_SETS", "Columns", "common_columns", "is_string", "open_file", "readable", "value_type"]

TWO_SETS = "Likely cause: files of several data sets in one folder"


@contextmanager
def readable(file: Path) -> Iterator[None]:
    """DataError with the file's name for what pyarrow cannot read."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"{file} ({_size(file)}) cannot be read as parquet ({reason:.200}); expected a "
            "whole parquet file. Likely cause: a truncated download, another format, or a Git LFS pointer "
            "(run git lfs pull)"
        ) from e


def _size(file: Path) -> str:
    return f"{file.stat().st_size} bytes" if file.exists() else "no longer there"


def open_file(file: Path) -> Any:
    """The file as pyarrow opens it, with its schema and the places of its columns; DataError where it is damaged."""
    import pyarrow.parquet

    with readable(file):
        # as a stream: else a row group is read whole, however large it is
        stream = {"pre_buffer": False, "buffer_size": 2**20}
        return pyarrow.parquet.ParquetFile(file, **stream, page_checksum_verification=True)


class Columns(NamedTuple):
    """The columns to read, and the names of the classes where the schema has them."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def common_columns(files: list[Path], image: str | None, label: str | None) -> Columns:
    """Those of the first file, which all must have, with the same classes."""
    columns = _columns(open_file(files[0]).schema_arrow, str(files[0]), image, label)
    for file in files[1:]:
        own = _columns(open_file(file).schema_arrow, str(file), columns.image, columns.label).classes
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
        by_type = ([f.name for f in schema if fit(value_type(f.type))] for fit in fits)
        return declared or next((names for names in by_type if names), [])

    images = candidates("Image", _is_image)
    labels = candidates(
        "ClassLabel", t.is_integer, is_string, lambda kind: t.is_floating(kind) or t.is_boolean(kind)
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


def value_type(kind: Any) -> Any:
    """The type of the values of a column, also where they are stored as numbers of a dictionary."""
    import pyarrow.types

    return kind.value_type if pyarrow.types.is_dictionary(kind) else kind


def is_string(kind: Any) -> bool:
    """Whether a type of pyarrow is text."""
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
