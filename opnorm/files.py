"""Files that are either whole or not there: written beside their place and renamed into it."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from opnorm.errors import RunError

__all__ = ["read_json", "read_tensors", "replacing", "write_json", "write_tensors"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it takes the place of ``path`` only if all went well and is on the disk.

    Raises:
        RunError: the file system refuses, for example because the disk is full. What was at ``path`` is still there.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb+") as f:
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        raise RunError(
            f"cannot write {path}: {e.strerror or e}; nothing written before is lost: make room there, "
            "and the same command goes on"
        ) from e
    finally:
        with suppress(OSError):
            part.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, all or nothing."""
    with replacing(path) as part:
        part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        RunError: it is not there, or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"cannot read {path}: {e}; was it edited by hand, or copied in part?") from e


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors as safetensors, all or nothing."""
    from safetensors.torch import save

    # through bytes, and our own write, so that a full disk is an OSError like any other
    whole = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, dict(metadata))
    with replacing(path) as part:
        part.write_bytes(whole)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata.

    Raises:
        RunError: it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as f:
            return {k: f.get_tensor(k) for k in f.keys()}, dict(f.metadata() or {})  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError) as e:
        raise RunError(f"cannot read {path}: {e}; damaged, or not a safetensors file?") from e
