"""The command line. Nothing here imports torch before a command is chosen, so that ``--help`` answers at once."""

import io
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from opnorm.errors import OpnormError

__all__ = ["main"]

app = tyro.extras.SubcommandApp()

MODEL = "a network as a call: 'resnet(depth=20)', 'file(\"weights.safetensors\", arch=cnn())', 'my_package.models.build(64)'"
DATA = (
    "a data set as a call: 'digits()', 'parquet(\"folder\")', 'hf(\"uoft-cs/cifar10\")', 'folder(\"path\")'"
)
OUT = "folder of runs; what is finished there is found and not run again"
DEVICE = "cpu, cuda, cuda:1, mps"
JSON = "print the result as JSON on standard output"


@app.command(name="norms")
def norms(
    model: Annotated[Positional[str], arg(help=MODEL)],
    input: Annotated[
        str, arg(help="shape of one input: 3,32,32; taken from the model's in_shape when left out")
    ] = "",
    ord: Annotated[str, arg(help="which norms: 1, 2, inf, or pairs such as 1:2, from l1 to l2")] = "1,2,inf",
    against: Annotated[
        str,
        arg(help="a second model (or a .json file that --json wrote): how its norms differ, layer by layer"),
    ] = "",
    layers: Annotated[
        str, arg(help="only layers whose name or class matches: 'layer1.*', '*conv*', Conv2d")
    ] = "*",
    plot: Annotated[
        Path | None, arg(help="also draw the norms: a file ending in .svg, .pdf, .png or .html")
    ] = None,
    json: Annotated[bool, arg(help=JSON)] = False,
    csv: Annotated[bool, arg(help="print comma-separated values")] = False,
    markdown: Annotated[bool, arg(help="print a Markdown table")] = False,
) -> None:
    """How far each layer of a network can amplify a change of its input: its operator norms, in eval mode.

    l1 and linf are exact and cost one pass over the weights; l2 is an interval that holds the true value. Below the table
    stand the product of the l2 norms (spectral complexity) and, where the network's graph can be followed, upper bounds on
    its Lipschitz constants. Large norms alone do not make a network easy to attack: see the page "Which norm do I need?"
    in the documentation.

    opnorm norms 'resnet(depth=20)'

    opnorm norms 'file("x.safetensors", arch=resnet(depth=20))' --ord 1,inf --plot norms.svg

    opnorm norms 'my_package.models.build(width=64)' --input 3,64,64 --layers 'stage1.*'

    opnorm norms 'file("before.safetensors")' --against 'file("after.safetensors")'
    """
    from opnorm.norms import NormTable, compare, lipschitz_bound
    from opnorm.norms.network import sentences
    from opnorm.norms.show import order

    if json + csv + markdown > 1:
        raise OpnormError("--json, --csv and --markdown exclude each other")
    ords = tuple(dict.fromkeys(order(part) for part in ord.split(",") if part.strip()))
    if not ords:
        raise OpnormError(f"--ord {ord!r}: expected some of 1, 2, inf, such as 1,2,inf")
    built, example = _model_and_example(model, input)
    table = _measured(built, example, ords, layers)
    result: Any = table
    if against:
        if against.endswith(".json") and "(" not in against:
            other = NormTable.from_json(Path(against).read_text(encoding="utf-8")).select(layers)
        else:
            other = _measured(
                *_model_and_example(against, input or ",".join(map(str, example.shape[1:]))), ords, layers
            )
        result = compare(table, other)
    bounds = {}
    if not against and layers == "*":
        bounds = {
            p: lipschitz_bound(built, example, p, table=table) for p in ords if not isinstance(p, tuple)
        }
    if plot is not None:
        table.plot(plot)
        print(f"drawn in {plot}", file=sys.stderr)
    if json:
        value = _json_text(result.to_json())
        _print_json(value if against else _network_json(value, table, bounds))
    elif csv:
        print(result.to_csv(), end="")
    elif markdown:
        print(result.to_markdown(), end="")
    else:
        console = _console()
        console.print(result)
        for line in sentences(bounds):
            console.print(line, markup=False)


def _model_and_example(text: str, input: str) -> tuple[Any, Any]:
    """The network that a call builds, and a batch of one for it."""
    import torch
    from torch import nn

    from opnorm import spec
    from opnorm.errors import ModelError

    call = spec.parse(text)
    built = spec.build(call, "model")
    if not isinstance(built, nn.Module):
        raise ModelError(f"{call} gave {type(built).__name__}; expected a torch.nn.Module")
    shape = _numbers(input, "--input", int) if input else _input_shape(call)
    try:
        return built, torch.zeros(1, *shape)
    except (RuntimeError, TypeError) as e:
        raise OpnormError(f"--input {input}: {e}; expected the shape of one input, such as 3,32,32") from e


def _measured(model: Any, example: Any, ords: tuple[Any, ...], only: str) -> Any:
    from opnorm import measure

    return measure(model, example, ords, only=only, progress=True)


def _network_json(layers: Any, table: Any, bounds: dict[Any, Any]) -> dict[str, Any]:
    """The table's rows, and what follows from them for the whole network."""
    complexity = table.spectral_complexity
    return {
        "layers": layers,
        "spectral_complexity": complexity._asdict() if complexity else None,
        "lipschitz_bound": {f"{p:g}": {"value": b.value, "reason": b.reason} for p, b in bounds.items()},
        "unvisited": list(table.unvisited),
    }


@app.command(name="train")
def train(
    model: Annotated[str, arg(help=MODEL)] = "cnn(width=32)",
    data: Annotated[str, arg(help=DATA)] = "digits()",
    objective: Annotated[
        str, arg(help="what is minimized: 'plain', 'fgsm_at(eps=0.1)', 'pgd_at(eps=8/255)'")
    ] = "plain",
    regularizers: Annotated[
        tuple[str, ...], arg(help="any number of: 'weight_decay(lam=5e-4)' 'norm_decay(p=inf, beta=1e-3)'")
    ] = (),
    optimizer: Annotated[str, arg(help="'sgd(lr=0.1, momentum=0.9)'")] = "sgd",
    schedule: Annotated[str, arg(help="'cosine', 'step(milestones=(75, 90))', 'constant'")] = "cosine",
    epochs: Annotated[int, arg(help="passes over the training data")] = 10,
    batch: Annotated[int, arg(help="points a step")] = 128,
    augment: Annotated[tuple[str, ...], arg(help="any number of: 'crop(padding=4)' 'flip()'")] = (),
    limit: Annotated[int | None, arg(help="use at most so many training and test points")] = None,
    precision: Annotated[Literal["fp32", "bf16"], arg(help="bf16: compute under autocast")] = "fp32",
    channels_last: Annotated[bool, arg(help="memory format of images and weights")] = False,
    ema: Annotated[
        float, arg(help="decay a step of an average of the weights, such as 0.995; 0 for none")
    ] = 0.0,
    seed: Annotated[int, arg(help="of everything random")] = 0,
    analyses: Annotated[
        tuple[str, ...], arg(help="what to find out afterwards; accuracy, robustness, norms, margins")
    ] = (),
    out: Annotated[Path, arg(help=OUT)] = Path("runs"),
    device: Annotated[str, arg(help=DEVICE)] = "cpu",
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """Train one network and say how accurate and robust it is and how large its norms are.

    Stop it with Ctrl-C and call it again: it goes on from the last finished epoch. With several processes, one for each
    GPU: torchrun --nproc-per-node=4 -m opnorm train --device cuda ...

    opnorm train --objective 'pgd_at(eps=0.1)' --regularizers 'norm_decay(p=inf, beta=0.01)' --epochs 20
    """
    # torch warns in C++ that it looks for unused weights in each step; said before it is loaded
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from opnorm import parallel
    from opnorm.progress import TrainProgress
    from opnorm.run import DEFAULT_ANALYSES, Run, execute
    from opnorm.store import Store

    run = Run(
        model, data, objective, regularizers, optimizer, schedule, epochs, batch, augment, limit, precision,
        channels_last, ema, seed, analyses or DEFAULT_ANALYSES,
    )  # fmt: skip
    with parallel.joined(device) as own_device:
        with parallel.together():
            _check_device(own_device)
        with TrainProgress(run.label) if parallel.leads() else nullcontext() as progress:
            result = execute(run, Store(out), device=own_device, watch=progress)
        if not parallel.leads():
            return
    if json:
        _print_json(
            {"key": run.key, "folder": str(result.folder), "run": run.as_dict(), "results": result.rows}
        )
        return
    from opnorm.norms.show import label as norm_label

    for row in result.find("accuracy"):
        print(
            f"accuracy          {row['accuracy']:.2%}  ({row['correct']} of {row['points']} {row['split']} points)"
        )
    for row in result.find("robust_accuracy"):
        ball = f"{norm_label(float(row['norm']))} ε = {row['eps']:.4g}"
        print(f"robust accuracy   {row['accuracy']:.2%}  ({ball}, {row['attack']})")
    print(f"kept in           {result.folder}")


@app.command(name="attack")
def attack(
    model: Annotated[Positional[str], arg(help=MODEL + "; or a run: its key (see opnorm ls) or its folder")],
    data: Annotated[str, arg(help=DATA + "; its test points are attacked. A run knows its own")] = "",
    norm: Annotated[str, arg(help="of the ball: 1, 2 or inf; inf when left out")] = "",
    eps: Annotated[
        str, arg(help="its radius in pixel values of [0, 1], such as 0.1; 8/255 when left out")
    ] = "",
    attack: Annotated[
        str, arg(help="as a call: 'autoattack', 'pgd(steps=40, restarts=5, stop_when_fooled=True)', 'fgsm'")
    ] = "autoattack",
    version: Annotated[
        Literal["standard", "plus", "rand"] | None,
        arg(help="of AutoAttack; rand is for models that draw random numbers"),
    ] = None,
    limit: Annotated[
        int | None, arg(help="attack at most so many test points, a fixed random choice")
    ] = None,
    seed: Annotated[int | None, arg(help="of the attack's random numbers")] = None,
    surrogate: Annotated[
        str, arg(help="another network for the same data: points made for it should not fool more")
    ] = "",
    save: Annotated[Path | None, arg(help="write the perturbed points here, a .safetensors file")] = None,
    sheet: Annotated[
        Path | None, arg(help="draw points that were fooled: clean, perturbed, difference; a .png file")
    ] = None,
    out: Annotated[
        Path, arg(help="folder of runs; evaluations are kept in its folder attacks, and not done again")
    ] = Path("runs"),
    device: Annotated[str, arg(help=DEVICE)] = "cpu",
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """How many test points stand when an attack may move them by eps, and whether to believe the figure.

    A point is fooled when the model gets it right, and gets a point wrong that lies in the ball around it and in [0, 1].
    The last lines say "trust", or what to look at and why: signs that gradients are masked, so that the attack was blind
    and the figure is too high. Stop it with Ctrl-C and call it again: it goes on from the last part that ended.

    opnorm attack 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --limit 1000

    opnorm attack 3f2a9c01d4e7 --norm 2 --eps 0.5 --attack 'pgd(steps=40)' --sheet fooled.png

    opnorm attack 'my_package.models.noisy()' --data 'digits()' --version rand --json
    """
    from opnorm.attacks.evaluate import evaluate, save_points
    from opnorm.attacks.sheet import contact_sheet
    from opnorm.progress import AttackProgress
    from opnorm.store import Store
    from opnorm.train import as_pixels

    for option, path, suffix in (("--save", save, ".safetensors"), ("--sheet", sheet, ".png")):
        if path is not None and (path.suffix != suffix or not path.absolute().parent.is_dir()):
            raise OpnormError(
                f"{option} {path}: expected a name that ends in {suffix}, in a folder that is there"
            )
    chosen = _attack(attack, {"norm": norm, "eps": eps}, {"version": version, "seed": seed})
    _check_device(device)
    data = data or _data_of(model, out)
    network, dataset = _network_and_data(model, data, out)
    other = _network_and_data(surrogate, data, out)[0].to(device) if surrogate else None
    test = (dataset if limit is None else dataset.limit(limit)).test
    x, y = as_pixels(test.images).to(device), test.labels.to(device)
    with AttackProgress() as progress:
        done = evaluate(
            network.to(device), x, y, chosen, store=Store(out / "attacks"), surrogate=other, tell=progress
        )
    if save is not None:
        save_points(save, done)
    if sheet is not None:
        contact_sheet(sheet, x, done, dataset.classes)
    if json:
        about = {"model": model, "data": data, "limit": limit}
        return _print_json({**about, **done.as_dict(), "folder": str(done.folder)})
    _print_evaluation(done)
    return None


def _print_evaluation(done: Any) -> None:
    from opnorm.norms.show import label as norm_label

    v, (low, high) = done.verdict, done.verdict.interval
    right, stand, points = int(v.right.sum()), int((v.right & ~v.fooled).sum()), len(v.right)
    print(f"attack            {done.attack}, {norm_label(done.norm)} ε = {done.eps:.4g}")
    print(f"accuracy          {v.clean_accuracy:.2%}  ({right} of {points} test points)")
    print(
        f"robust accuracy   {v.robust_accuracy:.2%}  ({stand} of {points}; 95 % interval {low:.1%} to {high:.1%})"
    )
    for stage in v.stages:
        print(
            f"                  {stage.name} broke {stage.broken} of {stage.tried} in {stage.wall_seconds:.1f} s"
        )
    for note in v.notes:
        print(f"note: {note}")
    print(done.trust.summary)
    print(f"kept in           {done.folder}")


def _attack(text: str, radius: dict[str, str], rest: dict[str, Any]) -> Any:
    """The attack that a call names, with the options that were given; what it does not know is refused."""
    from opnorm import spec

    given = {k: _number(f"--{k}", v) for k, v in radius.items() if v}
    given |= {k: v for k, v in rest.items() if v is not None}
    call = spec.parse(text)
    return spec.build(spec.Call(call.name, call.args, (*call.kwargs, *given.items())), "attack")


def _number(option: str, text: str) -> Any:
    from opnorm import spec

    try:
        ((_, value),) = spec.parse(f"number(it={text})").kwargs
    except (OpnormError, ValueError):
        value = None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OpnormError(f"{option} {text!r}: expected a number, such as 8/255, 0.5, 2 or inf")
    return value


def _run_folder(model: str, out: Path) -> Path | None:
    """Where a run is, should the text be its folder or its key."""
    return next((f for f in (Path(model), out / model) if (f / "run.json").is_file()), None)


def _data_of(model: str, out: Path) -> str:
    """The data set of a run, as a call."""
    from opnorm.store import Store

    folder = _run_folder(model, out)
    if folder is None:
        raise OpnormError(f"{model} does not say which data it is for; add --data, such as --data 'digits()'")
    return str(Store(out).read(folder)["run"]["data"])


def _network_and_data(model: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network, from a call or from a run, and a data set that it was checked against."""
    from dataclasses import replace

    from opnorm.run import Run, load_weights, make_data, make_model
    from opnorm.store import Store

    folder = _run_folder(model, out)
    if folder is None:
        run = Run(model, data)
    else:
        run = replace(Run.from_dict(Store(out).read(folder)["run"]), data=data, limit=None)
    dataset = make_data(run)
    network = make_model(run, dataset)
    if folder is not None:
        load_weights(network, folder / "weights.safetensors")
    return network, dataset


WHAT = (
    "analyses as names or calls: accuracy 'norm_table(ords=(2,))' jacobian_spectrum; all stands for every one"
)
POINTS = "test points of each analysis that looks at some of them; each has its own default"


@app.command(name="analyze")
def analyze(
    model: Annotated[
        Positional[str], arg(help=MODEL + "; or a run: its key or its folder. name=MODEL names it")
    ],
    data: Annotated[str, arg(help=DATA + ". A run knows its own")] = "",
    what: Annotated[tuple[str, ...], arg(help=WHAT)] = ("all",),
    points: Annotated[int | None, arg(help=POINTS)] = None,
    limit: Annotated[int | None, arg(help="use at most so many training and test points")] = None,
    seed: Annotated[int, arg(help="of the choice of points and of attacks")] = 0,
    out: Annotated[Path, arg(help="folder of runs; results are kept in its folder analyses")] = Path("runs"),
    device: Annotated[str, arg(help=DEVICE)] = "cpu",
    figures: Annotated[
        Literal["svg", "pdf", "png"] | None, arg(help="also write every figure in this format")
    ] = None,
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """Look at one trained network from all sides, on one page; the last line printed is where the page is.

    Accuracy and robustness, norms and singular values of the layers, margins, Jacobians and linear regions: what the papers
    look at. Stop it with Ctrl-C and call it again: analyses that have ended are found.

    opnorm analyze 'file("weights.safetensors", arch=resnet(depth=20))' --data 'parquet("cifar10")' --points 200

    opnorm analyze 3f2a9c01d4e7 --what accuracy norm_table 'margins(split="train")'
    """
    _analyze((model,), data, what, points, limit, seed, out, device, figures, json)


@app.command(name="compare")
def compare(
    models: Annotated[
        Positional[tuple[str, ...]],
        arg(help="two or more, the baseline first: " + MODEL + "; or runs. name=MODEL names one"),
    ],
    data: Annotated[str, arg(help=DATA + ". Left out: that of the first run")] = "",
    what: Annotated[tuple[str, ...], arg(help=WHAT)] = ("all",),
    points: Annotated[int | None, arg(help=POINTS)] = None,
    limit: Annotated[int | None, arg(help="use at most so many training and test points")] = None,
    seed: Annotated[int, arg(help="of the choice of points and of attacks")] = 0,
    out: Annotated[Path, arg(help="folder of runs; results are kept in its folder analyses")] = Path("runs"),
    device: Annotated[str, arg(help=DEVICE)] = "cpu",
    figures: Annotated[
        Literal["svg", "pdf", "png"] | None, arg(help="also write every figure in this format")
    ] = None,
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """Look at several trained networks side by side, on one page; the last line printed is where the page is.

    Every network has the same color in all charts; the first one is black. What opnorm analyze has found is found again.

    opnorm compare 'plain=file("plain.safetensors")' 'adversarial=file("pgd_at.safetensors")' --data 'parquet("cifar10")'

    opnorm compare 3f2a9c01d4e7 a01bb3e5c2f8 --what norm_table singular_spread margins
    """
    if len(models) < 2:
        raise OpnormError(
            f"{len(models)} network to compare; expected two or more, or opnorm analyze for one"
        )
    _analyze(models, data, what, points, limit, seed, out, device, figures, json)


def _analyze(
    models: tuple[str, ...],
    data: str,
    what: tuple[str, ...],
    points: int | None,
    limit: int | None,
    seed: int,
    out: Path,
    device: str,
    figures: str | None,
    json: bool,
) -> None:
    from opnorm.analyze import as_dict, calls, look, write
    from opnorm.progress import AnalyzeProgress
    from opnorm.store import Store

    analyses = calls(what, points=points, seed=seed)
    _check_device(device)
    if not data:
        bare = [model for _, model in map(_named, models)]
        data = _data_of(next((m for m in bare if _run_folder(m, out)), bare[0]), out)
    subjects, dataset = [], None
    for text in models:
        subject, dataset = _subject(text, data, out)
        subject.model.to(device).eval()
        subjects.append(subject)
    assert dataset is not None, "there is at least one model"
    store = Store(out / "analyses")
    with AnalyzeProgress() as progress:
        looks = look(
            subjects, dataset if limit is None else dataset.limit(limit), analyses, store, tell=progress
        )
    page = write(looks, store, figures)
    if json:
        return _print_json({"page": str(page), "networks": as_dict(looks)})
    print(page)
    return None


def _named(text: str) -> tuple[str, str]:
    """("plain", "cnn()") of "plain=cnn()", and ("", text) where no name is given."""
    name, equals, rest = text.partition("=")
    return (name.strip(), rest.strip()) if equals and not set(name) & set("(,\"'/") else ("", text)


def _subject(text: str, data: str, out: Path) -> tuple[Any, Any]:
    """A network with what a page calls it, and the data set."""
    from opnorm import files, spec
    from opnorm.analyze import Subject
    from opnorm.run import Run
    from opnorm.store import Store

    label, model = _named(text)
    network, dataset = _network_and_data(model, data, out)
    folder = _run_folder(model, out)
    if folder is None:
        call = str(spec.short(model, "model"))
        return Subject(label or call, network, call), dataset
    run = Run.from_dict(Store(out).read(folder)["run"])
    metrics = files.read_lines(folder / "metrics.jsonl")
    return Subject(label or run.label, network, f"run {model}: {run.model}, {run.label}", metrics), dataset


@app.command(name="study")
def study(
    name: Annotated[Positional[str], arg(help="a study as a call: 'tour', 'tour(epochs=5)'")],
    data: Annotated[str | None, arg(help=DATA)] = None,
    model: Annotated[str | None, arg(help=MODEL)] = None,
    seeds: Annotated[int | None, arg(help="how many times each way is repeated")] = None,
    limit: Annotated[int | None, arg(help="use at most so many training and test points")] = None,
    size: Annotated[
        str | None, arg(help="'laptop' (minutes) or 'smoke' (seconds, to see that all works)")
    ] = None,
    out: Annotated[Path, arg(help=OUT)] = Path("runs"),
    jobs: Annotated[
        int | None, arg(help="processes side by side; the number of cores, at most 8, when left out")
    ] = None,
    device: Annotated[str, arg(help=DEVICE)] = "cpu",
    figures: Annotated[
        Literal["svg", "pdf", "png"] | None, arg(help="also write every figure in this format")
    ] = None,
    dry_run: Annotated[bool, arg(help="list the runs, and which are finished, and do nothing")] = False,
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """Carry out a whole study and write its page; the last line printed is where the page is.

    opnorm study tour

    opnorm study tour --data 'parquet("mnist")' --limit 2000 --seeds 1
    """
    from opnorm import spec
    from opnorm.progress import StudyProgress
    from opnorm.store import Store
    from opnorm.study import Study, carry_out, write

    options = {"data": data, "model": model, "seeds": seeds, "limit": limit, "size": size}
    call = spec.parse(name)
    given = tuple((k, v) for k, v in options.items() if v is not None)
    call = spec.Call(
        call.name, call.args, (*call.kwargs, *given)
    )  # so that what the study does not know is refused
    built = spec.build(call, "study")
    if not isinstance(built, Study):
        raise OpnormError(f"{call} gave {type(built).__name__}; expected a study")
    store = Store(out)
    if dry_run:
        rows = [
            {"key": r.key, "label": r.label, "seed": r.seed, "finished": store.finished(r.key)}
            for r in built.runs
        ]
        if json:
            return _print_json(rows)
        for row in rows:
            print(
                f"{row['key']}  {'finished' if row['finished'] else 'to do   '}  seed {row['seed']}  {row['label']}"
            )
        return print(f"{len(rows)} runs, {sum(bool(r['finished']) for r in rows)} finished")
    _check_device(device)
    with StudyProgress([f"{r.label}, seed {r.seed}" for r in built.runs]) as progress:
        results = carry_out(built, store, jobs=jobs, device=device, tell=progress)
    page = write(built, results, store, figures)
    if json:
        rows = [
            {
                "key": r.run.key,
                "label": r.run.label,
                "seed": r.run.seed,
                "failure": r.failure,
                "results": r.rows,
            }
            for r in results
        ]
        return _print_json({"page": str(page), "runs": rows})
    print(page)
    return None


@app.command(name="separation")
def separation(
    data: Annotated[Positional[str], arg(help=DATA)] = "digits()",
    norm: Annotated[str, arg(help="1, 2 or inf")] = "inf",
    split: Annotated[
        Literal["train", "test", "all"], arg(help="which points; all: the two together")
    ] = "train",
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """How far the classes of a data set are apart: the nearest two points of different classes, over all pairs, exactly.

    Below half of that distance no two balls around points of different classes meet, so that some network could be robust
    on all of them.

    opnorm separation 'parquet("cifar10")' --norm inf
    """
    from opnorm import spec
    from opnorm.norms.show import label
    from opnorm.progress import SeparationProgress
    from opnorm.separation import separation as search

    dataset = spec.build(data, "data set")
    with SeparationProgress() as progress:
        found = search(dataset, _number("--norm", norm), split, progress)
    if json:
        return _print_json(
            {**found._asdict(), "norm": str(norm), "eps": found.eps, "data": data, "split": split}
        )
    (i, j), (a, b) = found.pair, found.labels
    print(
        f"separation        {found.distance:.6g} in {label(found.norm)}, of {found.points:,} points (pixels in [0, 1])"
    )
    print(f"the nearest two   {i} (class {a}) and {j} (class {b})")
    print(f"balls apart       below ε = {found.eps:.6g}")
    return None


@app.command(name="ls")
def ls(
    out: Annotated[Path, arg(help=OUT)] = Path("runs"),
    json: Annotated[bool, arg(help=JSON)] = False,
) -> None:
    """List the runs of a folder: key, state, when begun, seconds, what."""
    from opnorm.run import label
    from opnorm.store import Store

    rows = Store(out).ls()
    if json:
        return _print_json(rows)
    if not rows:
        return print(f"no runs in {out}", file=sys.stderr)
    for row in rows:
        what, run = "", row.get("run")
        if isinstance(run, dict):  # as text: the user's own modules need not be importable from here
            way = label(run.get("objective", "?"), run.get("regularizers", ()), run.get("ema", 0.0))
            what = f"{way}, seed {run.get('seed')}: {run.get('model')} on {run.get('data')}"
        seconds = f"{row['seconds']:8.1f} s" if "seconds" in row else " " * 10
        print(f"{row['key']}  {row['state']:8}  {row.get('begun', ''):19.19}  {seconds}  {what}")
    return None


# ---------------------------------------------------------------- in and out


def _numbers(text: str, option: str, kind: type) -> tuple[Any, ...]:
    try:
        values = tuple(
            kind(part) for part in text.strip("()[] ").replace("x", ",").split(",") if part.strip()
        )
    except ValueError:
        values = ()
    if not values or (kind is int and min(values) < 1):
        example = "3,32,32" if kind is int else "1,2,inf"
        raise OpnormError(f"{option} {text!r}: expected numbers with commas between them, such as {example}")
    return values


def _input_shape(call: Any) -> tuple[Any, ...]:
    """The in_shape that the model was made with, wherever in the call it stands, or in the file that it names."""
    from opnorm import spec
    from opnorm.models.files import SPEC_KEY, read_tensors

    calls = list(spec.walk(spec.full(call, "model")))
    for part in [c for c in calls if c.name == "file"]:
        _, metadata = read_tensors(str(dict(part.kwargs)["path"]))
        if SPEC_KEY in metadata:
            calls += spec.walk(spec.full(metadata[SPEC_KEY], "model"))
    for part in reversed(calls):
        shape = dict(part.kwargs).get("in_shape")
        if isinstance(shape, tuple):
            return shape
    raise OpnormError(f"{call} does not say which inputs it takes; add --input, such as --input 3,32,32")


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device).item()
    except Exception as e:  # torch raises whatever its backends do
        why = str(e).splitlines()[0].partition(". ")[0]
        raise OpnormError(f"--device {device}: {why}; expected one that this machine has, such as cpu") from e


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _json_text(text: str) -> Any:
    return json.loads(text)


def _print_json(value: Any) -> None:
    from opnorm.files import to_json

    print(to_json(value))


def main(args: list[str] | None = None) -> None:
    """Entry point of ``opnorm``: 0 when all went well, 2 for what the user can mend, 130 after Ctrl-C, 1 for the rest."""
    args = sys.argv[1:] if args is None else args
    debug = "--debug" in args
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="replace"
            )  # a terminal without ℓ and ε gets ? for them, and no traceback
    try:
        app.cli(
            prog="opnorm",
            description="Operator norms of neural networks: measure them, train with them kept small, see what they did. "
            "Add --debug to any command for a traceback.",
            args=[a for a in args if a != "--debug"] or ["--help"],
        )
    except KeyboardInterrupt:
        print("stopped; finished epochs are kept, and the same command goes on from there", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # whoever read our output has left, as in `opnorm ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as e:
        if debug:
            raise
        foreseen = isinstance(e, OpnormError | OSError)
        text = str(e) if foreseen else f"{type(e).__name__}: {e}; --debug shows where"
        if not (foreseen and int(os.environ.get("RANK", "0"))):  # torchrun's first process says it for all
            print("opnorm:", " ".join(text.split()), file=sys.stderr)
        sys.exit(2 if foreseen else 1)


if __name__ == "__main__":
    main()
