"""What identifies a network: a hash of all that it is, and its outputs for fixed inputs; and a hash of a data set."""

import hashlib
import inspect
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

import opnorm
from opnorm import spec
from opnorm._core.modes import model_state_preserved
from opnorm._core.outputs import output_of
from opnorm._core.tensor_hash import add_tensor
from opnorm.data import Dataset
from opnorm.data.streaming import StreamedImages
from opnorm.errors import SpecError
from opnorm.runs.identity import hash_of, identity, sources

__all__ = ["data_identity", "network_identity", "outputs"]


def network_identity(model: nn.Module) -> str:
    """A hash of a network: its text, attributes, weights and buffers; the user's code in it and arguments of that."""
    digest = hashlib.sha256(repr(model).encode())
    modules: set[str] = set()
    for name, part in model.named_modules():
        values = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
        digest.update(json.dumps([name, {k: v for k, v in sorted(values.items()) if _is_plain(v)}]).encode())
        for value in values.values():
            if isinstance(value, Tensor):
                add_tensor(digest, value)
        functions = [value for value in values.values() if isinstance(value, FunctionType)]
        modules |= {thing.__module__ for thing in (*type(part).__mro__, *functions)}
        digest.update(_written_here(type(part)).encode())
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        add_tensor(digest, tensor)
    call = None
    with suppress(SpecError):  # made in Python, not by a call
        made = spec.full(spec.spec_of(model))
        if any("." in part.name for part in spec.calls_in(made)):  # all of opnorm's own is in what precedes
            call = identity(made)
    return hash_of(digest.hexdigest(), sources(modules), call, opnorm.__version__)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _written_here(kind: type) -> str:
    """The source of a class of an interactive session, which has no file."""
    if kind.__module__ != "__main__" or hasattr(sys.modules["__main__"], "__file__"):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return ""


def data_identity(data: Dataset) -> str:
    """A hash of all images and labels; of streamed images, of the files that hold them."""
    digest = hashlib.sha256()
    for images, labels in (data.train, data.test):
        if isinstance(images, StreamedImages):
            digest.update(images.fingerprint().encode())
        else:
            add_tensor(digest, images)
        add_tensor(digest, labels)
    return digest.hexdigest()


def outputs(model: nn.Module, in_shape: Sequence[int]) -> list[list[float]] | None:
    """The outputs of a network for four fixed inputs in [0, 1]; None where they are random."""
    like = next(model.parameters(), torch.zeros((), dtype=torch.float32))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, *in_shape, dtype=torch.float32, generator=generator).to(like)
    with model_state_preserved(model), torch.no_grad():
        first, second = output_of(model, images), output_of(model, images)
    rows = [[float(v) for v in row] for row in first.double().flatten(1)]
    return rows if torch.equal(first.nan_to_num(), second.nan_to_num()) else None
