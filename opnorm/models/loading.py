"""Weights in files: the project's own and other people's."""

import difflib
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

from opnorm import spec
from opnorm._core import files
from opnorm.errors import ModelError, RunError, SpecError

__all__ = ["SPEC_KEY", "file", "read_tensors", "save"]

SPEC_KEY = "opnorm.model"
"""Metadata entry of a safetensors file: the call that builds the network the weights belong to."""


@spec.factory("model")
def file(path: str, arch: nn.Module | None = None) -> nn.Module:
    """A network with the weights of a file: ``file("weights.safetensors", arch=resnet(depth=20))``.

    Args:
        path: a ``.safetensors`` file, or a ``.pt`` / ``.pth`` file holding a state dict, which is read without
            unpickling anything but tensors.
        arch: the network to fill; may be left out for files that opnorm wrote, which say what they belong to.

    Raises:
        ModelError: no such file, a damaged one, no ``arch`` where it is needed, or weights of another network.
    """
    state, metadata = read_tensors(path)
    if arch is None:
        if SPEC_KEY not in metadata:
            raise ModelError(
                f"{path} does not say which network it belongs to; pass arch=..., such as arch=resnet(depth=20)"
            )
        call = spec.parse(metadata[SPEC_KEY])
        if any(
            "." in inner.name for inner in spec.calls_in(call)
        ):  # a file must not choose which code is run
            raise ModelError(
                f"{path} says that it belongs to {call}, which is not opnorm's own; pass arch=... if you trust it"
            )
        arch = spec.build(call, "model")
        if not isinstance(arch, nn.Module):
            raise ModelError(f"{path} says that it belongs to {call}, which is no network")
    if not isinstance(arch, nn.Module):
        raise ModelError(f"arch={arch!r:.60}: expected a network, such as arch=resnet(depth=20)")
    _load(arch, state, path)
    return arch


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file and its metadata (empty for .pt files). Nothing is unpickled but tensors.

    Raises:
        ModelError: no such file, or one that cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(
            path.name, [p.name for p in path.parent.glob("*")] if path.parent.is_dir() else [], 1
        )
        raise ModelError(
            f"no file {path}"
            + (f"; did you mean {near[0]!r}?" if near else f" (looked in {path.parent.resolve()})")
        )
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
            f"{path} holds {type(loaded).__name__}, not a state dict of tensors; save model.state_dict()"
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
        parts = (
            [f"missing {_some(missing)}"] * bool(missing)
            + [f"not wanted {_some(extra)}"] * bool(extra)
            + wrong[:3]
        )
        raise ModelError(f"{path} holds the weights of another network than arch: {'; '.join(parts)}")
    arch.load_state_dict(state)


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def save(model: nn.Module, path: str | Path, call: str | spec.Call | None = None) -> None:
    """Write weights as safetensors, with the call that rebuilds the network, so that ``file(path)`` needs no ``arch``.

    Args:
        model: any network.
        path: a ``.safetensors`` file.
        call: what builds the network; found by itself when one of opnorm's factories made it.

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
