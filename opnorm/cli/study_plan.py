"""What a study would run and what it would take, without running it."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from opnorm._core.files import shown
from opnorm.cli.options import print_json
from opnorm.errors import DataError
from opnorm.report.tables import duration_text
from opnorm.runs.engines.local import default_jobs
from opnorm.runs.plan import Estimate, estimate, of_other_versions
from opnorm.runs.run import Run
from opnorm.runs.runner import Study
from opnorm.runs.store import Store

__all__ = ["StudyPlan", "about"]


def about(run: Run) -> dict[str, Any]:
    """What tells a run of a study from the others."""
    return {"key": run.key, "model": run.model, "label": run.label, "seed": run.seed}


class StudyPlan:
    """The runs of a study.

    Attributes:
        missing: those that are not finished.
    """

    def __init__(self, study: Study, store: Store, jobs: int | None, device: str) -> None:
        self.study, self.store, self.device = study, store, device
        self.jobs = min(jobs or default_jobs(device), max(len(study.runs), 1))
        self.missing = [run for run in study.runs if not store.finished(run.key)]

    @cached_property
    def others(self) -> str:
        """What is in the folder but of no use; empty when there is nothing."""
        number = of_other_versions(self.store)
        where = shown(self.store.root)
        return f"{number} runs in {where} are of another version of opnorm and are not used" if number else ""

    @cached_property
    def measured(self) -> Estimate:
        """What the missing runs would take; with the reason where the data are not at hand."""
        try:
            found = estimate(self.study.runs, self.store, self.jobs, self.device)
        except DataError as e:
            found = Estimate(
                training=float("nan"), jobs=self.jobs, disk=float("nan"), notes=[f"nothing was measured: {e}"]
            )
        if self.study.more:
            found.notes.append("further runs follow from the results of these; they are not counted")
        return found

    def summary(self) -> str:
        """One line: runs, time, memory, disk."""
        found = self.measured
        return (
            f"{_counted(self.missing)} to do, about {duration_text(found.seconds)} with {found.jobs} "
            f"process{'es' * (found.jobs > 1)} if the machine stays as busy as it is, memory {_gigabytes(found.memory)} a "
            f"process, disk {_gigabytes(found.disk)} for weights"
        )

    def show(self, json: bool) -> None:
        """Print all of it."""
        rows = [about(run) | {"finished": run not in self.missing} for run in self.study.runs]
        notes = [*self.measured.notes, *([self.others] if self.others else [])] if self.missing else []
        if json:
            counted = asdict(self.measured) | {"seconds": self.measured.seconds, "notes": notes}
            return print_json({"runs": rows, "estimate": counted if self.missing else None})
        for row in rows:
            state = "finished" if row["finished"] else "to do"
            print(f"{row['key']}  {state:8}  seed {row['seed']}  {row['label']}")
        print(f"{_counted(self.study.runs)}, {len(rows) - len(self.missing)} finished")
        if self.missing:
            print(self.summary())
        for note in notes:
            print(f"- {note}")
        return None


def _counted(runs: Sequence[Run]) -> str:
    return f"{len(runs)} run{'s' * (len(runs) != 1)}"


def _gigabytes(size: float | None) -> str:
    if size is None or size != size:
        return "not known"
    return f"{size / 1e9:.1f} GB" if size > 1e8 else f"{size / 1e6:.3g} MB"
