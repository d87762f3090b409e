"""What every engine does: it takes runs, reports how far each is, and gives their results."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from opnorm.errors import BusyError, TrainError
from opnorm.runs.engines.process_group import train_in_group
from opnorm.runs.engines.share import Share, progress_of
from opnorm.runs.run import Result, Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import RunProgress, run_training, threads_of_torch

__all__ = ["PAUSE", "WAITING", "Engine", "Progress", "StudyProgress", "announce", "run_one"]


@dataclass(frozen=True)
class StudyProgress:
    """How far a run of a study is.

    Attributes:
        index: of the run in the study; further runs follow.
        run: its settings.
        share: of its training, 0 to 1.
        text: what it does, in a few words; ``WAITING`` once, for each run that is to be done, before any begins.
        result: set when it has ended.
    """

    index: int
    run: Run
    share: float
    text: str
    result: Result | None = None


Progress = Callable[[StudyProgress], None]

WAITING = "waits"
PAUSE = 0.5  # seconds between two looks at a run that another process is at


class Engine(Protocol):
    """Carries out runs that do not depend on each other."""

    def run(
        self, missing: dict[int, Run], of: Sequence[Run], store: Store, report: Progress
    ) -> dict[int, Result]:
        """Carry out runs and give their results.

        Args:
            missing: the runs by their index in the study, in the order in which to begin them.
            of: all runs, finished ones included, so that a study that goes on is planned as it was begun.
            store: where results are written and found.
            report: called in this process.

        Returns:
            One result a run; one that failed by itself states why.

        Raises:
            OpnormError: a run that cannot start, or an engine that cannot go on; the others are stopped.
        """


def announce(missing: dict[int, Run], report: Progress) -> None:
    """Report that runs are to be done."""
    for i, run in missing.items():
        report(StudyProgress(i, run, 0.0, WAITING))


def run_one(index: int, run: Run, store: Store, share: Share, report: Progress) -> Result | None:
    """One run; None where another process is at it. A diverged training is a result, any other error is raised."""

    def say(done: float, text: str) -> None:
        report(StudyProgress(index, run, done, text))

    def progress(event: RunProgress) -> None:
        say(*progress_of(event))

    remembered = bool(store.failure(run.key))
    try:
        if share.processes > 1:
            return train_in_group(run, store, share, say)
        with threads_of_torch(share.threads):
            return run_training(run, store, device=share.device, progress=progress)
    except BusyError:
        say(0.0, "waits for another process that is at it")
        return None
    except TrainError as e:  # the reason alone, without the folder: reports are carried to other machines
        why = store.failure(run.key) or str(e)
        return Result(run, [], {}, 0.0, why, store.folder(run.key), found=remembered)
