"""``opnorm doctor``: what this installation and this machine can do, and what is missing."""

import importlib.metadata
import importlib.util
import os
from pathlib import Path
from typing import Any

from opnorm._core.caching import cache_folder
from opnorm.cli.options import Json, print_json
from opnorm.cli.torch_loading import load_torch

__all__ = ["doctor"]

CORE = ("numpy", "scipy", "safetensors", "pyarrow", "altair", "rich", "tyro")
OPTIONAL = {
    "timm": ("opnorm[timm]", 'the models of timm as timm("name")'),
    "huggingface_hub": ("opnorm[hub]", 'data sets and weights of the Hugging Face hub as hf("name")'),
    "ray": ("opnorm[ray]", "studies on several machines"),
    "tensorboard": ("opnorm[tensorboard]", "curves while a network trains, with --track tensorboard"),
    "torchattacks": ("opnorm[interop]", "its attacks inside opnorm's evaluation, and the way back"),
    "foolbox": ("opnorm[interop]", "its attacks inside opnorm's evaluation, and the way back"),
}
"""Optional packages: how they are installed, and what each gives."""


def doctor(json: Json = False) -> None:
    """Versions, devices, instruction sets, threads, memory, and what is missing and what it would give.

    Nothing is changed. The output is what a report of an error needs.

    opnorm doctor

    opnorm doctor --json
    """
    found = _found()
    if json:
        return print_json(found)
    for name, value in found["about"].items():
        if value != "":
            print(f"{name:<18} {value}")
    print(f"{'bfloat16':<18} {_bf16(found['devices'])}")
    for device in found["devices"]:
        print(f"{'device':<18} {device['name']}: {device['what']}")
    print(f"{'memory':<18} {found['memory'] or 'not known'}")
    print(f"{'runs':<18} {found['runs']['folder']}: {found['runs']['what']}")
    print(f"{'cache of data':<18} {found['cache']['folder']}: {found['cache']['what']}")
    print()
    for name, row in found["optional"].items():
        print(f"{name:<18} {row['version'] or 'missing'}: {row['gives']}" + _how_to_get(row))
    return None


def _how_to_get(row: dict[str, Any]) -> str:
    return "" if row["version"] else f"; pip install '{row['extra']}'"


def _found() -> dict[str, Any]:
    load_torch()

    from opnorm._core.machine import about
    from opnorm._core.memory import available_memory, gigabytes

    versions = {name: importlib.metadata.version(name) for name in CORE}
    memory = available_memory()
    machine = {name: value for name, value in about().items() if name != "device"}
    optional = {
        name: {"version": _version(name), "extra": extra, "gives": gives}
        for name, (extra, gives) in OPTIONAL.items()
    }
    return {
        "about": machine | {"packages": ", ".join(f"{name} {version}" for name, version in versions.items())},
        "devices": _devices(),
        "memory": None if memory is None else f"{gigabytes(memory)} available",
        "runs": _folder(Path("runs"), "*/run.json", "run"),
        "cache": _folder(cache_folder(), "*.safetensors", "data set"),
        "optional": optional,
    }


def _version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    if importlib.util.find_spec(name) is None:
        return None
    return importlib.metadata.version(name)


def _devices() -> list[dict[str, Any]]:
    """What torch can compute on, and whether it multiplies in bfloat16."""
    import torch

    from opnorm._core.surrogate import has_bf16

    found = [("cpu", "always there")]
    found += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(("mps", "the GPU of this Mac"))
    return [{"name": name, "what": what, "bf16": has_bf16(torch.device(name))} for name, what in found]


def _bf16(devices: list[dict[str, Any]]) -> str:
    """Where bfloat16 is in the hardware, and what that means."""
    able = [device["name"] for device in devices if device["bf16"]]
    rest = [device["name"] for device in devices if not device["bf16"] and device["name"] != "mps"]
    parts = [f"in hardware on {', '.join(able)}: --precision bf16 is faster there"] * bool(able)
    parts += [
        f"emulated on {', '.join(rest)}: --precision bf16 is several times slower there than fp32"
    ] * bool(rest)
    return "; ".join(parts)


def _folder(folder: Path, pattern: str, what: str) -> dict[str, Any]:
    """A folder, how many things are in it, and whether it can be written."""
    place = Path(os.path.abspath(folder))
    there = next(p for p in (place, *place.parents) if p.is_dir())
    count = sum(1 for _ in place.glob(pattern)) if place.is_dir() else 0
    text = f"{count} {what}{'' if count == 1 else 's'}"
    if not os.access(there, os.W_OK):
        text += f", and {there} cannot be written"
    return {"folder": str(place), "count": count, "what": text}
