"""Paths of data sets: whether they are there, and what is expected of them."""

import os
from pathlib import Path

from opnorm.errors import DataError, did_you_mean

__all__ = ["FOLDER", "PARQUET", "existing_path"]

PARQUET = "a .parquet file, or a folder with train-*.parquet and test-*.parquet (or valid-*, val-*)"
FOLDER = "a folder with train/CLASS/*.png (test/ or val/ beside it) or with CLASS/*.png (or .jpg, ...)"


def existing_path(path: str | Path, expected: str) -> Path:
    """The path, with ``~`` expanded.

    Raises:
        DataError: it does not exist; with the closest name beside it.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"the path is {path!r:.60}; expected {expected}, as text")
    path = os.fspath(path)
    if not path.strip():
        raise DataError(f"the path is {path!r}; expected {expected}. Likely cause: an unset variable")
    try:
        expanded = Path(path).expanduser()
        if expanded.exists():
            if not (expanded.is_file() or expanded.is_dir()):
                raise DataError(f"{path!r} is a device, a pipe or a socket; expected {expected}")
            return expanded
        at = expanded.absolute()
        missing = next((p for p in [*reversed(at.parents), at] if not p.exists()), at)
        siblings = [p.name for p in missing.parent.iterdir()] if missing.parent.is_dir() else []
    except (OSError, RuntimeError) as e:
        raise DataError(
            f"{path!r} cannot be searched ({e}); expected {expected}. Likely cause: no permission for one of its "
            "folders, or a damaged path"
        ) from e
    hint = did_you_mean(
        missing.name, siblings, "likely cause: a typing error", lambda name: repr(str(missing.parent / name))
    )
    raise DataError(f"{path!r}: there is no {str(missing)!r}; expected {expected}{hint}")
