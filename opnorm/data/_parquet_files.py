"""Which parquet files of a folder belong to the training and to the test part."""

import re
from collections.abc import Iterable
from pathlib import Path

from opnorm._core.data_paths import PARQUET
from opnorm.errors import DataError

__all__ = ["find_parts"]

USUAL = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "val", "valid": "val", "validation": "val",
}  # fmt: skip
"""Names of parts, each of which may stand for the others of its part."""
SHARD = re.compile(r"(.*)-(\d+)-of-(\d+)\.parquet$")
PART = re.compile(r"(?:^|[^a-z])(train|test|val)")  # also training, testing, valid, validation


def find_parts(root: Path, train: str | None = None, test: str | None = None) -> dict[str, list[Path]]:
    """The files of "train" and, where there is one, "test"; "spare" is a validation part beside a test part.

    Args:
        root: a folder, or a file, which is "train".
        train: the name of the training part; None for the usual names.
        test: the name of the test part; None for the usual names.

    Raises:
        DataError: no parquet files, no such part, or files of several data sets.
    """
    if root.is_file():
        if train or test:
            raise DataError(f"{str(root)!r} is one file; train= and test= name parts of a folder")
        return {"train": [root]}
    files = {file.relative_to(root): file for file in sorted(root.rglob("*.parquet")) if file.is_file()}
    files = {place: file for place, file in files.items() if not any(p[0] in "._" for p in place.parts)}
    if not files:
        inside = sorted(p.name + "/" * p.is_dir() for p in root.iterdir())
        listed = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "") or "nothing"
        raise DataError(f"{str(root)!r} holds no .parquet files but {listed}; expected {PARQUET}")
    parts: dict[str, list[Path]] = {}
    for place in files:
        parts.setdefault(_part(place), []).append(place)
    if set(parts) == {""} and not train:
        parts["train"] = parts.pop("")
    if train:
        parts["train"] = _named(files, train, root)
    if test:
        parts["test"] = _named(files, test, root)
    elif "test" in parts and "val" in parts:
        parts["spare"] = parts["val"]
    elif "val" in parts:
        parts["test"] = parts["val"]
    if "train" not in parts:
        known = ", ".join(str(place) for places in parts.values() for place in places[:3])
        raise DataError(f"{str(root)!r} has no training part but {known}; expected {PARQUET}")
    chosen = {part: parts[part] for part in ("train", "test", "spare") if part in parts}
    configs = sorted({_config(place) for part in ("train", "test") for place in chosen.get(part, ())})
    if len(configs) > 1:
        raise DataError(
            f"{str(root)!r} holds several data sets, in the folders {', '.join(configs)}; expected one. "
            f"Read one of them: parquet({str(root / configs[-1])!r}), or hf(..., config={configs[-1]!r})"
        )
    for places in chosen.values():
        _check_shards(places, root)
    return {part: [files[place] for place in places] for part, places in chosen.items()}


def _check_shards(places: list[Path], root: Path) -> None:
    """DataError where one of the files "NAME-00001-of-00004.parquet" is not there."""
    found: dict[tuple[Path, str, str], set[int]] = {}
    for place in places:
        if named := SHARD.match(place.name):
            found.setdefault((place.parent, named[1], named[3]), set()).add(int(named[2]))
    for (parent, name, count), numbers in found.items():
        if missing := sorted(set(range(int(count))) - numbers):
            first = parent / f"{name}-{missing[0]:0{len(count)}}-of-{count}.parquet"
            raise DataError(
                f"{str(root)!r} lacks {len(missing)} of the {int(count)} files {name}-*-of-{count}.parquet, the first of "
                f"them {str(first)!r}; expected all. Likely cause: a stopped download; without -of-{count} in their "
                "names, some of the files are read as a whole set"
            )


def _named(places: Iterable[Path], name: str, root: Path) -> list[Path]:
    """The files of a part: "NAME.parquet", "NAME-....parquet" or in a folder NAME, else those of a usual NAME's part."""
    places, wanted = list(places), name.lower()
    exact = [
        p for p in places if any(n.lower().split("-")[0] == wanted or n.lower() == wanted for n in _names(p))
    ]
    found = exact or [place for place in places if wanted in USUAL and _part(place) == USUAL[wanted]]
    if not found:
        more = ", ..." if len(places) > 8 else ""
        raise DataError(
            f"{str(root)!r} has no part {name!r}; its files are {', '.join(map(str, places[:8]))}{more}"
        )
    return found


def _names(place: Path) -> list[str]:
    """The names that can have the word of a part: the file's, then its folders', the nearest first."""
    return [place.stem, *reversed(place.parent.parts)]


def _part(place: Path) -> str:
    """The part that a file belongs to: "train", "test", "val", or "" where neither its name nor a folder's has one."""
    words = (PART.search(name.lower()) for name in _names(place))
    return next((word[1] for word in words if word), "")


def _config(place: Path) -> str:
    """The folder of one of several data sets (the hub's "config"): the parents above the one that names a part."""
    parents = list(place.parent.parts)
    named = next((i for i, name in enumerate(parents) if PART.search(name.lower())), len(parents))
    return "/".join(parents[:named]) or "."
