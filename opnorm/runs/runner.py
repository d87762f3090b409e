"""A study: a list of runs, and the report on their results.

Runs are independent, so an engine carries out several at a time: in processes of this machine, or on a Ray cluster. A run
that fails is a row that states why; the other rows are shown all the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from opnorm.report import Report
from opnorm.runs.engines.engine import WAITING, Engine, Progress, StudyProgress
from opnorm.runs.engines.local import LocalEngine
from opnorm.runs.plan import check_networks
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import find_result

__all__ = ["WAITING", "Study", "StudyProgress", "run_study"]


@dataclass(frozen=True)
class Study:
    """A question that many runs answer.

    Attributes:
        name: such as ``tour``.
        runs: to train and analyze.
        report: makes the page of the results, in the order of the runs; those still to come have no rows and are
            :attr:`~opnorm.runs.run.Result.pending`.
        more: further runs that depend on results, asked for until there are none. They follow in the order; one that is
            there already is asked for further analyses, and takes its place. None where there are never any.
        rank: runs of one seed are begun in the order of their ranks, and in that of the study where these are equal. All
            runs of the first seed come before those of the second.
    """

    name: str
    runs: Sequence[Run]
    report: Callable[[Sequence[Result]], Report]
    more: Callable[[Sequence[Result]], Sequence[Run]] | None = None
    rank: Callable[[Run], int] = lambda run: 0


def run_study(
    study: Study,
    store: Store,
    *,
    jobs: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
    engine: Engine | None = None,
) -> list[Result]:
    """Run what has not been run yet, and return all results in the order of the study.

    A run that another process is at is left for the end, and waited for. Each process has its part of the cores, the same
    whether the study is begun or goes on.

    Args:
        study: the runs.
        store: where results are written and found.
        jobs: parallel processes; one a core, at most 8, when None; 1 on a GPU.
        device: where to train.
        progress: called every few steps, in this process.
        engine: where the runs are carried out; processes of this machine, by ``jobs`` and ``device``, when None.

    Returns:
        One result a run; one whose training diverged has ``failure`` set.

    Raises:
        OpnormError: a run that cannot start (wrong data, wrong model); the other processes are stopped.
        KeyboardInterrupt: after Ctrl-C; the finished epochs of every run are on the disk.
    """
    engine = engine or LocalEngine(jobs, device)
    report = progress or (lambda event: None)
    runs, begun = list(study.runs), 0
    results: list[Result] = []
    while runs:
        places = {result.run.key: place for place, result in enumerate(results)}
        for result in _run_all(study, dict(enumerate(runs, begun)), store, engine, report):
            if (place := places.get(result.run.key)) is None:
                results.append(result)
            else:
                results[place] = result
        begun += len(runs)
        runs = list(study.more(results)) if study.more else []
    return results


def _run_all(
    study: Study, numbered: dict[int, Run], store: Store, engine: Engine, report: Progress
) -> list[Result]:
    """Runs that do not depend on each other, by their index in the study."""
    results: dict[int, Result] = {}
    for i, run in numbered.items():
        if found := find_result(run, store):
            results[i] = found
            report(StudyProgress(i, run, 1.0, "found", found))
    order = sorted(numbered, key=lambda i: (numbered[i].seed, study.rank(numbered[i])))
    missing = {i: numbered[i] for i in order if i not in results}
    check_networks([run for run in missing.values() if not store.finished(run.key)])
    if missing:
        results |= engine.run(missing, list(numbered.values()), store, report)
    return [results[i] for i in numbered]
