"""``opnorm study``: all runs of a study, and its page."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from opnorm._core.files import make_folder, shown
from opnorm.cli.call_checks import check_call, check_folder, check_limit
from opnorm.cli.marks import Help, Positional
from opnorm.cli.options import (
    Again,
    Device,
    Figures,
    Json,
    Limit,
    Runs,
    Track,
    check_device,
    check_device_name,
    print_json,
    with_options,
)
from opnorm.cli.study_list import print_list
from opnorm.cli.torch_loading import load_torch
from opnorm.errors import OpnormError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opnorm.runs.engines.engine import Engine
    from opnorm.runs.run import Result
    from opnorm.runs.store import Store
    from opnorm.spec import Call

__all__ = ["study"]


@dataclass(frozen=True)
class StudyOptions:
    """The options of a study; those that it does not have are refused."""

    data: str | None = None  # a data set as a call: see opnorm train
    model: str | None = None  # a network as a call: see opnorm train
    seeds: int | None = None  # how many times each way is repeated
    limit: Limit = None
    size: str | None = None
    """'laptop' (minutes), 'smoke' (a minute, to see that all works), 'paper' (the published settings)"""
    only: str | None = None
    """of a paper's study: leave out runs whose network or method does not match, such as '*norm decay*'"""
    list: bool = False
    """say what studies there are, what each asks, how many runs it has and how long it takes"""
    out: Runs = Path("runs")
    again: Again = False
    jobs: int | None = None  # processes side by side; the number of cores, at most 8, when left out
    device: Device = "cpu"
    engine: Literal["local", "ray"] = "local"  # processes of this machine, or a Ray cluster (opnorm[ray])
    ray_address: str | None = None
    """'ray://HOST:PORT', 'HOST:PORT' or 'auto'; the job's cluster, or one of this machine, when left out"""
    storage: str | None = None
    """a URL that all nodes see, such as 's3://bucket/study', where they do not see the folder --out"""
    cpus: float | None = None  # cores of a run, a part of one too; whole ones are its threads
    gpus: float | None = None  # GPUs of a run, or the part of one; above 1, a process for each
    processes: int = 1  # that train a run together
    track: Track = ()
    figures: Figures = None
    keep: Path | None = None
    """also write the report, small and without weights, to KEEP/NAME/, for a repository"""
    dry_run: bool = False  # list the runs, which are finished and what the others would take, and do nothing
    yes: bool = False  # go on with the size 'paper' on a CPU
    json: Json = False


def study(
    name: Annotated[
        Positional[str],
        Help("a study: 'tour', 'liang2021', one table 'liang2021.table2', 'tour(epochs=5)'"),
    ] = "",
    options: StudyOptions = StudyOptions(),
) -> None:
    """Carry out a whole study and write its page; the last line printed is where the page is.

    opnorm study tour

    opnorm study liang2021.table2

    opnorm study tour --data 'parquet("mnist")' --limit 2000 --seeds 1
    """
    if options.list:
        return print_list(name, options.json)
    o, call = options, _checked(name, options)
    load_torch()

    from opnorm import spec
    from opnorm.cli.progress import StudyBar
    from opnorm.cli.study_plan import StudyPlan
    from opnorm.runs.runner import Study, StudyProgress, run_study
    from opnorm.runs.store import Store
    from opnorm.runs.study_page import StudyPage, write_study

    store = Store(o.out, again=o.again, track=o.track)
    built = spec.build(call, "study")
    if not isinstance(built, Study):
        raise OpnormError(f"{call} gave {type(built).__name__}; expected a study")
    if o.engine == "local" or o.dry_run:
        check_device(o.device)
    _check_trackers(o, store)
    engine = _engine(o)
    if o.keep and not o.dry_run:
        make_folder(o.keep)  # before hours of training
    plan = StudyPlan(built, store, getattr(engine, "jobs", o.jobs), o.device)
    if o.dry_run:
        return plan.show(o.json)
    if o.device == "cpu" and not o.yes and plan.missing and _size(call) == "paper":
        raise OpnormError(
            f"{call} on a CPU: {plan.summary()}. --yes goes on; --device cuda uses a GPU; --dry-run says more"
        )
    if plan.others:
        print(plan.others, file=sys.stderr)
    page = StudyPage(built, store)
    print(f"page: {page.path.absolute().as_uri()}", file=sys.stderr, flush=True)
    with StudyBar(len(built.runs)) as bar:

        def progress(event: StudyProgress) -> None:
            bar(event)
            page(event)

        results = run_study(built, store, progress=progress, engine=engine)
    path = shown(write_study(built, results, store, o.figures, o.keep))
    if o.keep:
        print(f"kept: {o.keep / built.name / 'report.json'}", file=sys.stderr)
    return _print_results(path, results) if o.json else print(path)


def _checked(name: str, o: StudyOptions) -> "Call":
    """The call of the study; OpnormError for what is wrong, before anything is loaded."""
    from opnorm import spec
    from opnorm.runs.engines.share import check_jobs, check_share
    from opnorm.runs.tracking import check_installed

    if not name:
        raise OpnormError("which study? --list says what there is, --help how; opnorm study tour is a start")
    settings = {n: getattr(o, n) for n in ("data", "model", "seeds", "limit", "size", "only")}
    call = with_options(spec.part_call(spec.parse(name), spec.known_names("study")), **settings)
    spec.check(call, "study")
    texts = {"data": o.data, "model": o.model} | spec.arguments(call, "study")
    for setting, kind in (("data", "data set"), ("model", "model")):
        if isinstance(text := texts[setting], str):
            check_call(text, kind)
    check_folder(o.out)
    if o.keep is not None:
        check_folder(o.keep)
    check_limit(o.limit)
    check_device_name(o.device)
    check_jobs(o.jobs)
    check_share(o.cpus, o.gpus, o.processes)
    check_installed(o.track)
    if o.engine == "local":
        _refuse_options_of_ray(o)
    return call


def _refuse_options_of_ray(o: StudyOptions) -> None:
    for option, value in (("--ray-address", o.ray_address), ("--storage", o.storage)):
        if value is not None:
            raise OpnormError(f"{option} {value}: expected with --engine ray only")


def _engine(o: StudyOptions) -> "Engine":
    """What carries out the runs; OpnormError for options that do not go together."""
    amounts: dict[str, Any] = {
        "jobs": o.jobs,
        "device": o.device,
        "cpus": o.cpus,
        "gpus": o.gpus,
        "processes": o.processes,
    }
    if o.engine == "ray":
        from opnorm.runs.engines.ray import RayEngine

        return RayEngine(o.ray_address, storage=o.storage or "", **amounts)
    from opnorm.runs.engines.local import LocalEngine

    return LocalEngine(**amounts)


def _check_trackers(o: StudyOptions, store: "Store") -> None:
    from opnorm.runs.tracking import check_trackers

    check_trackers(store.track, store.root)
    if o.storage and "tensorboard" in store.track:
        raise OpnormError(
            "--track tensorboard writes below --out, and with --storage no node keeps that folder"
        )


def _print_results(page: Path, results: "Sequence[Result]") -> None:
    """Where the page is, and every run with its rows or the reason why it has none."""
    from opnorm.cli.study_plan import about

    found = [about(r.run) | {"failure": r.failure, "results": r.rows} for r in results]
    print_json({"page": str(page), "runs": found})


def _size(call: "Call") -> Any:
    """The size that a call asks for."""
    from opnorm import spec

    return dict(spec.full(call, "study").kwargs).get("size")
