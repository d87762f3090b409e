"""``opnorm train``: a run, and what became of it."""

from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from opnorm._core.files import shown
from opnorm._core.orders import label as norm_label
from opnorm._core.training_numbers import check_numbers
from opnorm.cli.call_checks import check_calls, check_folder, check_limit
from opnorm.cli.marks import Help
from opnorm.cli.options import (
    Again,
    Data,
    Device,
    Json,
    Limit,
    Model,
    Runs,
    SkipBad,
    Track,
    check_device,
    check_device_name,
    print_json,
    say_found,
    skipping_bad,
)
from opnorm.cli.torch_loading import load_torch
from opnorm.runs.kinds import KINDS
from opnorm.runs.tracking import check_installed

__all__ = ["train"]


@dataclass(frozen=True)
class TrainOptions:
    """The settings of a run, and where it is kept."""

    model: Model = "cnn(width=32)"
    data: Data = "digits()"
    objective: Annotated[str, Help("what is minimized, such as 'pgd_at(eps=8/255)'", "objective")] = "plain"
    regularizers: Annotated[
        tuple[str, ...],
        Help("any number, such as 'weight_decay(lam=5e-4)' 'norm_decay(p=inf, beta=1e-3)'", "regularizer"),
    ] = ()
    optimizer: Annotated[str, Help("such as 'sgd(lr=0.05, momentum=0.9)'", "optimizer")] = "sgd"
    schedule: Annotated[str, Help("such as 'step(milestones=(75, 90))'", "schedule")] = "cosine"
    epochs: int = 10  # passes over the training data
    batch: int = 128  # points a step
    augment: Annotated[
        tuple[str, ...], Help("any number, such as 'crop(padding=4)' 'flip()'", "augmentation")
    ] = ()
    limit: Limit = None
    skip_bad: SkipBad = False
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    """bf16: compute under autocast; auto: the faster one here"""
    channels_last: bool = False  # memory format of images and weights
    ema: float = 0.0  # decay a step of an average of the weights, such as 0.995; 0 for none
    seed: int = 0  # of everything random
    analyses: tuple[str, ...] = ()
    """what to find out afterwards; accuracy, robustness, norms, margins when left out"""
    track: Track = ()
    out: Runs = Path("runs")
    again: Again = False
    device: Device = "cpu"
    json: Json = False


def train(options: TrainOptions = TrainOptions()) -> None:
    """Train one network and say how accurate and robust it is and how large its norms are.

    Stop it with Ctrl-C and call it again: it goes on from the last checkpoint. With several processes, one for each
    GPU: torchrun --nproc-per-node=4 -m opnorm train --device cuda ...

    opnorm train --objective 'pgd_at(eps=0.1)' --regularizers 'norm_decay(p=inf, beta=0.01)' --epochs 20
    """
    _check(options)
    load_torch()

    from opnorm.cli.progress import TrainBar
    from opnorm.runs.run import Run, analyses_after
    from opnorm.runs.store import Store
    from opnorm.runs.tracking import check_trackers
    from opnorm.runs.training_run import run_training
    from opnorm.training import distributed

    store = Store(options.out, again=options.again, track=options.track)
    check_trackers(store.track, store.root)
    settings = {field.name: getattr(options, field.name) for field in fields(Run)}
    settings["data"] = skipping_bad(options.data, options.skip_bad)
    run = Run(**settings | {"analyses": options.analyses or analyses_after(options.objective)})
    with distributed.process_group(options.device) as device:
        with distributed.synchronized_errors():
            check_device(device)
        with TrainBar(run.label) if distributed.is_main_process() else nullcontext() as bar:
            result = run_training(run, store, device=device, progress=bar)
        if not distributed.is_main_process():
            return
    say_found(result.ended if result.found else "")
    if options.json:
        folder = str(result.folder and shown(result.folder))
        print_json({"key": run.key, "folder": folder, "run": run.as_dict(), "results": result.rows})
    else:
        _print_result(result)


def _check(o: TrainOptions) -> None:
    """OpnormError for what is wrong with the settings, before anything is loaded."""
    check_numbers(o.epochs, o.batch, o.precision, o.seed, o.ema)
    check_folder(o.out)
    check_limit(o.limit)
    check_device_name(o.device)
    check_installed(o.track)
    for name, kind in KINDS.items():
        value = getattr(o, name)
        check_calls(value if isinstance(value, tuple) else (value,), kind)


def _print_result(result: Any) -> None:
    for row in result.find("accuracy"):
        share = f"{row['correct']} of {row['points']} {row['split']} points"
        print(f"accuracy          {row['accuracy']:.2%}  ({share})")
    for row in result.find("robust_accuracy"):
        ball = f"{norm_label(float(row['norm']))} ε = {row['eps']:.4g}"
        how = f"{ball}, {row['attack']}, {row['points']} test points"
        print(f"robust accuracy   {row['accuracy']:.2%}  ({how})")
    if chosen := next((row["precision"] for row in result.metrics if "precision" in row), ""):
        print(f"precision         {chosen}, chosen by --precision auto")
    print(f"folder            {shown(result.folder)}")
