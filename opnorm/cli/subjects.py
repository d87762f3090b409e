"""Networks as the commands name them: by a call, or by one of the names of a run."""

import os
import re
import shlex
from pathlib import Path
from typing import Any, cast

from opnorm._core.files import shown
from opnorm._core.weight_paths import ADAPTER
from opnorm.cli.call_checks import check_call
from opnorm.errors import OpnormError, RunError, SpecError

__all__ = [
    "MisnamedError",
    "check_network",
    "check_subject",
    "choose",
    "data_of",
    "is_weights",
    "named_run",
    "network_and_data",
    "network_of_run",
    "no_run",
    "results_folder",
    "run_folder",
    "run_of",
    "run_of_path",
    "trust_runs",
]

WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".index.json")
"""How the names of files of weights end."""

LEAST = 3  # digits of a key that are enough to name it
KEY = re.compile(r"[0-9a-z.]+")  # a key, or the beginning of one


def results_folder(models: tuple[str, ...], out: Path | None) -> Path:
    """The folder of runs whose results these are: ``out``, or where the first run is that is named by a path."""
    found = next((folder.parent for folder in map(run_of_path, models) if folder), Path("runs"))
    return Path(os.path.abspath(out or found))


def named_run(text: str, out: Path) -> Path | None:
    """The folder of a run by any of its names; None where the text is none.

    Its key, or the first three digits or more of it; its folder, or a file there; and ``file("...")`` of its weights.

    Raises:
        OpnormError: several keys begin so, or fewer digits are given.
    """
    if folder := run_of_path(text):
        return folder
    if not KEY.fullmatch(text):
        return None
    from opnorm.runs.store import Store

    return choose(text, {f.name.removesuffix(".partial"): f for f in Store(out).folders()}, out)


def no_run(text: str, out: Path) -> OpnormError:
    """The error where a text names no run."""
    return OpnormError(f"{text} is no run in {shown(out)}; opnorm ls --out {shown(out)} lists them")


def run_of_path(text: str) -> Path | None:
    """The folder of a run that a path leads to, or ``file("...")`` of its weights."""
    from opnorm import spec

    path = Path(text)
    if text.startswith("file("):
        try:
            call = spec.parse(text)
        except SpecError:
            return None
        given = (*call.args, *(value for name, value in call.kwargs if name == "path"))
        alone = len(given) == len(call.args) + len(call.kwargs) == 1 and isinstance(given[0], str)
        path = Path(str(given[0])) if alone else Path()
        if path.name != "weights.safetensors":
            return None
    folder = path.parent if os.path.isfile(path) else path
    return Path(os.path.abspath(folder)) if os.path.isfile(folder / "run.json") else None


def choose(text: str, folders: dict[str, Path], out: Path) -> Path | None:
    """The folder of the key that a text is, or begins, of those in ``out``; None where there is none.

    Raises:
        OpnormError: several keys begin so, or fewer than three digits are given.
    """
    key = text.removesuffix(".partial")
    if key in folders:
        return folders[key]
    found = sorted(name for name in folders if key and name.startswith(key))
    if found and len(key) < LEAST:
        raise OpnormError(
            f"{text} is too short for the beginning of a key; expected {LEAST} digits or more, such as {found[0][:LEAST]}"
        )
    if len(found) > 1:
        raise OpnormError(
            f"{text} is the beginning of several keys in {shown(out)}: {', '.join(found)}; name one of them"
        )
    return folders[found[0]] if found else None


def run_folder(model: str, out: Path) -> Path | None:
    """Where a run is, should the text name one; OpnormError where it has not been trained to its end."""
    from opnorm.runs.damage import train_command

    folder = named_run(model, out)
    if folder and folder.name.endswith(".partial") and not (folder / "weights.safetensors").exists():
        key, again = folder.name.removesuffix(".partial"), train_command(_settings(folder), folder.parent)
        raise OpnormError(f"run {key} has not been trained to its end; this goes on with it: {again}")
    return folder


def _settings(folder: Path) -> dict[str, Any]:
    from opnorm.runs.store import Store

    settings = Store(folder.parent).read(folder).get("run")
    if not isinstance(settings, dict):
        raise RunError(f"{shown(folder)} is no run of opnorm train: its run.json has no settings of a run")
    return settings


def run_of(folder: Path) -> Any:
    """The run of a folder.

    Raises:
        RunError: it is damaged, or calls own modules as this user never has, see :mod:`opnorm.runs.trust`.
    """
    from opnorm.runs.damage import check_whole
    from opnorm.runs.run import Run
    from opnorm.runs.trust import check_trusted

    settings = _settings(folder)
    check_whole(folder)
    check_trusted(settings, folder)
    return Run.from_dict(settings)


def trust_runs(models: tuple[str, ...], out: Path) -> None:
    """Let the folders of these runs call own modules."""
    from opnorm.runs.trust import trust

    for folder in (run_folder(model, out) for model in models):
        if folder:
            trust(_settings(folder))


def data_of(model: str, out: Path) -> str:
    """The data set of a run, as a call; OpnormError where the text is no run."""
    check_subject(model, None, out)
    return str(run_of(cast(Path, run_folder(model, out))).data)


def network_of_run(folder: Path) -> tuple[Any, tuple[int, ...]]:
    """The network of a run, and the shape of its images."""
    from opnorm.runs.build import restore
    from opnorm.runs.store import Store

    network = restore(run_of(folder), folder)
    return network, tuple(Store(folder.parent).read(folder)["known"]["in_shape"])


def network_and_data(model: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network, from a call or from a run, and a data set that it was checked against."""
    from opnorm.data.dataset import as_pixels
    from opnorm.runs.build import make_data, make_model, restore
    from opnorm.runs.run import Run
    from opnorm.training.setup_checks import check_model

    folder = run_folder(model, out)
    if folder is None:
        check_network(model, out)
        run = Run(model, data)
        dataset = make_data(run)
        return make_model(run, dataset), dataset
    run = run_of(folder)
    network, dataset = restore(run, folder), make_data(Run(run.model, data))
    check_model(network, as_pixels(dataset.test.images[:1]), dataset.num_classes, f"run {folder.name}")
    return network, dataset


def check_subject(model: str, data: str | None, out: Path) -> None:
    """OpnormError where a text is neither a run nor a network, or the data set is none, or is not known; without torch."""
    if data is not None:
        check_call(data, "data set")
    if run_folder(model, out) is not None:
        return
    check_network(model, out)
    if data is None:
        raise OpnormError(
            f"{model} is no run in {shown(out)} (see opnorm ls --out {shown(out)}), and a network does not say "
            "which data it is for; add --data, such as --data 'digits()'"
        )


def check_network(text: str, out: Path) -> None:
    """OpnormError where a text that is no run names no network either."""
    from opnorm import spec

    try:
        call = spec.parse(text)
        spec.check_name(call, "model")
    except SpecError as e:
        if os.path.exists(text) or is_weights(text):
            raise _misnamed(text) from e
        raise OpnormError(
            f"{text} is no run in {shown(out)} (see opnorm ls --out {shown(out)}), and no network: {e}"
        ) from e
    check_call(call, "model")


class MisnamedError(OpnormError):
    """A file in the place of a network.

    Attributes:
        given: the text.
        meant: the call that may be meant by it.
    """

    def __init__(self, why: str, given: str, meant: str) -> None:
        super().__init__(why)
        self.given, self.meant = given, meant

    def corrected(self, args: list[str]) -> str:
        """The command with the call in the place of the text, and with data where it needs them and has none."""
        args = [
            self.meant.join(arg.rsplit(self.given, 1)) if arg.endswith(self.given) else arg for arg in args
        ]
        if args[0] in ("attack", "analyze") and not any(arg.startswith("--data") for arg in args):
            args += ["--data", "digits()"]
        return shlex.join(["opnorm", *args])


def _misnamed(text: str) -> OpnormError:
    if not os.path.exists(text):
        why = f"{text} is no run, and there is no such file; expected a run, or a network as a call, such as"
        return MisnamedError(why, text, f'file("{text}")')
    if text.endswith(".py"):
        why = f"{text} is no run; a network of this module is a call of the function that returns it, such as"
        return MisnamedError(why, text, f"{Path(text).stem}.build()")
    folder = text if os.path.isdir(text) else os.path.dirname(text) or "."
    if os.path.exists(os.path.join(folder, ADAPTER)):
        return OpnormError(
            f"{text} is a low-rank adapter, without the network that it changes; merge the two (peft: merge_and_unload()) "
            "in a function that returns the network, and name it as a call, such as my_package.models.build(); what the "
            f"adapter changes is measured by opnorm norms BASE --against {folder}"
        )
    if os.path.isdir(text) and not any(name.lower().endswith(WEIGHTS) for name in os.listdir(text)):
        runs = sorted(path.parent.name for path in Path(text).glob("*/run.json"))
        if runs:
            some = os.path.join(text, runs[0])
            return OpnormError(
                f"{text} is a folder of runs, not one of them; expected one, such as {shown(Path(some))}"
            )
        return OpnormError(
            f"{text} is a folder without a run and without weights; expected one of them, or a network as a call"
        )
    if is_weights(text):
        from opnorm.models.loading import records_network

        if records_network(text):
            why = f"{text} is a file of weights, not a run; the network that it records is a call"
            return MisnamedError(why, text, f'file("{text}")')
        why = f"{text} has weights without their network, and is no run; add that, as it was trained, such as"
        return MisnamedError(why, text, f'file("{text}", arch=resnet(depth=20))')
    why = f"{text} is no run; expected a run, or a network as a call, such as"
    return MisnamedError(why, text, 'file("weights.safetensors")')


def is_weights(text: str) -> bool:
    """Whether a text names a file or folder of weights, there or not, rather than a call, a run or a key."""
    if "(" in text:
        return False
    folder = Path(text)
    if folder.is_dir():
        return not (folder / "run.json").exists()
    return text.lower().endswith(WEIGHTS)
