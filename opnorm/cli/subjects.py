"""Networks as the commands name them: by a call, or by a run's key or folder."""

import os
from pathlib import Path
from typing import Any

from opnorm.errors import OpnormError, SpecError

__all__ = ["data_of", "network_and_data", "results_folder", "run_folder"]


def results_folder(models: tuple[str, ...], out: Path | None) -> Path:
    """The folder of runs whose results these are: ``out``, or where the first run is that is named by its folder."""
    found = next(
        (Path(os.path.abspath(m)).parent for m in models if os.path.isfile(Path(m) / "run.json")), None
    )
    if out or not found:
        return out or Path("runs")
    return found.relative_to(Path.cwd()) if found.is_relative_to(Path.cwd()) else found


def run_folder(model: str, out: Path) -> Path | None:
    """Where a run is, should the text be its folder or its key; OpnormError where it has no weights yet."""
    places = (Path(model), out / model, out / f"{model}.partial")
    folder = next((f for f in places if os.path.isfile(f / "run.json")), None)
    if folder is not None and not (folder / "weights.safetensors").exists():
        raise OpnormError(
            f"run {model} has not been trained to its end (see opnorm ls --out {out}); "
            "the command that began it goes on with it"
        )
    return folder


def data_of(model: str, out: Path) -> str:
    """The data set of a run, as a call; OpnormError where the text is no run."""
    from opnorm.runs.store import Store

    folder = run_folder(model, out)
    if folder is None:
        _check_network(model, out)
        raise OpnormError(
            f"{model} is no run in {out} (see opnorm ls --out {out}), and a network does not say which data it is for; "
            "add --data, such as --data 'digits()'"
        )
    return str(Store(out).read(folder)["run"]["data"])


def network_and_data(model: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network, from a call or from a run, and a data set that it was checked against."""
    from opnorm.data.dataset import as_pixels
    from opnorm.runs.build import check_model, make_data, make_model, restore
    from opnorm.runs.run import Run
    from opnorm.runs.store import Store

    folder = run_folder(model, out)
    if folder is None:
        _check_network(model, out)
        run = Run(model, data)
        dataset = make_data(run)
        return make_model(run, dataset), dataset
    run = Run.from_dict(Store(out).read(folder)["run"])
    network, dataset = restore(run, folder), make_data(Run(run.model, data))
    check_model(network, as_pixels(dataset.test.images[:1]), dataset.num_classes, f"run {model}")
    return network, dataset


def _check_network(text: str, out: Path) -> None:
    """OpnormError where a text that is no run names no network either."""
    from opnorm import spec

    try:
        spec.resolve(spec.parse(text), "model")
    except SpecError as e:
        raise OpnormError(
            f"{text} is no run in {out} (see opnorm ls --out {out}), and no network: {e}"
        ) from e
