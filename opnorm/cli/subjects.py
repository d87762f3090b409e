"""Networks as the commands name them: by a call, or by a run's key or folder."""

import os
from pathlib import Path
from typing import Any

from opnorm.errors import OpnormError, SpecError

__all__ = ["data_of", "network_and_data", "results_folder", "run_folder", "run_of", "trust_runs"]


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


def run_of(folder: Path) -> Any:
    """The run of a folder; RunError where it calls own modules as this user never has, see :mod:`opnorm.runs.trust`."""
    from opnorm.runs.run import Run
    from opnorm.runs.store import Store
    from opnorm.runs.trust import check_trusted

    settings = Store(folder.parent).read(folder).get("run")
    if not isinstance(settings, dict):
        raise OpnormError(f"{folder / 'run.json'} has no settings of a run; was it edited by hand?")
    check_trusted(settings, folder)
    return Run.from_dict(settings)


def trust_runs(models: tuple[str, ...], out: Path) -> None:
    """Let the folders of these runs call own modules."""
    from opnorm._core.files import read_json
    from opnorm.runs.trust import trust

    for folder in (run_folder(model, out) for model in models):
        settings = read_json(folder / "run.json").get("run") if folder else None
        if isinstance(settings, dict):
            trust(settings)


def data_of(model: str, out: Path) -> str:
    """The data set of a run, as a call; OpnormError where the text is no run."""
    folder = run_folder(model, out)
    if folder is None:
        _check_network(model, out)
        raise OpnormError(
            f"{model} is no run in {out} (see opnorm ls --out {out}), and a network does not say which data it is for; "
            "add --data, such as --data 'digits()'"
        )
    return str(run_of(folder).data)


def network_and_data(model: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network, from a call or from a run, and a data set that it was checked against."""
    from opnorm.data.dataset import as_pixels
    from opnorm.runs.build import check_model, make_data, make_model, restore
    from opnorm.runs.run import Run

    folder = run_folder(model, out)
    if folder is None:
        _check_network(model, out)
        run = Run(model, data)
        dataset = make_data(run)
        return make_model(run, dataset), dataset
    run = run_of(folder)
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
