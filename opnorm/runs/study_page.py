"""The page of a study: rewritten while its runs are under way, complete at its end."""

import hashlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from opnorm._core.argument_checks import named
from opnorm.errors import OpnormError
from opnorm.report import (
    Progress,
    Report,
    keep_report,
    load_libraries,
    write_figures,
    write_json,
    write_page,
    write_tables,
)
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import WAITING, Study, StudyProgress
from opnorm.runs.store import Store

__all__ = ["StudyPage", "page_path", "write_study"]

SHARE = 0.02  # of the computing time of a study, at most, goes into its pages
LEAST = 5.0  # seconds between two pages
UNCHANGED = 60.0  # seconds after which a page is rewritten although no run has ended


def page_path(study: Study, store: Store) -> Path:
    """Where the page of a study is: ``<root>/<name>-<hash of its runs>/report.html``; known before anything runs."""
    keys = hashlib.sha256(" ".join(run.key for run in study.runs).encode()).hexdigest()[:8]
    return store.root / f"{study.name}-{keys}" / "report.html"


def write_study(
    study: Study,
    results: Sequence[Result],
    store: Store,
    figures: str | None = None,
    keep: Path | None = None,
) -> Path:
    """Write the page of a study that has ended, and its numbers in ``report.json`` and ``tables/`` beside it.

    Args:
        study: its name and its report.
        results: of its runs, in order.
        store: where the folder goes, see :func:`page_path`.
        figures: also write each figure as "svg", "pdf" or "png".
        keep: also keep the report in a folder of this one, with the study's name (:func:`~opnorm.report.keep_report`).

    Returns:
        The path of the page.

    Raises:
        OpnormError: it cannot be written.
    """
    path = page_path(study, store)
    report = study.report(results)
    if not isinstance(report, Report):
        raise OpnormError(
            f"the report of the study {study.name} is {named(report)}; expected an opnorm.report.Report"
        )
    write_json(report, path.parent / "report.json")
    write_tables(report, path.parent / "tables")
    if figures:
        write_figures(report, path.parent / "figures", figures)
    if keep:
        keep_report(report, keep / study.name)
    return write_page(report, path)


class StudyPage:
    """The page of a study that is under way, a progress callback of :func:`~opnorm.runs.runner.run_study`.

    The first page is written before anything is trained. It is rewritten when a run has ended, and every minute, but
    so rarely that writing takes 2 % of the computing time at most. It is not written where all results are found.

    Args:
        study: its name and its report.
        store: where the folder goes, see :func:`page_path`.

    Attributes:
        path: of the page.
    """

    def __init__(self, study: Study, store: Store) -> None:
        self.study, self.path = study, page_path(study, store)
        self._results: dict[int, Result] = {}
        self._runs: dict[int, Run] = {}
        self._running: dict[int, tuple[float, StudyProgress]] = {}  # with the time of the first word
        self._most_running = 1
        self._changed, self._next, self._written = True, 0.0, -math.inf
        self._costs = [0.0]  # in seconds of CPU time, of each page

    def __call__(self, event: StudyProgress) -> None:
        """A callback of :func:`~opnorm.runs.runner.run_study`."""
        i, now = event.index, time.monotonic()
        self._runs[i] = event.run
        if event.result is not None:
            self._results[i] = event.result
            self._running.pop(i, None)
            self._changed = True
        elif event.text != WAITING and i not in self._results:
            self._running[i] = (self._running.get(i, (now,))[0], event)
            self._most_running = max(self._most_running, len(self._running))
        all_known = len(self._runs) >= len(self.study.runs) and len(self._results) < len(self._runs)
        if all_known and now >= self._next and (self._changed or now >= self._written + UNCHANGED):
            self._write(now)

    def _write(self, now: float) -> None:
        load_libraries()  # once, and the last page needs them too
        began = time.process_time()
        results = {
            run.key: self._results.get(i) or Result.to_come(run) for i, run in sorted(self._runs.items())
        }
        running = [
            f"{event.run.label}, seed {event.run.seed} ({event.text})" for _, event in self._running.values()
        ]
        progress = Progress(
            len(self._results), len(self._runs), running, self._seconds_left(now), time.time()
        )
        write_page(self._report(list(results.values())), self.path, progress)
        self._costs.append(time.process_time() - began)
        cost = min(self._costs[-2:])  # the first chart of all takes longer than it will ever again
        self._changed, self._written = False, now
        self._next = now + max(LEAST, cost / SHARE / self._most_running)

    def _report(self, results: Sequence[Result]) -> Report:
        """The report of a part of the results; where the study's own cannot be made of it, one that says so."""
        try:
            return self.study.report(results)
        except Exception as e:  # noqa: BLE001  # a page that comes too early must not end hours of training
            why = f"The report cannot be made before all runs have ended ({type(e).__name__}: {e})."
            print(f"{self.path}: {why}", file=sys.stderr)
            return Report(self.study.name, why)

    def _seconds_left(self, now: float) -> float | None:
        """The time of the other seeds of a method, or else that of all that has ended, for each run that is missing."""
        took = defaultdict[tuple[str, str], list[float]](list)
        for result in self._results.values():
            if not result.failure:
                took[result.run.model, result.run.label].append(result.seconds)
        if not took:
            return None
        mean = {way: math.fsum(times) / len(times) for way, times in took.items()}
        other = math.fsum(mean.values()) / len(mean)
        left = 0.0
        for i in self._runs.keys() - self._results.keys():
            begun = self._running[i][0] if i in self._running else now
            expected = mean.get((self._runs[i].model, self._runs[i].label), other)
            left += max(0.0, expected - (now - begun))
        return left / self._most_running
