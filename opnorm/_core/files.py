"""Atomic writes: a file is written under another name and then renamed, so it is whole or not there."""

import json
import math
import os
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opnorm.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "atomic_write",
    "read_json",
    "read_lines",
    "read_tensors",
    "remove_partial_files",
    "to_json",
    "write_json",
    "write_lines",
    "write_tensors",
]


CHECKSUM = "opnorm.checksum"
"""Metadata entry of the safetensors files that are written here."""


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` only if the block succeeds and the data are on the disk.

    Missing parent folders are made.

    Raises:
        RunError: the file system refuses, for example because the disk is full. The old ``path`` is unchanged.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        raise RunError(
            f"cannot write {path}: {e.strerror or e}; nothing written before is lost: make room there, "
            "and run the same command again"
        ) from e
    finally:
        with suppress(OSError):
            part.unlink()


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files of a process that was killed; the caller must hold the folder's lock."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            part.unlink()


def to_json(value: Any, indent: int | None = 1) -> str:
    """JSON text that every reader takes: null for NaN and infinities, which JSON does not have."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, all or nothing."""
    with atomic_write(path) as part:
        part.write_text(to_json(value) + "\n", encoding="utf-8")


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON, one a line, all or nothing."""
    with atomic_write(path) as part:
        part.write_text("".join(to_json(row, None) + "\n" for row in rows), encoding="utf-8")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none when there is no such file.

    Raises:
        RunError: it cannot be read, or a line is not a JSON object.
    """
    return _objects(path, lambda text: text.splitlines()) if path.exists() else []


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        RunError: it is not there, or no JSON object.
    """
    return _objects(path, lambda text: [text])[0]


def _objects(path: Path, split: Callable[[str], list[str]]) -> list[dict[str, Any]]:
    try:
        values = [json.loads(part) for part in split(path.read_text(encoding="utf-8"))]
        for value in values:
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, not {type(value).__name__}")
    except (OSError, ValueError) as e:
        raise RunError(f"cannot read {path}: {e}; was it edited by hand, or copied in part?") from e
    return values


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, all or nothing, with a checksum in the metadata."""
    from safetensors.torch import save

    copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    # through bytes, so that a full disk is an OSError like any other
    whole = save(copies, {**metadata, CHECKSUM: _checksum(copies, metadata)})
    with atomic_write(path) as part:
        part.write_bytes(whole)


def read_tensors(path: Path, checked: bool = False) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors of a safetensors file and its metadata, compared with its checksum; ``checked`` files must have one.

    Raises:
        RunError: it cannot be read, or has changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
            metadata = dict(f.metadata() or {})
    except (OSError, SafetensorError) as e:
        raise RunError(f"cannot read {path}: {e}; damaged, or not a safetensors file?") from e
    checksum = metadata.pop(CHECKSUM, None)
    if (checked or checksum is not None) and checksum != _checksum(tensors, metadata):
        raise RunError(
            f"cannot read {path}: its contents differ from its checksum; a damaged disk or copy, or another program has "
            "changed it and kept the metadata"
        )
    return tensors, metadata


def _checksum(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    """CRC-32 of names, types, shapes, values and metadata."""
    import torch

    checksum = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, tensor in sorted(tensors.items()):
        checksum = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), checksum)
        checksum = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, checksum)
    return f"{checksum:08x}"
