"""``opnorm analyze`` and ``opnorm compare``: one network, or several, on one page."""

import pkgutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

import opnorm
from opnorm.cli.options import DATA, MODEL, RUN, Device, Figures, Json, Limit, check_device, print_json
from opnorm.cli.subjects import data_of, network_and_data, run_folder
from opnorm.errors import OpnormError

__all__ = ["ANALYSES", "analyze", "compare"]

ANALYSES = sorted(
    module.name.removeprefix("_")
    for module in pkgutil.iter_modules([str(Path(opnorm.__file__).parent / "analyses")])
    if not module.ispkg
)
"""The names of the modules: importing them would load torch before ``--help`` can answer."""

WHAT = (
    "analyses as names or calls, such as accuracy 'norm_table(ords=(2,))'; all means every one: "
    + ", ".join(ANALYSES)
)
POINTS = "test points of each analysis that takes a sample of them, in place of its own default"


@dataclass(frozen=True)
class AnalyzeOptions:
    """The options of both commands."""

    data: Annotated[str, arg(help=DATA + "; left out: that of the first run")] = ""
    what: Annotated[tuple[str, ...], arg(help=WHAT)] = ("all",)
    points: Annotated[int | None, arg(help=POINTS)] = None
    limit: Limit = None
    seed: Annotated[int, arg(help="of the choice of points and of attacks")] = 0
    out: Annotated[Path, arg(help="folder of runs; results are kept in its folder analyses")] = Path("runs")
    device: Device = "cpu"
    figures: Figures = None
    json: Json = False


Options = Annotated[AnalyzeOptions, arg(name="")]


def analyze(
    model: Annotated[Positional[str], arg(help=MODEL + RUN + ". name=MODEL names it")],
    options: Options = AnalyzeOptions(),
) -> None:
    """Apply every analysis of the papers to one trained network, on one page; the last line printed is the page's path.

    Accuracy and robustness, norms and singular values of the layers, margins, Jacobians and linear regions. After Ctrl-C,
    the same command finds the analyses that have ended and goes on.

    opnorm analyze 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --points 100

    opnorm analyze 3f2a9c01d4e7 --what accuracy norm_table 'margins(split="train")'

    opnorm analyze 3f2a9c01d4e7 --what 'power_method_agreement(p=inf, q=1)'

    The last one is Theorem 1 of Roth et al. 2020: how far adversarial training is data-dependent operator norm
    regularization, on this network, as the radius grows.
    """
    _analyze((model,), options)


def compare(
    models: Annotated[
        Positional[tuple[str, ...]],
        arg(help="two or more, the baseline first: " + MODEL + "; or runs. name=MODEL names one"),
    ],
    options: Options = AnalyzeOptions(),
) -> None:
    """Analyze several trained networks side by side, on one page; the last line printed is the page's path.

    Every network has the same color in all charts; the first one is black. Results of opnorm analyze are found again.

    opnorm compare 'plain=file("plain.safetensors")' 'adversarial=file("pgd_at.safetensors")' --data 'parquet("cifar10")'

    opnorm compare 3f2a9c01d4e7 a01bb3e5c2f8 --what norm_table singular_spread margins
    """
    if len(models) < 2:
        raise OpnormError(
            f"{len(models)} network to compare; expected two or more, or opnorm analyze for one"
        )
    _analyze(models, options)


def _analyze(models: tuple[str, ...], options: AnalyzeOptions) -> None:
    from opnorm.cli.progress import AnalyzeBar
    from opnorm.runs.network_report import analysis_calls, analyze
    from opnorm.runs.store import Store

    data, out, limit = options.data, options.out, options.limit
    calls = analysis_calls(options.what, points=options.points, seed=options.seed)
    check_device(options.device)
    if not data:
        bare = [model for _, model in map(_named, models)]
        data = data_of(next((m for m in bare if run_folder(m, out)), bare[0]), out)
    networks, dataset = [], None
    for text in models:
        network, dataset = _network(text, data, out)
        network.model.to(options.device).eval()
        networks.append(network)
    assert dataset is not None, "there is at least one model"
    store = Store(out / "analyses")
    with AnalyzeBar() as progress:
        dataset = dataset if limit is None else dataset.limit(limit)
        found = analyze(networks, dataset, calls, store=store, progress=progress)
    page = found.write(store.root / found.name, options.figures)
    if options.json:
        return print_json({"page": str(page), "networks": found.as_dict()})
    print(page)
    return None


def _named(text: str) -> tuple[str, str]:
    """("plain", "cnn()") of "plain=cnn()", and ("", text) where no name is given."""
    name, equals, rest = text.partition("=")
    return (name.strip(), rest.strip()) if equals and not set(name) & set("(,\"'/") else ("", text)


def _network(text: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network with its name on the page, and the data set."""
    from opnorm import spec
    from opnorm._core import files
    from opnorm.runs.network_report import Network
    from opnorm.runs.run import Run
    from opnorm.runs.store import Store

    label, model = _named(text)
    network, dataset = network_and_data(model, data, out)
    folder = run_folder(model, out)
    if folder is None:
        call = str(spec.short(model, "model"))
        return Network(label or call, network, call), dataset
    run = Run.from_dict(Store(out).read(folder)["run"])
    metrics = files.read_lines(folder / "metrics.jsonl")
    return Network(label or run.label, network, f"run {model}: {run.model}, {run.label}", metrics), dataset
