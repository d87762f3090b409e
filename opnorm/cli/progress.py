"""What the terminal shows while there is something to wait for."""

import sys
from types import TracebackType
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from opnorm.runs.attack_evaluation import EvaluationProgress
from opnorm.runs.network_report import Step
from opnorm.runs.runner import News
from opnorm.training.loop import Moment

__all__ = [
    "AnalyzeProgress",
    "AttackProgress",
    "SeparationProgress",
    "StudyProgress",
    "TrainProgress",
    "stderr",
]


def stderr() -> Console:
    """Messages and bars go here, so that standard output holds results only."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )


Shown = TypeVar("Shown", bound="_Shown")


class _Shown:
    """A bar while the ``with`` block lasts."""

    def __init__(self) -> None:
        self.console = stderr()
        self.bar = _bar(self.console)

    def __enter__(self: Shown) -> Shown:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.bar.stop()


class TrainProgress(_Shown):
    """One run: a bar with loss, accuracy and time left; a line an epoch where there is no terminal."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.task = self.bar.add_task(label, total=None, note="")
        self.label = label

    def __call__(self, what: str, moment: Moment | None) -> None:
        """Told by :func:`opnorm.runs.run.execute`."""
        if moment is None:
            self.bar.update(self.task, description=what.partition("(")[0], note="")
            return
        note = f"epoch {moment.epoch}/{moment.epochs}  loss {moment.loss:.4f}  accuracy {moment.accuracy:.2%}"
        done = (moment.epoch - 1) * moment.steps + moment.step
        self.bar.update(self.task, total=moment.epochs * moment.steps, completed=done, note=note)
        if not self.console.is_terminal and moment.step == moment.steps:
            print(note, file=sys.stderr, flush=True)


class StudyProgress(_Shown):
    """Many runs: one bar for all of them, one for each under way, and a line for each that has ended."""

    def __init__(self, labels: list[str]) -> None:
        super().__init__()
        self.labels = labels
        self.shares = [0.0] * len(labels)
        self.tasks: dict[int, TaskID] = {}
        self.ended: set[int] = set()
        self.all = self.bar.add_task("all runs", total=len(labels), note="")

    def __call__(self, news: News) -> None:
        """Told by :func:`opnorm.runs.runner.carry_out`."""
        i = news.index
        if i in self.ended:  # late news of a worker that has already delivered
            return
        self.shares[i] = 1.0 if news.result else min(news.share, 0.99)
        if news.result is not None:
            self._end(news)
        else:
            if i not in self.tasks:
                self.tasks[i] = self.bar.add_task(self.labels[i], total=1.0, note="")
            self.bar.update(self.tasks[i], completed=news.share, note=news.text)
        self.bar.update(
            self.all, completed=sum(self.shares), note=f"{len(self.ended)} of {len(self.labels)} ended"
        )

    def _end(self, news: News) -> None:
        self.ended.add(news.index)
        if news.index in self.tasks:
            self.bar.remove_task(self.tasks.pop(news.index))
        result = news.result
        assert result is not None, "only ended runs come here"
        if result.failure:
            outcome = f"failed: {result.failure}"
        else:
            accuracy = result.find("accuracy")
            outcome = f"{accuracy[0]['accuracy']:.1%} clean" if accuracy else "done"
        found = "found, " if news.text == "found" else f"{result.seconds:.1f} s, "
        self.console.print(
            f"[{len(self.ended)}/{len(self.labels)}] {self.labels[news.index]}: {found}{outcome}",
            markup=False,
        )


class SeparationProgress(_Shown):
    """The share of all pairs that are done, and the least distance so far."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all pairs", total=1.0, note="")

    def __call__(self, share: float, least: float) -> None:
        """Called by :func:`opnorm.data.class_separation.separation`."""
        self.bar.update(self.all, completed=share, note=f"nearest {least:.4g}")


class AttackProgress(_Shown):
    """One evaluation: a bar for all points and one for the attack at work; a line a part where there is no terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all points", total=None, note="")
        self.one = self.bar.add_task("", total=None, note="")
        self.at: tuple[str, int] = ("", -1)

    def __call__(self, progress: EvaluationProgress) -> None:
        """Told by :func:`opnorm.runs.attack_evaluation.evaluate`."""
        if not self.console.is_terminal and progress.finished != self.at[1]:
            print(f"{progress.finished} of {progress.total} points done", file=sys.stderr, flush=True)
        if (progress.activity, progress.finished) != self.at:
            self.at = (progress.activity, progress.finished)
            self.bar.reset(self.one, total=progress.attacked, description=progress.activity)
        note = f"{progress.finished} of {progress.total} points"
        self.bar.update(self.all, total=progress.total, completed=progress.finished, note=note)
        self.bar.update(
            self.one, completed=progress.settled, note=f"{progress.settled} of {progress.attacked} settled"
        )


class AnalyzeProgress(_Shown):
    """Analyses of one network or of several: a bar for all of them, and a line for each that has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.all = self.bar.add_task("all analyses", total=None, note="")

    def __call__(self, step: Step) -> None:
        """Told by :func:`opnorm.runs.network_report.look`."""
        ended = step.seconds is not None
        note = "" if ended else f"{step.label}: {step.analysis.partition('(')[0]}"
        self.bar.update(self.all, total=step.steps, completed=step.at + ended, note=note)
        if step.seconds is not None:
            took = "found" if step.found else f"{step.seconds:.1f} s"
            outcome = f"not possible: {step.failure}" if step.failure else took
            self.console.print(
                f"[{step.at + 1}/{step.steps}] {step.label}: {step.analysis}: {outcome}", markup=False
            )
