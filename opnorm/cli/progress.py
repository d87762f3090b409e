"""Progress bars of the commands."""

import sys
from types import TracebackType
from typing import Self

from rich.progress import TaskID

from opnorm._core.progress_bar import progress_bar, stderr
from opnorm.runs.attack_evaluation import EvaluationProgress
from opnorm.runs.network_report import AnalysisProgress
from opnorm.runs.runner import StudyProgress
from opnorm.runs.training_run import RunProgress

__all__ = ["AnalyzeBar", "AttackBar", "SeparationBar", "StudyBar", "TrainBar"]


class _Bar:
    """A bar during the ``with`` block; it is a progress callback."""

    def __init__(self) -> None:
        self.console = stderr()
        self.bar = progress_bar(self.console)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.bar.stop()


class TrainBar(_Bar):
    """One run: a bar with loss, accuracy and time left; a line an epoch where there is no terminal."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.task = self.bar.add_task(label, total=None, note="")

    def __call__(self, event: RunProgress) -> None:
        """A callback of :func:`opnorm.runs.training_run.run_training`."""
        at = event.training
        if at is None:
            self.bar.update(self.task, description=event.activity.partition("(")[0], note="")
            return
        note = f"epoch {at.epoch}/{at.epochs}  loss {at.loss:.4f}  accuracy {at.accuracy:.2%}"
        done = (at.epoch - 1) * at.steps + at.step
        self.bar.update(self.task, total=at.epochs * at.steps, completed=done, note=note)
        if not self.console.is_terminal and at.step == at.steps:
            print(note, file=sys.stderr, flush=True)


class StudyBar(_Bar):
    """Many runs: one bar for all of them, one for each that is running, and a line for each that has ended."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.shares = [0.0] * len(labels)
        self.tasks: dict[int, TaskID] = {}
        self.ended: set[int] = set()
        self.all = self.bar.add_task("all runs", total=len(labels), note="")

    def __call__(self, event: StudyProgress) -> None:
        """A callback of :func:`opnorm.runs.runner.run_study`."""
        i = event.index
        if i in self.ended:  # a late event of a worker whose result is here
            return
        self.shares[i] = 1.0 if event.result else min(event.share, 0.99)
        if event.result:
            self.ended.add(i)
            if i in self.tasks:
                self.bar.remove_task(self.tasks.pop(i))
            line = f"[{len(self.ended)}/{len(self.labels)}] {self.labels[i]}: {_outcome(event)}"
            self.console.print(line, markup=False)
        else:
            if i not in self.tasks:
                self.tasks[i] = self.bar.add_task(self.labels[i], total=1.0, note="")
            self.bar.update(self.tasks[i], completed=event.share, note=event.text)
        note = f"{len(self.ended)} of {len(self.labels)} ended"
        self.bar.update(self.all, completed=sum(self.shares), note=note)


def _outcome(event: StudyProgress) -> str:
    """One run's time and accuracy, or why it failed."""
    result = event.result
    assert result is not None, "only of runs that have ended"
    found = "found, " if event.text == "found" else f"{result.seconds:.1f} s, "
    if result.failure:
        return f"{found}failed: {result.failure}"
    accuracy = result.find("accuracy")
    return found + (f"{accuracy[0]['accuracy']:.1%} clean" if accuracy else "done")


class SeparationBar(_Bar):
    """The share of all pairs that are done, and the least distance so far."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all pairs", total=1.0, note="")

    def __call__(self, share: float, least: float) -> None:
        """Called by :func:`opnorm.data.class_separation.separation`."""
        self.bar.update(self.all, completed=share, note=f"nearest {least:.4g}")


class AttackBar(_Bar):
    """One evaluation: a bar for all points and one for the attack at work; a line a part where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all points", total=None, note="")
        self.one = self.bar.add_task("", total=None, note="")
        self.at: tuple[str, int] = ("", -1)

    def __call__(self, event: EvaluationProgress) -> None:
        """A callback of :func:`opnorm.runs.attack_evaluation.evaluate`."""
        if not self.console.is_terminal and event.finished != self.at[1]:
            print(f"{event.finished} of {event.total} points done", file=sys.stderr, flush=True)
        if (event.activity, event.finished) != self.at:
            self.at = (event.activity, event.finished)
            self.bar.reset(self.one, total=event.attacked, description=event.activity)
        note = f"{event.finished} of {event.total} points"
        self.bar.update(self.all, total=event.total, completed=event.finished, note=note)
        self.bar.update(
            self.one, completed=event.settled, note=f"{event.settled} of {event.attacked} settled"
        )


class AnalyzeBar(_Bar):
    """Analyses of one network or of several: a bar for all of them, and a line for each that has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all analyses", total=None, note="")

    def __call__(self, event: AnalysisProgress) -> None:
        """A callback of :func:`opnorm.runs.network_report.analyze`."""
        ended = event.seconds is not None
        note = "" if ended else f"{event.label}: {event.call.partition('(')[0]}"
        self.bar.update(self.all, total=event.total, completed=event.done + ended, note=note)
        if event.seconds is not None:
            took = "found" if event.found else f"{event.seconds:.1f} s"
            outcome = f"not possible: {event.failure}" if event.failure else took
            line = f"[{event.done + 1}/{event.total}] {event.label}: {event.call}: {outcome}"
            self.console.print(line, markup=False)
