"""Decoded images kept on disk, so that a data set is decoded once: one safetensors file per data set."""

import contextlib
import hashlib
import json
import os
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from opnorm.data.dataset import Split
from opnorm.errors import DataError

VERSION = 1
"""Of the readers: raise it when the same files give other tensors."""


class Loaded(NamedTuple):
    """What a reader returns and the cache keeps."""

    train: Split
    test: Split
    classes: tuple[str, ...]


def cached(key: dict[str, Any], make: Callable[[], Loaded]) -> Loaded:
    """What ``make()`` returned for an equal ``key``, from disk if it is there, whole and readable.

    A cache that cannot be written costs one warning; a damaged file is made again. Written by rename, so two
    processes may do this at once. The tensors read are private to this process: changing them changes no
    file.
    """
    digest = hashlib.sha256(json.dumps({"version": VERSION, **key}, sort_keys=True).encode()).hexdigest()
    path = cache_folder() / f"data-{digest[:32]}.safetensors"
    loaded = _load(path)
    if loaded is None:
        loaded = make()
        _save(loaded, path)
    return loaded


def cache_folder() -> Path:
    """``$OPNORM_CACHE``, else ``$XDG_CACHE_HOME/opnorm``, else ``~/.cache/opnorm``."""
    if own := os.environ.get("OPNORM_CACHE"):
        return Path(own).expanduser()
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return Path(shared) / "opnorm"
    return Path(os.path.expanduser("~")) / ".cache" / "opnorm"


def fingerprint(files: Iterable[Path], root: Path) -> list[list[str | int]]:
    """What changes when a file does: its place, its real path, its size and its time of change."""
    rows: list[list[str | int]] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as e:
            raise DataError(
                f"{file} cannot be read ({e}); expected a file. Likely cause: a link to nowhere"
            ) from e
        place = str(file.relative_to(root)) if file != root else file.name
        rows.append([place, str(file.resolve()), stat.st_size, stat.st_mtime_ns])
    return rows


def _load(path: Path) -> Loaded | None:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 - not a dict
            stored = json.loads(f.metadata()["opnorm"])
        if stored["checksum"] != _checksum(tensors):
            return None
        train, test = (
            Split(tensors[f"{part}_images"], tensors[f"{part}_labels"]) for part in ("train", "test")
        )
        return Loaded(train, test, tuple(stored["classes"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _save(loaded: Loaded, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors = {
        f"{part}_{field}": tensor.contiguous()
        for part, split in (("train", loaded.train), ("test", loaded.test))
        for field, tensor in split._asdict().items()
    }
    about = json.dumps({"classes": list(loaded.classes), "checksum": _checksum(tensors)})
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata={"opnorm": about})
        os.replace(temporary, path)
    except (OSError, SafetensorError) as e:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        warnings.warn(
            f"the decoded images could not be kept in {path.parent} ({e}), so the next start decodes them "
            "again; "
            "likely cause: a full or read-only disk; the variable OPNORM_CACHE names another folder",
            RuntimeWarning,
            stacklevel=2,
        )


def _checksum(tensors: dict[str, Tensor]) -> int:
    checksum = 0
    for name in sorted(tensors):
        checksum = zlib.crc32(tensors[name].numpy().data, checksum)
    return checksum
