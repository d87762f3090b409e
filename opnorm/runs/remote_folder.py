"""Folders of runs under a URL (``s3://bucket/study``, ``file:///mnt/study``), for machines without a common file system.

    URL/KEY/current.json         the marker, written last: the name of every file, whether the run is finished
    URL/KEY/CHECKSUM             the files of the folder, each under its checksum; those that are equal once

A run works in a local folder. :meth:`RemoteFolder.upload` sends the files that have changed, then the marker; what is there
before the marker changes is the folder before, whole. Nothing keeps two machines from one folder: the driver does.
"""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from opnorm._core import files
from opnorm.errors import RunError

__all__ = ["RemoteFolder"]

MARKER = "current.json"


class RemoteFolder:
    """The folders of runs under a URL.

    Args:
        url: of any file system that fsspec knows and that several machines see.

    Raises:
        RunError: no such file system, or one that a single process sees.
    """

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ImportError as e:
            raise RunError(f"{url}: fsspec is not installed; pip install 'opnorm[ray]'") from e
        if url.partition(":")[0] == "memory":
            raise RunError(
                f"{url}: only one process sees it; expected s3://..., gs://..., file:///... or a path"
            )
        self.url = url
        try:
            self.fs, self.root = fsspec.core.url_to_fs(url, use_listings_cache=False)
        except (ImportError, ValueError, OSError) as e:
            raise RunError(
                f"{url} cannot be used: {e}; expected s3://..., gs://..., file:///... or a path"
            ) from e

    def upload(self, folder: Path, key: str) -> None:
        """Send a folder; RunError where the storage refuses. A process that is killed meanwhile leaves the one before."""
        with self._explained("write", key), tempfile.TemporaryDirectory(dir=folder.parent) as name:
            before = self._marker(key)
            there = set(before["files"].values()) if before else set()
            found = {path.name: _checksum(path) for path in _snapshot(folder, Path(name))}
            self.fs.makedirs(f"{self.root}/{key}", exist_ok=True)
            for file, target in found.items():
                if target not in there:
                    there.add(target)
                    self.fs.put_file(str(Path(name, file)), f"{self.root}/{key}/{target}")
            self.write(f"{key}/{MARKER}", json.dumps({"files": found, "finished": folder.name == key}))
            for old in there - set(found.values()):
                self.fs.rm_file(f"{self.root}/{key}/{old}")

    def download(self, key: str, root: Path) -> bool:
        """Bring a folder to ``root``, where it replaces what is there; False where the URL has none.

        Raises:
            RunError: the storage refuses, or a file is not the one that was sent.
        """
        with self._explained("read", key):
            marker = self._marker(key)
            if marker is None:
                return False
            part = root / f".{key}.{uuid.uuid4().hex[:8]}.part"
            files.make_folder(part)
            try:
                for name, target in marker["files"].items():
                    self.fs.get_file(f"{self.root}/{key}/{target}", str(part / name))
                    if _checksum(part / name) != target:
                        raise RunError(f"{self.url}/{key}/{target}: {files.CHANGED}; remove {self.url}/{key}")
                for folder in (root / key, root / f"{key}.partial"):
                    shutil.rmtree(folder, ignore_errors=True)
                part.rename(root / (key if marker["finished"] else f"{key}.partial"))
            finally:
                shutil.rmtree(part, ignore_errors=True)
        return True

    def remove(self, key: str) -> None:
        """Remove a folder, if it is there."""
        with self._explained("remove", key):
            if self.fs.exists(f"{self.root}/{key}"):
                self.fs.rm(f"{self.root}/{key}", recursive=True)

    def read(self, name: str) -> str | None:
        """The text of a file under the URL; None where there is none."""
        with self._explained("read", name):
            try:
                return self.fs.cat_file(f"{self.root}/{name}").decode()
            except FileNotFoundError:
                return None

    def write(self, name: str, text: str) -> None:
        """Write a text file under the URL, whole or not at all."""
        with self._explained("write", name):
            path = f"{self.root}/{name}"
            part = f"{path}.{uuid.uuid4().hex[:8]}"
            self.fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            self.fs.pipe_file(part, text.encode())
            self.fs.mv(part, path)

    def _marker(self, key: str) -> dict[str, Any] | None:
        text = self.read(f"{key}/{MARKER}")
        return None if text is None else json.loads(text)

    @contextmanager
    def _explained(self, action: str, name: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as e:
            why = getattr(e, "strerror", "") or str(e)
            raise RunError(
                f"cannot {action} {self.url}/{name}: {why}; what was written before is kept: check the storage and its "
                "credentials on every node, and run the same command again"
            ) from e


def _snapshot(folder: Path, to: Path) -> Iterator[Path]:
    """The files of a folder as they are now: each is replaced, never changed, while other processes train.

    In the order of their names: the metrics are at least as new as the checkpoint.
    """
    for path in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")):
        with suppress(FileNotFoundError):  # replaced by the next one meanwhile
            os.link(path, to / path.name)
            yield to / path.name


def _checksum(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
