"""Weights in files: opnorm's own, which record their network, and state dicts of others."""

from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm.errors import ModelError, RunError, SpecError, did_you_mean

__all__ = ["SPEC_KEY", "file", "read_tensors", "save"]

SPEC_KEY = "opnorm.model"
"""Metadata entry of a safetensors file: the call that builds the network the weights belong to."""


@spec.factory("model")
def file(path: str, arch: nn.Module | None = None) -> nn.Module:
    """A network with the weights of a file: ``file("weights.safetensors", arch=resnet(depth=20))``.

    Args:
        path: a ``.safetensors`` file, or a ``.pt`` / ``.pth`` file holding a state dict, which is read without
            unpickling anything but tensors.
        arch: the network to fill; not needed for files that opnorm wrote, which record it.

    Raises:
        ModelError: no such file, a damaged one, no ``arch`` where it is needed, or weights of another network.
    """
    state, metadata = read_tensors(path)
    if arch is None:
        arch = _recorded_network(path, metadata)
    if not isinstance(arch, nn.Module):
        raise ModelError(f"arch={arch!r:.60}: expected a network, such as arch=resnet(depth=20)")
    _load(arch, state, path)
    return arch


def _recorded_network(path: str, metadata: dict[str, str]) -> nn.Module:
    if SPEC_KEY not in metadata:
        raise ModelError(f"{path} does not record its network; pass arch=..., such as arch=resnet(depth=20)")
    call = spec.parse(metadata[SPEC_KEY])
    if any("." in inner.name for inner in spec.calls_in(call)):  # a file must not choose the code to run
        raise ModelError(
            f"{path} records the network {call}, which is not opnorm's own; pass arch=... to run it"
        )
    network = spec.build(call, "model")
    if not isinstance(network, nn.Module):
        raise ModelError(f"{path} records the network {call}, which is no network")
    return network


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata (empty for .pt files). Nothing is unpickled but tensors.

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        siblings = [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, siblings, f"searched in {path.parent.resolve()}")
        raise ModelError(f"no file {path}{hint}")
    if path.suffix == ".safetensors":
        try:
            return files.read_tensors(path)
        except RunError as e:
            raise ModelError(str(e)) from e
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise ModelError(
            f"{path} cannot be read as weights: {(str(e) or type(e).__name__).splitlines()[0]}; "
            "truncated, or of another format?"
        ) from e
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ModelError(
            f"{path} has a {type(loaded).__name__}, expected a state dict of tensors; save model.state_dict()"
        )
    return {k.removeprefix("module."): v for k, v in state.items()}, {}


def _load(arch: nn.Module, state: dict[str, Tensor], path: str) -> None:
    own = arch.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [
        f"{k} is {tuple(state[k].shape)}, expected {tuple(v.shape)}"
        for k, v in own.items()
        if k in state and state[k].shape != v.shape
    ]
    if missing or extra or wrong:
        parts = [f"missing {_some(missing)}"] * bool(missing) + [f"unexpected {_some(extra)}"] * bool(extra)
        raise ModelError(
            f"{path} has the weights of another network than arch: {'; '.join(parts + wrong[:3])}"
        )
    arch.load_state_dict(state)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def save(model: nn.Module, path: str | Path, call: str | spec.Call | None = None) -> None:
    """Write weights as safetensors, with the call that rebuilds the network, so that ``file(path)`` needs no ``arch``.

    Args:
        model: any network.
        path: a ``.safetensors`` file.
        call: the call that builds the network; not needed for a network of one of opnorm's factories.

    Raises:
        ModelError: the name ends in something else.
        RunError: the file cannot be written.
    """
    if Path(path).suffix != ".safetensors":
        raise ModelError(f"{path}: expected a name that ends in .safetensors")
    if call is None:
        with suppress(SpecError):  # the user's own network, built in Python: the file then needs arch=...
            call = spec.spec_of(model)
    metadata = {"format": "pt"} | ({SPEC_KEY: str(call)} if call is not None else {})
    files.write_tensors(Path(path), model.state_dict(), metadata)
