"""Files of weights as they are, without a network: each tensor by its name, read when it is asked for."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from opnorm._core.files import DTYPES
from opnorm._core.weight_paths import INDEX, as_path, cause, check_there, in_folder, of_index
from opnorm.errors import ModelError
from opnorm.models.loading import SPEC_KEY, read_state_dicts
from opnorm.models.state_dicts import AVERAGES

__all__ = ["StoredTensor", "WeightFiles", "open_weights"]

SHARD = re.compile(r"-(\d+)-of-(\d+)(\.\w+)$")
OPTIMIZER = {"optimizer", "optim", "optimizers", "optimizer_state_dict", "scheduler", "momentum"}


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
        return WeightFiles(path, *_of_file(in_folder(path)))
    check_there(path)
    return WeightFiles(path, *_of_file(path))


def _of_file(path: Path) -> tuple[dict[str, StoredTensor], tuple[str, ...]]:
    if path.name.endswith(INDEX):
        return of_index(path, lambda shard: _of_file(shard)[0]), ()
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    return _of_torch(path)


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
