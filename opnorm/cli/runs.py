"""``opnorm train``, ``opnorm study`` and ``opnorm ls``: runs, and what became of them."""

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from opnorm.cli.options import DATA, MODEL, Device, Figures, Json, Limit, Runs, check_device, print_json
from opnorm.errors import OpnormError

__all__ = ["ls", "study", "train"]


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
    limit: Limit = None,
    precision: Annotated[Literal["fp32", "bf16"], arg(help="bf16: compute under autocast")] = "fp32",
    channels_last: Annotated[bool, arg(help="memory format of images and weights")] = False,
    ema: Annotated[
        float, arg(help="decay a step of an average of the weights, such as 0.995; 0 for none")
    ] = 0.0,
    seed: Annotated[int, arg(help="of everything random")] = 0,
    analyses: Annotated[
        tuple[str, ...], arg(help="what to find out afterwards; accuracy, robustness, norms, margins")
    ] = (),
    out: Runs = Path("runs"),
    device: Device = "cpu",
    json: Json = False,
) -> None:
    """Train one network and say how accurate and robust it is and how large its norms are.

    Stop it with Ctrl-C and call it again: it goes on from the last finished epoch. With several processes, one for each
    GPU: torchrun --nproc-per-node=4 -m opnorm train --device cuda ...

    opnorm train --objective 'pgd_at(eps=0.1)' --regularizers 'norm_decay(p=inf, beta=0.01)' --epochs 20
    """
    from opnorm.cli.progress import TrainBar
    from opnorm.runs.run import DEFAULT_ANALYSES, Run
    from opnorm.runs.store import Store
    from opnorm.runs.training_run import run_training
    from opnorm.training import distributed

    run = Run(
        model, data, objective, regularizers, optimizer, schedule, epochs, batch, augment, limit, precision,
        channels_last, ema, seed, analyses or DEFAULT_ANALYSES,
    )  # fmt: skip
    with distributed.process_group(device) as own_device:
        with distributed.synchronized_errors():
            check_device(own_device)
        with TrainBar(run.label) if distributed.is_main_process() else nullcontext() as bar:
            result = run_training(run, Store(out), device=own_device, progress=bar)
        if not distributed.is_main_process():
            return
    if json:
        print_json(
            {"key": run.key, "folder": str(result.folder), "run": run.as_dict(), "results": result.rows}
        )
        return
    from opnorm.norms.display import label as norm_label

    for row in result.find("accuracy"):
        print(
            f"accuracy          {row['accuracy']:.2%}  ({row['correct']} of {row['points']} {row['split']} points)"
        )
    for row in result.find("robust_accuracy"):
        ball = f"{norm_label(float(row['norm']))} ε = {row['eps']:.4g}"
        print(
            f"robust accuracy   {row['accuracy']:.2%}  ({ball}, {row['attack']}, {row['points']} test points)"
        )
    print(f"folder            {result.folder}")


def study(
    name: Annotated[Positional[str], arg(help="a study as a call: 'tour', 'tour(epochs=5)'")],
    data: Annotated[str | None, arg(help=DATA)] = None,
    model: Annotated[str | None, arg(help=MODEL)] = None,
    seeds: Annotated[int | None, arg(help="how many times each way is repeated")] = None,
    limit: Limit = None,
    size: Annotated[
        str | None, arg(help="'laptop' (minutes) or 'smoke' (seconds, to see that all works)")
    ] = None,
    out: Runs = Path("runs"),
    jobs: Annotated[
        int | None, arg(help="processes side by side; the number of cores, at most 8, when left out")
    ] = None,
    device: Device = "cpu",
    figures: Figures = None,
    dry_run: Annotated[bool, arg(help="list the runs, and which are finished, and do nothing")] = False,
    json: Json = False,
) -> None:
    """Carry out a whole study and write its page; the last line printed is where the page is.

    opnorm study tour

    opnorm study tour --data 'parquet("mnist")' --limit 2000 --seeds 1
    """
    from opnorm import spec
    from opnorm.cli.progress import StudyBar
    from opnorm.runs.runner import Study, run_study, write_study
    from opnorm.runs.store import Store

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
            return print_json(rows)
        for row in rows:
            print(
                f"{row['key']}  {'finished' if row['finished'] else 'to do   '}  seed {row['seed']}  {row['label']}"
            )
        return print(f"{len(rows)} runs, {sum(bool(r['finished']) for r in rows)} finished")
    check_device(device)
    with StudyBar([f"{r.label}, seed {r.seed}" for r in built.runs]) as bar:
        results = run_study(built, store, jobs=jobs, device=device, progress=bar)
    page = write_study(built, results, store, figures)
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
        return print_json({"page": str(page), "runs": rows})
    print(page)
    return None


def ls(
    out: Runs = Path("runs"),
    json: Json = False,
) -> None:
    """List the runs of a folder: key, state, when begun, seconds, what."""
    from opnorm.runs.run import method_label
    from opnorm.runs.store import Store

    rows = Store(out).ls()
    if json:
        return print_json(rows)
    if not rows:
        return print(f"no runs in {out}", file=sys.stderr)
    for row in rows:
        what, run = "", row.get("run")
        if isinstance(run, dict):  # as text: the user's own modules need not be importable from here
            way = method_label(run.get("objective", "?"), run.get("regularizers", ()), run.get("ema", 0.0))
            what = f"{way}, seed {run.get('seed')}: {run.get('model')} on {run.get('data')}"
        seconds = f"{row['seconds']:8.1f} s" if "seconds" in row else " " * 10
        print(f"{row['key']}  {row['state']:8}  {row.get('begun', ''):19.19}  {seconds}  {what}")
    return None
