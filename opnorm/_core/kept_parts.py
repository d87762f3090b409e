"""Parts of a long work that are kept when they end, so that an interrupted one loses at most the part under way.

    with kept_in(folder):               # by whoever owns a folder; without it nothing is written
        rows = analysis(model, data)    # which cuts its points into parts by in_parts

The same work done again in the same folder reads the parts that are there. A part is named by its place in the work and by
a hash of its inputs, and has a checksum; one that is damaged is made again, with a warning. What takes less time than
writing it is not kept.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opnorm._core import files
from opnorm._core.tensor_hash import add_tensor
from opnorm.errors import RunError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Place", "in_parts", "kept", "kept_in"]


class Place:
    """A folder of parts.

    Attributes:
        folder: made with its first part.
        least: seconds that a part takes to be kept.
        count: of the parts that the work has asked for.
        seconds: that those that were found had taken.
    """

    def __init__(self, folder: Path, least: float) -> None:
        self.folder, self.least, self.count, self.seconds = folder, least, 0, 0.0


_place: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def kept_in(folder: Path, least: float = 0.1) -> Iterator[Place]:
    """A block whose parts are written to a folder, and read where an interrupted one has left them."""
    place = Place(folder, least)
    token = _place.set(place)
    try:
        yield place
    finally:
        _place.reset(token)


def in_parts(function: "Callable[..., Tensor]", *tensors: "Tensor", size: int) -> "Tensor":
    """``function(*tensors)``, computed for ``size`` rows at a time, each of which is kept.

    The cut is the same whether anything is kept or not, and so are the numbers, to the bit.

    Args:
        function: of tensors with one row a point, to a tensor with one row a point.
        tensors: (B, ...).
        size: rows of a part.
    """
    import torch

    parts = zip(*(tensor.split(size) for tensor in tensors), strict=True)
    found = [kept(partial(_as_value, function, part), *part)["value"] for part in parts]
    return torch.cat([part.to(tensors[0].device) for part in found])


def _as_value(function: "Callable[..., Tensor]", part: "tuple[Tensor, ...]") -> dict[str, Any]:
    return {"value": function(*part)}


def kept(compute: Callable[[], dict[str, Any]], *inputs: "Tensor") -> dict[str, Any]:
    """``compute()``, or the same as an interrupted work has kept it, with its tensors on the device of the inputs.

    Args:
        compute: gives tensors, and plain values ready for JSON; the same whenever ``inputs`` and the work are the same.
        inputs: what the part is about.
    """
    place = _place.get()
    if place is None:
        return compute()
    path = place.folder / f"part-{place.count:06d}-{_digest(inputs)}.safetensors"
    place.count += 1
    if path.exists():
        try:
            tensors, metadata = files.read_tensors(path, checked=True)
            place.seconds += float(metadata["seconds"])
            device = inputs[0].device if inputs else None
            moved = {name: tensor.to(device) for name, tensor in tensors.items()}
            return {**json.loads(metadata["plain"]), **moved}
        except RunError as e:
            warnings.warn(f"{e}. It is made again", stacklevel=2)
    token = _place.set(None)  # a part has no parts: a part that is read asks for none
    started = time.perf_counter()
    try:
        value = compute()
    finally:
        _place.reset(token)
    if (seconds := time.perf_counter() - started) >= place.least:
        _write(path, value, seconds)
    return value


def _write(path: Path, value: dict[str, Any], seconds: float) -> None:
    import torch

    tensors = {k: v for k, v in value.items() if isinstance(v, torch.Tensor)}
    plain = json.dumps(
        {k: v for k, v in value.items() if k not in tensors}
    )  # with infinities, unlike files.to_json
    files.make_folder(path.parent)
    files.write_tensors(path, tensors, {"plain": plain, "seconds": f"{seconds:.6f}"})


def _digest(inputs: "tuple[Tensor, ...]") -> str:
    digest = hashlib.sha256()
    for tensor in inputs:
        add_tensor(digest, tensor)
    return digest.hexdigest()[:12]
