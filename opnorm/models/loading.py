"""Weights in files: opnorm's own, which record their network, and state dicts of others."""

import threading
import weakref
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm._core.argument_checks import check_module
from opnorm._core.layers import unwrap
from opnorm._core.weight_paths import INDEX, as_path, cause, check_there, in_folder, of_index
from opnorm.errors import ModelError, OpnormError, SpecError
from opnorm.models.state_dicts import fill, plain_state_dict, state_dicts_in

__all__ = [
    "SPEC_KEY",
    "file",
    "read_state_dicts",
    "recorded_call",
    "records_network",
    "save",
]

SPEC_KEY = "opnorm.model"
"""Metadata entry of a safetensors file: the call that builds the network the weights belong to."""


READERS = ("file", "hf")
"""The networks whose weights are read."""

_networks: "weakref.WeakKeyDictionary[nn.Module, spec.Call]" = weakref.WeakKeyDictionary()
"""The call of a network alone, without the weights that it was filled with."""


@spec.factory("model")
def file(
    path: str | Path, arch: nn.Module | None = None, key: str | None = None, strict: bool = True
) -> nn.Module:
    """A network with the weights of a file: ``file("weights.safetensors", arch=resnet(depth=20))``.

    The state dict is found in a checkpoint by its names, whatever holds it ("state_dict", "model", "ema", ...) and whatever
    prefixes its names have (``torch.compile``, ``DataParallel``, Lightning, timm). Beside an average the plain weights are
    taken, with a warning.

    Tied weights may stand in the file under one of their names, and weight and spectral normalization under the names of
    either of torch's two styles.

    Args:
        path: a ``.safetensors`` file; a file of ``torch.save``, which is read without unpickling anything but tensors; an
            index of shards, ``model.safetensors.index.json``; or a folder of the hub that has one of them.
        arch: the network to fill; not needed for files that opnorm wrote, which record it.
        key: the place of the state dict in the file, where several fit: "state_dict_ema".
        strict: False also takes weights some of whose names are missing or left over, with a warning.

    Raises:
        ModelError: no such file, a damaged one, no ``arch`` where it is needed, or weights of another network, integer or
            complex ones included.
    """
    found, metadata = read_state_dicts(path)
    if arch is None:
        arch = _recorded_network(path, metadata, found)
    if not isinstance(arch, nn.Module):
        raise ModelError(f"arch={arch!r:.60}: expected a network, such as arch=resnet(depth=20)")
    fill(arch, found, path, key, strict)
    if arch not in _networks:
        with suppress(SpecError):
            _networks[arch] = spec.spec_of(arch)
    return arch


def recorded_call(path: str | Path, metadata: dict[str, str]) -> spec.Call:
    """The call of the network that a weights file records; ModelError unless opnorm's own networks are all that it names.

    So the file chooses neither code nor other files. Where it records weights of a further file, those of this one take
    their place, and the call is that of the network alone.
    """
    if SPEC_KEY not in metadata:
        raise ModelError(f"{path} does not record its network; pass arch=..., such as arch=resnet(depth=20)")
    try:
        recorded = call = spec.parse(metadata[SPEC_KEY])
    except SpecError as e:
        raise ModelError(f"{path} records no network that can be read: {e}; pass arch=... to build it") from e
    while call.name in READERS and isinstance(inner := dict(call.kwargs).get("arch"), spec.Call):
        call = inner
    if not {part.name for part in spec.calls_in(call)} <= {*spec.names("model")} - {*READERS}:
        raise ModelError(
            f"{path} records the network {recorded!s:.200}, which is not opnorm's own; pass arch=... to build it"
        )
    return call


def records_network(path: str | Path) -> bool:
    """Whether ``file(path)`` needs no ``arch``: the file records one of opnorm's networks."""
    try:
        recorded_call(path, read_state_dicts(path)[1])
    except OpnormError:
        return False
    return True


def _recorded_network(
    path: str | Path, metadata: dict[str, str], found: dict[str, dict[str, Tensor]]
) -> nn.Module:
    call = recorded_call(path, metadata)
    try:
        with _no_larger_than(found, call, path):
            network = spec.build(call, "model")
    except SpecError as e:
        raise ModelError(
            f"{path} records a network that cannot be built: {e}; pass arch=... to build it"
        ) from e
    if not isinstance(network, nn.Module):
        raise ModelError(f"{path} records the network {call!s:.200}, which is no network")
    return network


@contextmanager
def _no_larger_than(found: dict[str, dict[str, Tensor]], call: spec.Call, path: str | Path) -> Iterator[None]:
    """A block that makes the network of these tensors: ModelError before one of many times their size takes all memory."""
    sizes = [tensor.numel() for state in found.values() for tensor in state.values()]
    left = {"tensors": 4 * len(sizes) + 1000, "elements": 4 * sum(sizes) + 100_000}
    refused = ModelError(
        f"{path} records the network {call!s:.200}, which is much larger than its weights; pass arch=... to build it "
        "all the same"
    )
    if any(number > left["elements"] for part in spec.calls_in(call) for number in _counts(part)):
        raise refused
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, made: Tensor | None) -> None:
        if made is None or threading.get_ident() != thread:
            return
        left["tensors"] -= 1
        left["elements"] -= made.numel()
        if min(left.values()) < 0:  # its values are not set yet, so that its memory is not in use
            raise refused

    registration = torch.nn.modules.module
    with (
        registration.register_module_parameter_registration_hook(count),
        registration.register_module_buffer_registration_hook(count),
    ):
        yield


def _counts(call: spec.Call) -> Iterator[int]:
    """The whole numbers of a call, such as widths and depths, but those of the images' shape."""
    waiting: list[Any] = [*call.args, *(value for name, value in call.kwargs if name != "in_shape")]
    while waiting:
        value = waiting.pop()
        if isinstance(value, tuple):
            waiting += value
        elif isinstance(value, int):
            yield value


def read_state_dicts(path: str | Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """The state dicts of a file by their places, and its metadata (empty but for safetensors). Only tensors are unpickled.

    Of an index of shards, or of a folder that has one, the tensors of all shards are one state dict.

    Raises:
        ModelError: no such file, or one that cannot be read, or holds no state dict.
    """
    path = as_path(path)
    if path.is_dir():
        path = in_folder(path)
    check_there(path)
    if path.name.endswith(INDEX):
        return {"": of_index(path, _of_shard)}, {}
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


def _of_shard(path: Path) -> dict[str, Tensor]:
    return {name: tensor for state in read_state_dicts(path)[0].values() for name, tensor in state.items()}


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
