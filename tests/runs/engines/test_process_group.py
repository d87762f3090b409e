"""One run in several processes, as a part of a study: it goes on from the last epoch when one of them dies."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from opnorm.errors import RunError
from opnorm.runs.engines.local import LocalEngine
from opnorm.runs.runner import Study, run_study
from opnorm.runs.store import Store
from tests.runs import ranks
from tests.runs.processes import alive, children, command_of


def few(runs) -> Study:
    return Study("few", runs, lambda results: pytest.fail("not asked for"))


def process_of_rank(rank: int) -> int:
    def is_it(pid: int) -> bool:
        return (
            "group_process" in command_of(pid)
            and f"\0RANK={rank}\0" in Path(f"/proc/{pid}/environ").read_text()
        )

    return next(pid for pid in children(os.getpid()) if is_it(pid))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_killed(tiny, store, tmp_path, same, rank):
    run = replace(tiny, epochs=60)
    options = ["--model", run.model, "--data", run.data, "--epochs", "60", "--batch", "32", "--limit", "100"]
    options += ["--analyses", "accuracy", "--out", "whole"]
    whole = ranks.start(2, ranks.opnorm, ["train", *options], tmp_path, tmp_path / "whole")
    assert ranks.end(whole) == [0, 0], (tmp_path / "whole.err0").read_text()
    killed, epochs = [], []

    def progress(event):
        if "epoch" in event.text:
            epochs.append(int(event.text.split()[1].partition("/")[0]))
        if not killed and epochs and epochs[-1] > 3:
            killed.append(process_of_rank(rank))
            os.kill(killed[0], signal.SIGKILL)

    (result,) = run_study(few([run]), store, engine=LocalEngine(processes=2), progress=progress)
    assert killed
    assert epochs == sorted(epochs), "from the last epoch"
    assert store.about(run.key)["where"]["processes"] == 2
    assert not result.found
    same(store, Store(tmp_path / "whole"), run)


@pytest.mark.slow
def test_a_failure_is_a_row_and_no_reason_to_start_again(tiny, store):
    bad = replace(tiny, optimizer="sgd(lr=1e30)", batch=16)
    (result,) = run_study(few([bad]), store, engine=LocalEngine(processes=2))
    assert "smaller learning rate" in result.failure
    assert result.failure.count("opnorm") == 0


def test_no_process_is_left_when_the_study_is_stopped(tiny, store, until):
    below = []

    def progress(event):
        if "epoch" in event.text:
            below.extend(pid for pid in children(os.getpid()) if "group_" in command_of(pid))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_study(
            few([replace(tiny, epochs=2000)]), store, engine=LocalEngine(processes=2), progress=progress
        )
    assert len(below) == 3
    until(lambda: not alive(below))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"processes": 0}, "at least 1 process"),
        ({"gpus": 1.5}, "a whole number"),
        ({"cpus": 0}, "above 0"),
        ({"cpus": float("nan")}, "above 0"),
        ({"gpus": 2, "processes": 3}, "one process for each GPU"),
        ({"jobs": 0}, "at least 1 process"),
    ],
)
def test_amounts_that_make_no_sense(settings, said):
    with pytest.raises(RunError, match=said):
        LocalEngine(**settings)


@pytest.mark.parametrize(
    ("settings", "jobs", "threads"),
    [
        ({}, 8, 2),
        ({"cpus": 4}, 4, 4),
        ({"cpus": 0.5}, 32, 1),
        ({"cpus": 4, "processes": 2}, 4, 2),
        ({"processes": 4}, 4, 1),
        ({"gpus": 0.25}, 4, 4),
        ({"gpus": 2}, 1, 8),
    ],
)
def test_the_share_of_a_run(settings, jobs, threads, monkeypatch):
    monkeypatch.setattr("opnorm.runs.engines.local.available_cores", lambda: 16)
    engine = LocalEngine(**settings)
    assert (engine.jobs, engine.share(100).threads) == (jobs, threads)
