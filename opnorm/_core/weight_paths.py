"""Paths of weights: a file, an index of several shards, a folder of the Hugging Face hub."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from opnorm._core import files
from opnorm.errors import ModelError, did_you_mean

__all__ = ["ADAPTER", "INDEX", "as_path", "cause", "check_there", "in_folder", "of_index", "shards_of"]

T = TypeVar("T")

ADAPTER = "adapter_config.json"
"""The file that makes a folder one of low-rank changes."""

INDEX = ".index.json"
FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""What is measured of a folder of the Hugging Face hub: the first of these that it has."""


def check_there(path: Path) -> None:
    """ModelError where there is no such file."""
    if path.exists() and not path.is_file():
        raise ModelError(
            f"{path} is a {'folder' if path.is_dir() else 'device, a pipe or a socket'}; expected a file"
        )
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings, f"searched in {path.parent.resolve()}")
        raise ModelError(f"no file {path}{hint}")


def as_path(path: object) -> Path:
    """The path of a file; ModelError for what is none."""
    if not isinstance(path, str | Path):
        raise ModelError(
            f"the path is {path!r:.60}; expected the name of a file, such as 'weights.safetensors'"
        )
    return Path(path)


def cause(path: Path, error: Exception) -> str:
    """The likely cause why a file holds no weights, in one line."""
    with path.open("rb") as f:
        beginning = f.read(10_000_000)
    start = beginning[:200].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; git lfs pull fetches the file itself"
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "it is a web page; likely cause: the address of a page about the file instead of the file's own"
        )
    if b'"weight_map"' in beginning:
        return f"it is the index of several files; its name does not end in {INDEX}"
    if other := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
        return (
            f"it also holds a {other[1]}, and only tensors are unpickled, because anything else can run code; the program "
            "that wrote it can save the weights alone: torch.save(model.state_dict(), path)"
        )
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return f"{text.splitlines()[0]:.200}; truncated, or of another format?"


def in_folder(folder: Path) -> Path:
    """The file of a folder that has its weights, or names them."""
    there = {file.name for file in folder.iterdir()}
    for name in FOLDER:
        if name in there:
            return folder / name
    found = sorted(name for name in there if name.endswith(".safetensors"))
    if len(found) == 1:
        return folder / found[0]
    if not found:
        raise ModelError(
            f"{folder} has no weights: expected {FOLDER[1]}, {FOLDER[0]} with its shards, {FOLDER[-1]}, {ADAPTER} with an "
            "adapter, or one .safetensors file"
        )
    raise ModelError(
        f"{folder} has {len(found)} .safetensors files and no {FOLDER[0]} that says which belong together; name one file, "
        f"such as {folder / found[0]}"
    )


def shards_of(path: Path) -> dict[str, list[str]]:
    """The names of the shards beside an index, and of the tensors in each; ModelError where it is no index."""
    try:
        with files.reading(path):
            index = json.loads(path.read_bytes())
        places = {str(name): str(shard) for name, shard in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(
            f"{path} is no index of shards: expected JSON with a weight_map; {cause(path, e)}"
        ) from e
    shards: dict[str, list[str]] = {}
    for name, shard in places.items():
        shards.setdefault(shard, []).append(name)
    return shards


def of_index(path: Path, read: Callable[[Path], Mapping[str, T]]) -> dict[str, T]:
    """What ``read`` finds in all shards of an index, each name in the shard that the index says.

    Raises:
        ModelError: a shard is not there, or lacks a tensor.
    """
    tensors: dict[str, T] = {}
    for shard, expected in shards_of(path).items():
        file = path.parent / shard
        if Path(shard).name != shard or not file.is_file():
            raise ModelError(
                f"{path} names the shard {shard}, which is not beside it; was the folder downloaded in part?"
            )
        found = read(file)
        if lacking := [name for name in expected if name not in found]:
            raise ModelError(
                f"{file} has no tensor {lacking[0]}, which {path.name} says is in it"
                + (f", and lacks {len(lacking) - 1} more" if len(lacking) > 1 else "")
                + "; are they of the same download?"
            )
        tensors |= {name: found[name] for name in expected}
    return tensors
