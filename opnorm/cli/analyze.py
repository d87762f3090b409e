"""``opnorm analyze`` and ``opnorm compare``: one network, or several, on one page."""

import pkgutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import opnorm
from opnorm._core.files import shown
from opnorm.cli.call_checks import check_calls, check_folder, check_limit
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import (
    Again,
    DataOfRun,
    Device,
    Figures,
    Json,
    Limit,
    ModelOrRun,
    ModelsOrRuns,
    Results,
    SkipBad,
    Trust,
    check_device,
    check_device_name,
    print_json,
    skipping_bad,
)
from opnorm.cli.subjects import (
    check_network,
    check_subject,
    data_of,
    network_and_data,
    results_folder,
    run_folder,
    run_of,
    trust_runs,
)
from opnorm.cli.torch_loading import load_torch
from opnorm.errors import OpnormError

__all__ = ["ANALYSES", "analyze", "compare"]

ANALYSES = sorted(
    module.name.removeprefix("_")
    for module in pkgutil.iter_modules([str(Path(opnorm.__file__).parent / "analyses")])
    if not module.ispkg
)
"""The names of the modules: importing them would load torch before ``--help`` can answer."""

IN_THE_LABEL = ("objective", "regularizers", "ema", "analyses")
"""Settings of a run that its label has, and those that its network does not depend on."""

WHAT = (
    "analyses as names or calls, such as accuracy 'norm_table(ords=(2,))'; all means every one: "
    + ", ".join(ANALYSES)
)


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of both commands."""

    data: DataOfRun = None
    what: Annotated[tuple[str, ...], Help(WHAT)] = ("all",)
    points: int | None = None
    """test points of each analysis that takes a sample of them, in place of its own default"""
    limit: Limit = None
    skip_bad: SkipBad = False
    seed: int = 0  # of the choice of points and of attacks
    out: Results = None
    again: Again = False
    trust: Trust = False
    device: Device = "cpu"
    figures: Figures = None
    json: Json = False


Options = AnalyzeOptions


def analyze(model: Positional[ModelOrRun], options: Options = AnalyzeOptions()) -> None:
    """Apply every analysis of the papers to one trained network, on one page; the last line printed is the page's path.

    Accuracy and robustness, norms and singular values of the layers, margins, Jacobians and linear regions. After Ctrl-C,
    the same command finds the analyses that have ended and goes on. name=MODEL names the network on the page.

    opnorm analyze 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --points 100

    opnorm analyze 3f2a9c01d4e7 --what accuracy norm_table 'margins(split="train")'

    opnorm analyze 3f2a9c01d4e7 --what 'power_method_agreement(p=inf, q=1)'

    The last one is Theorem 1 of Roth et al. 2020: how far adversarial training is data-dependent operator norm
    regularization, on this network, as the radius grows.
    """
    _analyze((model,), options)


def compare(models: Positional[ModelsOrRuns], options: Options = AnalyzeOptions()) -> None:
    """Analyze several trained networks side by side, on one page; the last line printed is the page's path.

    Every network has the same color in all charts; the first one, the baseline, is black. name=MODEL names a network;
    without a name, a run is called by its way of training and, where that is another's too, by the settings in which they
    differ. Results of opnorm analyze are found again.

    opnorm compare 'plain=file("plain.safetensors")' 'adversarial=file("pgd_at.safetensors")' --data 'parquet("cifar10")'

    opnorm compare 3f2a9c01d4e7 a01bb3e5c2f8 --what norm_table singular_spread margins
    """
    if len(models) < 2:
        raise OpnormError(
            f"{len(models)} network to compare; expected two or more, or opnorm analyze for one"
        )
    _analyze(models, options)


def _analyze(models: tuple[str, ...], options: AnalyzeOptions) -> None:
    o = options
    named = [_named(text) for text in models]
    out = results_folder(tuple(model for _, model in named), o.out)
    _check(o, [model for _, model in named], out)
    load_torch()

    from opnorm.cli.progress import AnalyzeBar
    from opnorm.runs.network_report import analysis_calls, analyze
    from opnorm.runs.store import Store

    calls = analysis_calls(o.what, points=o.points, seed=o.seed)
    check_device(o.device)
    if o.trust:
        trust_runs(tuple(model for _, model in named), out)
    data = _data_of_all([model for _, model in named], out) if o.data is None else o.data
    data = skipping_bad(data, o.skip_bad)
    found = [_network(label, model, data, out) for label, model in named]
    networks, dataset = _told_apart([(network, run) for network, run, _ in found]), found[0][2]
    for network in networks:
        network.model.to(o.device).eval()
    store = Store(out / "analyses", again=o.again)
    with AnalyzeBar("all analyses") as progress:
        dataset = dataset if o.limit is None else dataset.limit(o.limit)
        report = analyze(networks, dataset, calls, store=store, progress=progress)
    page = shown(report.write(store.root / report.name, o.figures))
    if o.json:
        print_json({"page": str(page), "networks": report.as_dict()})
    else:
        print(page)


def _check(o: AnalyzeOptions, models: list[str], out: Path) -> None:
    """OpnormError for what is wrong with the arguments, before anything is loaded."""
    check_calls((text for text in o.what if text != "all"), "analysis")
    check_folder(out)
    check_limit(o.limit)
    check_device_name(o.device)
    of_runs = o.data is None and any(
        run_folder(model, out) for model in models
    )  # the data are those of a run
    for model in models:
        if not of_runs:
            check_subject(model, o.data, out)
        elif run_folder(model, out) is None:
            check_network(model, out)


def _data_of_all(models: list[str], out: Path) -> str:
    """The data set of the runs among the networks; OpnormError where they differ."""
    found = {model: data_of(model, out) for model in models if run_folder(model, out)}
    if not found:
        return data_of(models[0], out)
    if len(set(found.values())) > 1:
        raise OpnormError(
            f"the runs have different data ({'; '.join(f'{model}: {data}' for model, data in found.items())}), and a page "
            f"compares networks on the same points: add --data, such as --data '{next(iter(found.values()))}', or use "
            "opnorm analyze on each"
        )
    return next(iter(found.values()))


def _named(text: str) -> tuple[str, str]:
    """("plain", "cnn()") of "plain=cnn()", and ("", text) where no name is given."""
    name, equals, rest = text.partition("=")
    return (name.strip(), rest.strip()) if equals and not set(name) & set("(,\"'/") else ("", text)


def _network(label: str, model: str, data: str, out: Path) -> tuple[Any, dict[str, Any], Any]:
    """A network with its name on the page; what tells it from others, unless the user has named it; the data set."""
    from opnorm import spec
    from opnorm.runs.network_report import Network
    from opnorm.runs.store import Store

    network, dataset = network_and_data(model, data, out)
    folder = run_folder(model, out)
    if folder is None:
        call = str(spec.short(model, "model"))
        return Network(label or call, network, call), {}, dataset
    run = run_of(folder)
    metrics = Store(folder.parent).metrics(folder)
    call = f"run {folder.name}: {run.model}, {run.label}"
    if run.data != data:
        call += f", trained on {run.data}, not on the data of this page"
    settings = {name: value for name, value in run.as_dict().items() if name not in IN_THE_LABEL}
    told = {} if label else settings | {"run": folder.name}
    return Network(label or run.label, network, call, metrics), told, dataset


def _told_apart(networks: list[tuple[Any, dict[str, Any]]]) -> list[Any]:
    """The networks; the names of runs that were trained in the same way also have the settings in which they differ."""
    labels = [network.label for network, _ in networks]
    found = []
    for network, told in networks:
        twins = [other for one, other in networks if one.label == network.label and other]
        differing = [name for name in told if any(other[name] != told[name] for other in twins)]
        if told and labels.count(network.label) > 1:
            named = [name for name in differing if name != "run"] or differing
            more = "".join(f", {name}={_text(told[name])}" for name in named)
            network = replace(network, label=network.label + more)
        found.append(network)
    return found


def _text(value: Any) -> str:
    return " + ".join(value) or "none" if isinstance(value, tuple) else str(value)
