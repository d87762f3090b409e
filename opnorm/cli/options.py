"""What the commands share: options, and what is read from them and printed."""

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from opnorm.cli.marks import Help
from opnorm.errors import OpnormError, did_you_mean

if TYPE_CHECKING:
    from opnorm.spec import Call

_MODEL = (
    "a network as a call: 'resnet(depth=20)', 'file(\"weights.safetensors\", arch=cnn())', "
    "'my_package.models.build(64)'"
)
_DATA = (
    "a data set as a call: 'digits()', 'parquet(\"folder\")', 'hf(\"uoft-cs/cifar10\")', 'folder(\"path\")'"
)
_RUN = "a run: its key (see opnorm ls), the first 3 digits of it or more, its folder, or a file in that"

Model = Annotated[str, Help(_MODEL, "model")]
ModelOrRun = Annotated[str, Help(f"{_MODEL}; or {_RUN}", "model")]
ModelsOrRuns = Annotated[
    tuple[str, ...], Help(f"each {_MODEL}; or {_RUN}; name=MODEL names it on the page", "model")
]
ModelRunOrWeights = Annotated[
    str,
    Help(
        f"{_MODEL}; or {_RUN}; or weights without their model: a .safetensors or .pt file, also one of a run, an "
        "index of shards, a folder of the hub or of a LoRA adapter",
        "model",
    ),
]
RunName = Annotated[str, Help(_RUN)]
RunNames = Annotated[tuple[str, ...], Help(f"each {_RUN}; or the key of an attack")]
Data = Annotated[str, Help(_DATA, "data set")]
DataOfRun = Annotated[str | None, Help(_DATA + "; that of the run when left out", "data set")]

Runs = Annotated[Path, Help("folder of runs; what is finished there is found and not run again")]
Results = Annotated[
    Path | None,
    Help("folder of runs; results are kept in it, and found again; that of the run, or runs, when left out"),
]
SkipBad = Annotated[
    bool,
    Help(
        "leave out images that cannot be decoded and say which they are: skip_bad=True in the call of the data"
    ),
]
Limit = Annotated[int | None, Help("use at most so many training and test points")]
DEVICES = ("cpu", "cuda", "mps")
OTHER_DEVICES = (
    "hip", "hpu", "ipu", "lazy", "maia", "meta", "mtia", "privateuseone", "ve", "vulkan", "xla", "xpu",
)  # fmt: skip
"""Further kinds that torch has names for."""
Device = Annotated[str, Help("cpu, cuda, cuda:1, mps")]
Again = Annotated[bool, Help("make everything anew, also what is kept")]
Track = Annotated[
    tuple[str, ...],
    Help("trackers that also get the metrics: tensorboard, trackio, wandb, a module with init, log, finish"),
]
Trust = Annotated[
    bool,
    Help("run the code of own modules that the folder of a run from elsewhere names; read it before"),
]
Figures = Annotated[Literal["svg", "pdf", "png"] | None, Help("also write every figure in this format")]
Json = Annotated[bool, Help("print the result as JSON on standard output")]


def number(option: str, text: str) -> Any:
    """The number that an option gives, such as 8/255."""
    from opnorm import spec

    try:
        ((_, value),) = spec.parse(f"number(it={text})").kwargs
    except (OpnormError, ValueError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OpnormError(f"{option} {text!r}: expected a number, such as 8/255, 0.5, 2 or inf")
    return value


def with_options(call: "Call", **given: Any) -> "Call":
    """The call with the values of options that are given; OpnormError for one that it has itself."""
    for name, value in call.kwargs:
        if given.get(name) is not None:
            raise OpnormError(f"--{name} and {name}={value} in {call!s:.80}: expected one of the two")
    return call.with_arguments(**given)


def skipping_bad(data: str, skip_bad: bool) -> str:
    """The call of a data set, with ``skip_bad=True`` if the option says so."""
    from opnorm import spec

    call = spec.parse(data)
    if not skip_bad or dict(call.kwargs).get("skip_bad") is True:
        return data
    return str(call.with_arguments(skip_bad=True))


def absolute(path: Path | None) -> Path | None:
    """The path as it is meant in the user's folder, whatever the modules that are loaded later do to the working folder."""
    return None if path is None else Path(os.path.abspath(path))


def check_device_name(device: str) -> None:
    """OpnormError for what is no device on any machine; whether this one has it, :func:`check_device` says."""
    kind = device.partition(":")[0]
    known = kind in (*DEVICES, *OTHER_DEVICES) or _has_backends()
    if not known or not re.fullmatch(r"\w+(:\d+)?", device):
        raise OpnormError(
            f"--device {device}: no device{did_you_mean(kind, DEVICES)}; expected one that this machine has, such as cpu"
        )


def _has_backends() -> bool:
    """Whether a package is installed that brings torch further kinds of devices."""
    from importlib.metadata import entry_points

    return any(entry_points(group="torch.backends"))


def check_device(device: str) -> None:
    """OpnormError where torch cannot put anything on the device."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except Exception as e:  # torch raises whatever its backends do
        why = _why_no_device(device) or str(e).splitlines()[0].partition(". ")[0]
        raise OpnormError(f"--device {device}: {why}; expected one that this machine has, such as cpu") from e


def _why_no_device(device: str) -> str:
    """Why this machine has no such device; empty where it has one, which then fails for another reason."""
    import torch

    kind, _, index = device.partition(":")
    if kind not in DEVICES:
        return "no device" + did_you_mean(kind, DEVICES)
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[
        kind
    ]
    if not present:
        return f"torch finds no {kind.upper()} device on this machine"
    if index.isdecimal() and int(index) >= present:
        return f"torch finds {present} {kind.upper()} device(s) on this machine, the last is {kind}:{present - 1}"
    return "" if index.isdecimal() or device == kind else "no device"


def say_found(when: str) -> None:
    """Say that a result had been made before, on standard error; nothing where it is new."""
    if when:
        print(f"found, of {when}; --again makes it anew", file=sys.stderr)


def print_json(value: Any) -> None:
    """JSON for standard output, null for NaN and infinities; with escapes for what its encoding lacks."""
    from opnorm._core.files import to_json
    from opnorm._core.plain_text import is_unicode

    print(to_json(value, ascii_only=not is_unicode(sys.stdout.encoding)))
