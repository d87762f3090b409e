"""Files of weights as they are, without a network: each tensor by its name, read when it is asked for."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opnorm._core import files
from opnorm.errors import ModelError
from opnorm.models.loading import SPEC_KEY, as_path, cause, check_there, read_state_dicts
from opnorm.models.state_dicts import AVERAGES

__all__ = ["ADAPTER", "StoredTensor", "WeightFiles", "open_weights"]

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

SHARD = re.compile(r"-(\d+)-of-(\d+)(\.\w+)$")
OPTIMIZER = {"optimizer", "optim", "optimizers", "optimizer_state_dict", "scheduler", "momentum"}
DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Types as safetensors names them, as torch does."""


class StoredTensor(NamedTuple):
    """A tensor in a file.

    Attributes:
        shape: its shape.
        dtype: the name of its type in torch, or in the file where torch has none.
        read: gives it; ModelError where it is damaged.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class WeightFiles:
    """The tensors of one file, of several shards, or of a folder.

    Attributes:
        path: as it was given.
        tensors: by name, in the order of the files.
        remarks: what else there is to know.
    """

    path: Path
    tensors: Mapping[str, StoredTensor]
    remarks: tuple[str, ...] = ()


def open_weights(path: str | Path) -> WeightFiles:
    """The tensors of a ``.safetensors`` file, an index of shards, a folder of the hub, or a state dict of ``torch.save``.

    Of a checkpoint of ``torch.save`` the largest state dict that is neither an optimizer's nor an average is taken; only
    tensors are unpickled.

    Raises:
        ModelError: no such file, a damaged one, an index that names a missing shard or tensor, a folder without weights.
    """
    path = as_path(path)
    if path.is_dir():
        return WeightFiles(path, *_of_file(_in_folder(path)))
    check_there(path)
    return WeightFiles(path, *_of_file(path))


def _of_file(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    if path.name.endswith(INDEX):
        return _of_index(path)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    return _of_torch(path)


def _in_folder(folder: Path) -> Path:
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


def _of_index(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    """The tensors of all shards, each from the shard that the index names."""
    try:
        with files.reading(path):
            index = json.loads(path.read_bytes())
        places = {str(name): str(shard) for name, shard in index["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise ModelError(
            f"{path} is no index of shards: expected JSON with a weight_map; {cause(path, e)}"
        ) from e
    tensors: dict[str, StoredTensor] = {}
    for shard in dict.fromkeys(places.values()):
        file = path.parent / shard
        if Path(shard).name != shard or not file.is_file():
            raise ModelError(
                f"{path} names the shard {shard}, which is not beside it; was the folder downloaded in part?"
            )
        found = _of_file(file)[0]
        expected = [name for name, place in places.items() if place == shard]
        if lacking := [name for name in expected if name not in found]:
            raise ModelError(
                f"{file} has no tensor {lacking[0]}, which {path.name} says is in it"
                + (f", and lacks {len(lacking) - 1} more" if len(lacking) > 1 else "")
                + "; are they of the same download?"
            )
        tensors |= {name: found[name] for name in expected}
    return tensors, ()


def _of_safetensors(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    from safetensors import SafetensorError, safe_open

    def read(name: str) -> Callable[[], Tensor]:
        def tensor() -> Tensor:
            try:  # opened anew, so that no pages of tensors that were read before stay in memory
                with safe_open(path, framework="pt") as f:
                    return f.get_tensor(name)
            except (OSError, SafetensorError, RuntimeError, ValueError) as e:
                raise ModelError(f"{path}: the tensor {name} cannot be read: {cause(path, e)}") from e

        return tensor

    try:
        tensors = {}
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                part = opened.get_slice(name)
                dtype = str(part.get_dtype())
                tensors[name] = StoredTensor(tuple(part.get_shape()), DTYPES.get(dtype, dtype), read(name))
            metadata = dict(opened.metadata() or {})
    except (OSError, SafetensorError) as e:
        raise ModelError(f"{path} cannot be read as weights: {cause(path, e)}") from e
    return tensors, _remarks(path, metadata)


def _remarks(path: Path, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    remarks = []
    if SPEC_KEY in metadata:
        remarks.append(
            f"The file records its network: opnorm norms 'file(\"{path}\")' also knows stride and padding"
        )
    if shard := SHARD.search(path.name):
        remarks.append(f"This is shard {int(shard[1])} of {int(shard[2])}; the folder or its index names all")
    return tuple(remarks)


def _of_torch(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    found = read_state_dicts(path)[0]

    def rank(place: str) -> tuple[bool, bool, int]:
        words = set(re.split(r"[._]", place.lower()))
        parts = set(place.lower().split("."))
        floats = [t for t in found[place].values() if t.is_floating_point() and t.ndim > 1]
        return OPTIMIZER.isdisjoint(parts), AVERAGES.isdisjoint(words), sum(t.numel() for t in floats)

    place = max(found, key=rank)
    others = [other or "the top" for other in found if other != place]
    remarks = _remarks(path, {})
    if others:
        remarks += (f"The state dict at {place or 'the top'} is measured, not those at {', '.join(others)}",)
    tensors = {name: _stored(t) for name, t in found[place].items()}
    return tensors, remarks


def _stored(t: Tensor) -> StoredTensor:
    def read() -> Tensor:
        if t.layout != torch.strided or t.is_meta:
            raise ModelError(f"a tensor of layout {t.layout} on {t.device}; expected a dense one with values")
        return t.dequantize() if t.is_quantized else t.detach()

    return StoredTensor(tuple(t.shape), str(t.dtype).removeprefix("torch."), read)
