"""Atomic writes: a file is written under another name and then renamed, so it is whole or not there."""

import errno
import glob
import json
import math
import os
import shutil
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opnorm.errors import RunError

try:
    import fcntl
except ImportError:  # on Windows, where temporary files of a killed process stay
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DTYPES",
    "atomic_write",
    "check_tensors",
    "lines_checksum",
    "make_folder",
    "read_json",
    "read_lines",
    "read_tensors",
    "reading",
    "remove_folder",
    "remove_partial_files",
    "shown",
    "to_json",
    "write_bytes",
    "write_json",
    "write_lines",
    "write_tensors",
    "writing",
]


METADATA = "__metadata__"
"""Entry of a safetensors header that is no tensor."""

CHECKSUM = "opnorm.checksum"
"""Metadata entry of the safetensors files that are written here, and the last name of checked JSON objects."""

CHANGED = "its contents differ from its checksum; a damaged disk or copy"

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Types as safetensors names them, as torch does."""

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` only if the block succeeds and the data are on the disk.

    What a process that was killed left of the same file is removed.

    Raises:
        RunError: the file system refuses, for example because the disk is full or the folder is gone. The old ``path`` is
            unchanged.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    with writing(path), _locked(part):
        remove_partial_files(path.parent, path.name)
        try:
            yield part
            with part.open("rb+") as f:
                os.fsync(f.fileno())
            os.replace(part, path)
        finally:
            with suppress(OSError):
                part.unlink()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A block that writes to ``path``: RunError with the cause and the remedy where the file system refuses."""
    try:
        yield
    except OSError as e:
        if e.errno in (errno.ENOENT, errno.ENOTDIR):
            raise RunError(
                f"cannot write {path}: its folder is not there; was it removed while it was written to? "
                "Run the same command again to begin anew"
            ) from e
        remedy = "make room there" if e.errno in FULL else "make it a place that can be written"
        raise RunError(
            f"cannot write {path}: {e.strerror or e}; nothing written before is lost: {remedy}, "
            "and run the same command again"
        ) from e


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Make a temporary file and lock it, so that it is known to be in use until the block, or this process, ends."""
    file = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def shown(path: Path) -> Path:
    """The path as it is called from the working folder, if it is below that."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, should they be missing; RunError where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise RunError(
            f"cannot write in {folder}: {e.strerror or e}; expected a folder that can be written"
        ) from e


def remove_partial_files(folder: Path, name: str = "") -> None:
    """Remove the temporary files, all or those of one file, that no process has in use: those of one that was killed."""
    for part in folder.glob(f".{glob.escape(name)}.????????.part" if name else ".*.part"):
        with suppress(OSError):
            file = os.open(part, os.O_RDWR)
            try:
                if fcntl:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # an OSError where it is in use
                    part.unlink()
            finally:
                os.close(file)


def remove_folder(folder: Path, trash: Path) -> None:
    """Remove a folder by one rename, so that a kill leaves no part of it in its place; ``trash`` is then emptied."""
    if not folder.exists():
        return
    make_folder(trash)
    with writing(folder):
        folder.rename(trash / uuid.uuid4().hex)
    shutil.rmtree(trash, ignore_errors=True)


def to_json(value: Any, indent: int | None = 1, ascii_only: bool = False) -> str:
    """JSON text that every reader takes: null for NaN and infinities, which JSON does not have."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=ascii_only)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(member) for member in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_bytes(path: Path, data: bytes) -> Path:
    """Write a file whole, with its folder, and remove what stopped processes have left there; gives its path."""
    make_folder(path.parent)
    remove_partial_files(path.parent)
    with atomic_write(path) as part:
        part.write_bytes(data)
    return path


def write_json(path: Path, value: Any, checked: bool = False) -> None:
    """Write a value as JSON, all or nothing; ``checked`` objects have a checksum in them."""
    if checked:
        value = {**value, CHECKSUM: _text_checksum(value)}
    with atomic_write(path) as part:
        part.write_text(to_json(value) + "\n", "utf-8", "backslashreplace")  # of names that are not UTF-8


def read_json(path: Path, checked: bool = False) -> dict[str, Any]:
    """The object in a JSON file; ``checked`` compares it with the checksum that it then must have.

    Raises:
        RunError: it is not there, no JSON object, or has changed since it was written.
    """
    value = _objects(path, lambda text: [text])[0]
    checksum = value.pop(CHECKSUM, None)
    if checked and checksum != _text_checksum(value):
        raise RunError(f"cannot read {path}: {CHANGED}, or it was edited by hand")
    return value


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON, one a line, all or nothing."""
    with atomic_write(path) as part:
        part.write_text("".join(to_json(row, None) + "\n" for row in rows), "utf-8", "backslashreplace")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none when there is no such file.

    Raises:
        RunError: it cannot be read, or a line is not a JSON object.
    """
    return _objects(path, lambda text: text.splitlines()) if path.exists() else []


def lines_checksum(rows: Sequence[Mapping[str, Any]]) -> str:
    """The checksum of rows, the same before and after they were written."""
    return _text_checksum(list(rows))


def _text_checksum(value: Any) -> str:
    """CRC-32 of a value as JSON, in which the order of names does not count."""
    text = json.dumps(json.loads(to_json(value)), sort_keys=True)
    return f"{zlib.crc32(text.encode()):08x}"


def _objects(path: Path, split: Callable[[str], list[str]]) -> list[dict[str, Any]]:
    try:
        with reading(path):
            text = path.read_bytes().decode("utf-8")
        values = [json.loads(part) for part in split(text)]
        for value in values:
            if not isinstance(value, dict):
                raise ValueError(f"expected an object, not {type(value).__name__}")
    except (ValueError, RecursionError) as e:
        raise RunError(f"cannot read {path}: {e}; was it edited by hand, or copied in part?") from e
    return values


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """A block that opens ``path``: RunError with the cause where the file system refuses, or opening might never end."""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise RunError(f"cannot read {path}: it is no file but a device, a pipe or a socket")
        yield
    except FileNotFoundError as e:
        raise RunError(f"there is no {path}; was it removed, or its folder copied in part?") from e
    except OSError as e:
        raise RunError(f"cannot read {path}: {e.strerror or e}") from e


def write_tensors(path: Path, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, all or nothing, with a checksum in the metadata; the same ones give the same bytes."""
    from safetensors.torch import save

    copies = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    # through bytes, so that a full disk is an OSError like any other
    whole = save(copies, {**metadata, CHECKSUM: _checksum(copies, metadata)})
    size = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:size])
    header[METADATA] = dict(sorted(header[METADATA].items()))  # safetensors writes them in any order
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_write(path) as part, part.open("wb") as f:
        for piece in (len(text).to_bytes(8, "little"), text, memoryview(whole)[size:]):
            f.write(piece)


def read_tensors(path: Path, checked: bool = False) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors of a safetensors file and its metadata, compared with its checksum; ``checked`` files must have one.

    Raises:
        RunError: it cannot be read, or has changed since it was written.
    """
    from safetensors import SafetensorError, safe_open

    with reading(path), path.open("rb"):
        pass  # safetensors says less about what the file system refuses
    try:
        if any("\ud800" <= c <= "\udfff" for c in str(path)):  # safe_open takes no names that are not UTF-8
            tensors, metadata = _of_bytes(path.read_bytes())
        else:
            with safe_open(path, framework="pt") as f:
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118 - not a dict
                metadata = dict(f.metadata() or {})
    except (OSError, SafetensorError) as e:
        raise RunError(f"cannot read {path}: {e}; damaged, or not a safetensors file?") from e
    checksum = metadata.pop(CHECKSUM, None)
    if (checked or checksum is not None) and checksum != _checksum(tensors, metadata):
        raise RunError(
            f"cannot read {path}: {CHANGED}, or another program has changed it and kept the metadata"
        )
    return tensors, metadata


def _of_bytes(whole: bytes) -> "tuple[dict[str, Tensor], dict[str, str]]":
    """The tensors and the metadata of a safetensors file from its content."""
    from safetensors.torch import load

    tensors = load(whole)  # checks the header
    return tensors, dict(json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")]).get(METADATA) or {})


def check_tensors(path: Path) -> None:
    """Compare a safetensors file that was written here with its checksum; without torch, which takes seconds to load.

    Raises:
        RunError: it cannot be read, or has changed since it was written.
    """
    with reading(path):
        whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    try:
        header = json.loads(whole[8:size])
        metadata = dict(header.pop(METADATA))
        values = memoryview(whole)[size:]
        parts = {
            name: (f"torch.{DTYPES[about['dtype']]}", about["shape"], values[slice(*about["data_offsets"])])
            for name, about in header.items()
        }
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as e:
        raise RunError(f"cannot read {path}: its header is damaged, or it is no safetensors file") from e
    if metadata.pop(CHECKSUM, None) != _checksum_of(parts, metadata):
        raise RunError(f"cannot read {path}: {CHANGED}")


def _checksum(tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str]) -> str:
    import torch

    parts = {
        name: (str(t.dtype), t.shape, t.reshape(-1).view(torch.uint8).numpy().data)
        for name, t in tensors.items()
    }
    return _checksum_of(parts, metadata)


def _checksum_of(
    parts: Mapping[str, tuple[str, Sequence[int], memoryview]], metadata: Mapping[str, str]
) -> str:
    """CRC-32 of names, types, shapes, values and metadata."""
    checksum = zlib.crc32(json.dumps(sorted(metadata.items())).encode())
    for name, (dtype, shape, values) in sorted(parts.items(), key=lambda part: part[0]):
        checksum = zlib.crc32(f"{name} {dtype} {tuple(shape)}".encode(), checksum)
        checksum = zlib.crc32(values, checksum)
    return f"{checksum:08x}"
