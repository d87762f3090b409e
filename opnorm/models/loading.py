"""Weights in files: opnorm's own, which record their network, and state dicts of others."""

import re
import weakref
import zipfile
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.argument_checks import check_module
from opnorm._core.layers import unwrap
from opnorm.errors import ModelError, SpecError, did_you_mean
from opnorm.models.state_dicts import fill, plain_state_dict, state_dicts_in

__all__ = [
    "SPEC_KEY",
    "as_path",
    "cause",
    "check_there",
    "file",
    "read_state_dicts",
    "recorded_call",
    "save",
]

SPEC_KEY = "opnorm.model"
"""Metadata entry of a safetensors file: the call that builds the network the weights belong to."""


READERS = ("file", "hf")
"""The networks whose weights are read."""

_networks: "weakref.WeakKeyDictionary[nn.Module, spec.Call]" = weakref.WeakKeyDictionary()
"""The call of a network alone, without the weights that it was filled with."""


@spec.factory("model")
def file(path: str, arch: nn.Module | None = None, key: str | None = None, strict: bool = True) -> nn.Module:
    """A network with the weights of a file: ``file("weights.safetensors", arch=resnet(depth=20))``.

    The state dict is found in a checkpoint by its names, whatever holds it ("state_dict", "model", "ema", ...) and whatever
    prefixes its names have (``torch.compile``, ``DataParallel``, Lightning, timm). Beside an average the plain weights are
    taken, with a warning.

    Tied weights may stand in the file under one of their names, and weight and spectral normalization under the names of
    either of torch's two styles.

    Args:
        path: a ``.safetensors`` file, or a file of ``torch.save``, which is read without unpickling anything but tensors.
        arch: the network to fill; not needed for files that opnorm wrote, which record it.
        key: the place of the state dict in the file, where several fit: "state_dict_ema".
        strict: False also takes weights some of whose names are missing or left over, with a warning.

    Raises:
        ModelError: no such file, a damaged one, no ``arch`` where it is needed, or weights of another network, integer or
            complex ones included.
    """
    found, metadata = read_state_dicts(path)
    if arch is None:
        arch = _recorded_network(path, metadata)
    if not isinstance(arch, nn.Module):
        raise ModelError(f"arch={arch!r:.60}: expected a network, such as arch=resnet(depth=20)")
    fill(arch, found, path, key, strict)
    if arch not in _networks:
        with suppress(SpecError):
            _networks[arch] = spec.spec_of(arch)
    return arch


def recorded_call(path: str, metadata: dict[str, str]) -> spec.Call:
    """The call of the network that a weights file records; ModelError unless opnorm's own networks are all that it names.

    So the file chooses neither code nor other files. Where it records weights of a further file, those of this one take
    their place, and the call is that of the network alone.
    """
    if SPEC_KEY not in metadata:
        raise ModelError(f"{path} does not record its network; pass arch=..., such as arch=resnet(depth=20)")
    recorded = call = spec.parse(metadata[SPEC_KEY])
    while call.name in READERS and isinstance(inner := dict(call.kwargs).get("arch"), spec.Call):
        call = inner
    if not {part.name for part in spec.calls_in(call)} <= {*spec.names("model")} - {*READERS}:
        raise ModelError(
            f"{path} records the network {recorded!s:.200}, which is not opnorm's own; pass arch=... to build it"
        )
    return call


def _recorded_network(path: str, metadata: dict[str, str]) -> nn.Module:
    call = recorded_call(path, metadata)
    network = spec.build(call, "model")
    if not isinstance(network, nn.Module):
        raise ModelError(f"{path} records the network {call}, which is no network")
    return network


def read_state_dicts(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The state dicts of a file by their places, and its metadata (empty but for safetensors). Only tensors are unpickled.

    Raises:
        ModelError: no such file, or one that cannot be read, or holds no state dict.
    """
    path = as_path(path)
    check_there(path)
    try:
        if path.suffix == ".safetensors":
            tensors, metadata = files.read_tensors(path)
            return {"": tensors}, metadata
        mapped = zipfile.is_zipfile(path)  # tensors are read from the disk when they are used
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as e:
        raise ModelError(f"{path} cannot be read as weights: {cause(path, e)}") from e
    found = dict(state_dicts_in(loaded))
    if not found:
        raise ModelError(
            f"{path} has a {type(loaded).__name__}, expected a state dict of tensors; save model.state_dict()"
        )
    return found, {}


def check_there(path: Path) -> None:
    """ModelError where there is no such file."""
    if path.is_dir():
        raise ModelError(
            f"{path} is a folder; expected a file of weights, such as {path / 'weights.safetensors'}"
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
        return "it is the index of several files; their tensors in one file of safetensors.torch.save_file are read"
    if other := re.search(r"Unsupported global: GLOBAL ([\w.]+)", str(error)):
        return (
            f"it also holds a {other[1]}, and only tensors are unpickled, because anything else can run code; the program "
            "that wrote it can save the weights alone: torch.save(model.state_dict(), path)"
        )
    text = str(error).rpartition("WeightsUnpickler error: ")[2].strip() or type(error).__name__
    return f"{text.splitlines()[0]:.200}; truncated, or of another format?"


def save(model: nn.Module, path: str | Path, call: str | spec.Call | None = None) -> None:
    """Write weights as safetensors, with the call that rebuilds the network, so that ``file(path)`` needs no ``arch``.

    Names are those of the network without ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel`` around it.

    Args:
        model: any network.
        path: a ``.safetensors`` file.
        call: the call that builds the network; not needed for a network of one of opnorm's factories.

    Raises:
        ModelError: the name ends in something else.
        RunError: the file cannot be written.
    """
    check_module(model, "save")
    path = as_path(path)
    if path.suffix != ".safetensors":
        raise ModelError(f"{path}: expected a name that ends in .safetensors")
    if call is None:
        with suppress(SpecError):  # the user's own network, built in Python: the file then needs arch=...
            call = _networks.get(unwrap(model)) or spec.spec_of(unwrap(model))
    metadata = {"format": "pt"} | ({SPEC_KEY: str(call)} if call is not None else {})
    files.make_folder(path.parent)
    files.write_tensors(path, plain_state_dict(model), metadata)
