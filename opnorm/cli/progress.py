"""Progress bars of the commands."""

import sys
from types import TracebackType
from typing import Self

from rich.progress import TaskID

from opnorm._core.progress_bar import progress_bar, stderr
from opnorm.runs.attack_evaluation import EvaluationProgress
from opnorm.runs.network_report import AnalysisProgress
from opnorm.runs.runner import WAITING, StudyProgress
from opnorm.runs.training_run import RunProgress

__all__ = ["AnalyzeBar", "AttackBar", "Bar", "StudyBar", "TrainBar"]


class Bar:
    """A bar during the ``with`` block; those of its subclasses are progress callbacks."""

    def __init__(self, label: str, total: float | None = None) -> None:
        self.console = stderr()
        self.bar = progress_bar(self.console)
        self.main = self.bar.add_task(label, total=total, note="")

    def update(self, done: float, note: str, total: float | None = None) -> None:
        """Show how much is done."""
        self.bar.update(self.main, completed=done, note=note, total=total)

    def line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, markup=False)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.bar.stop()


class TrainBar(Bar):
    """One run: a bar with loss, accuracy and time left; a line an epoch where there is no terminal."""

    def __call__(self, event: RunProgress) -> None:
        """A callback of :func:`opnorm.runs.training_run.run_training`."""
        at = event.training
        if at is None:
            self.bar.update(self.main, description=event.activity.partition("(")[0], note="")
            return
        note = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.4f}  accuracy {at.accuracy:.2%}"
        self.update((at.epoch - 1) * at.steps + at.step, note, at.epochs * at.steps)
        if not self.console.is_terminal and at.step == at.steps:
            print(note, file=sys.stderr, flush=True)


class StudyBar(Bar):
    """Many runs: one bar for all of them, one for each that is running, and a line for each that has ended.

    Args:
        total: the number of runs; a study may add some.
    """

    def __init__(self, total: int) -> None:
        super().__init__("all runs", total)
        self.total = total
        self.shares: dict[int, float] = {}
        self.tasks: dict[int, TaskID] = {}
        self.ended: set[int] = set()

    def __call__(self, event: StudyProgress) -> None:
        """A callback of :func:`opnorm.runs.runner.run_study`."""
        i, label = event.index, f"{event.run.label}, seed {event.run.seed}"
        self.total = max(self.total, i + 1)
        if i in self.ended or event.text == WAITING:  # or a late event of a worker whose result is here
            return
        if event.result:
            self.ended.add(i)
            self.shares[i] = 1.0
            if i in self.tasks:
                self.bar.remove_task(self.tasks.pop(i))
            self.line(f"[{len(self.ended)}/{self.total}] {label}: {_outcome(event)}")
        else:
            self.shares[i] = min(event.share, 0.99)
            if i not in self.tasks:
                self.tasks[i] = self.bar.add_task(label, total=1.0, note="")
            self.bar.update(self.tasks[i], completed=event.share, note=event.text)
        self.update(sum(self.shares.values()), f"{len(self.ended)} of {self.total} ended", self.total)


def _outcome(event: StudyProgress) -> str:
    """One run's time and accuracy, or why it failed."""
    result = event.result
    assert result is not None, "only of runs that have ended"
    if result.failure:
        again = " (remembered; --again tries again)" if result.found else ""
        return f"failed: {result.failure}{again}" + (f" (its output: {result.log})" if result.log else "")
    found = f"found, of {result.ended}, " if result.found else f"{result.seconds:.1f} s, "
    accuracy = result.find("accuracy")
    return found + (f"{accuracy[0]['accuracy']:.1%} clean" if accuracy else "done")


class AttackBar(Bar):
    """One evaluation: a bar for all points and one for the attack at work; a line a part where there is no terminal."""

    def __init__(self) -> None:
        super().__init__("all points")
        self.stage = self.bar.add_task("", total=None, note="")
        self.at: tuple[str, int] = ("", -1)

    def __call__(self, event: EvaluationProgress) -> None:
        """A callback of :func:`opnorm.runs.attack_evaluation.evaluate`."""
        note = f"{event.finished} of {event.total} points"
        if not self.console.is_terminal and event.finished != self.at[1]:
            print(f"{note} done", file=sys.stderr, flush=True)
        if (event.activity, event.finished) != self.at:
            self.at = (event.activity, event.finished)
            self.bar.reset(self.stage, total=event.attacked, description=event.activity)
        self.update(event.finished, note, event.total)
        settled = f"{event.settled} of {event.attacked} settled"
        self.bar.update(self.stage, completed=event.settled, note=settled)


class AnalyzeBar(Bar):
    """Analyses of one network or of several: a bar for all of them, and a line for each that has ended."""

    def __call__(self, event: AnalysisProgress) -> None:
        """A callback of :func:`opnorm.runs.network_report.analyze`."""
        if event.seconds is None:
            note = f"{event.label}: {event.call.partition('(')[0]}"
            return self.update(event.done, note, event.total)
        self.update(event.done + 1, "", event.total)
        took = f"found, of {event.found}" if event.found else f"{event.seconds:.1f} s"
        outcome = f"not possible: {event.failure}" if event.failure else took
        return self.line(f"[{event.done + 1}/{event.total}] {event.label}: {event.call}: {outcome}")
