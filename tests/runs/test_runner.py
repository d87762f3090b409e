"""Many runs side by side: the same bits as one after another, no process left behind, a page even when some fail."""

import json
import math
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opnorm.errors import OpnormError, RunError
from opnorm.runs.engines import engine as engine_module
from opnorm.runs.engines import local as local_module
from opnorm.runs.run import Result, Run
from opnorm.runs.runner import Study, StudyProgress, run_study
from opnorm.runs.store import Store
from opnorm.runs.study_page import page_path, write_study
from opnorm.runs.training_run import run_training
from opnorm.studies import tour
from tests.runs import processes
from tests.runs.processes import alive, children, command_of, timeless

SMALL = {"model": "cnn(width=2)", "seeds": 1, "size": "smoke", "limit": 64}


def few(runs) -> Study:
    return Study("few", runs, lambda results: pytest.fail("not asked for"))


def test_results_come_in_order_and_are_found_again(tiny, store, seeds, monkeypatch):
    runs = seeds(replace(tiny, epochs=1), 3)
    news: list[StudyProgress] = []
    results = run_study(few(runs), store, jobs=1, progress=news.append)
    assert [r.run for r in results] == runs
    assert [n.index for n in news if n.result] == [0, 1, 2]
    shares = [n.share for n in news if n.index == 1]
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)

    monkeypatch.setattr(engine_module, "run_training", lambda *a, **k: pytest.fail("run again"))
    news.clear()
    assert run_study(few(runs), store, jobs=4, progress=news.append) == results
    assert [(n.index, n.text) for n in news] == [(0, "found"), (1, "found"), (2, "found")]


def test_side_by_side_gives_the_same_bits(tiny, store, seeds, tmp_path, until, same, monkeypatch):
    """Also where one of the runs waits for another process: the others come first, and its workers take it then."""
    monkeypatch.setattr(local_module, "available_cores", lambda: 2)
    monkeypatch.setenv("PYTHONHASHSEED", "1")  # of the workers, which name their folders by the runs' keys
    runs, ready = seeds(replace(tiny, epochs=2, objective="pgd_at(steps=2)"), 3), tmp_path / "ready"
    holder = processes.start(processes.hold_lock, store.root, runs[0].key, ready)
    until(ready.exists)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = run_study(few(runs), Store(tmp_path / "one"), jobs=1)
    news: list[StudyProgress] = []

    def progress(event):
        news.append(event)
        if sum(bool(n.result) for n in news) == 2:
            holder.kill()

    two = run_study(few(runs), store, jobs=2, progress=progress)
    holder.join()
    torch.set_num_threads(threads)
    for run, a, b in zip(runs, one, two, strict=True):
        assert a.run == b.run == run
        assert not b.failure
        assert timeless(a.metrics) == timeless(b.metrics)
        assert a.rows == b.rows
        same(store, Store(tmp_path / "one"), run)
    assert sorted(n.index for n in news if n.result) == [0, 1, 2]
    assert [n.index for n in news if n.result][2] == 0
    assert any("waits for another process" in n.text for n in news if n.index == 0)
    assert not [p for p in children(os.getpid()) if "spawn_main" in command_of(p)], "no worker stays"


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_cannot_start_stops_the_study(tiny, store, jobs, until):
    runs = [replace(tiny, epochs=500), replace(tiny, data='folder("nowhere")')]
    if jobs == 1:
        runs.reverse()
    before = children(os.getpid())
    with pytest.raises(OpnormError, match="nowhere"):
        run_study(few(runs), store, jobs=jobs)
    until(
        lambda: (
            not alive(p for p in children(os.getpid()) if p not in before and "tracker" not in command_of(p))
        )
    )


@pytest.mark.parametrize("jobs", [0, -2])
def test_jobs_that_make_no_sense(tiny, store, jobs):
    with pytest.raises(RunError, match="at least 1"):
        run_study(few([tiny]), store, jobs=jobs)


def test_a_run_that_another_process_is_at_is_waited_for(tiny, store, tmp_path, until, seeds):
    """The others come first; then the lock is free, here because its holder is killed."""
    runs, ready = seeds(replace(tiny, epochs=1), 3), tmp_path / "ready"
    holder = processes.start(processes.hold_lock, store.root, runs[0].key, ready)
    until(ready.exists)
    ended, waited = [], []

    def progress(event):
        waited.append("waits for another process" in event.text)
        if event.result:
            ended.append(event.index)
        if len(ended) == 2:
            holder.kill()

    results = run_study(few(runs), store, jobs=1, progress=progress)
    holder.join()
    assert sorted(ended[:2]) == [1, 2]
    assert ended[2] == 0
    assert any(waited)
    assert not any(result.failure for result in results)


def test_threads_are_those_of_the_plan_however_much_is_left(tiny, store, seeds, monkeypatch):
    monkeypatch.setattr(local_module, "available_cores", lambda: 4)
    runs = seeds(replace(tiny, epochs=1), 2)
    before = torch.get_num_threads()
    run_training(runs[0], store)
    run_study(few(runs), store, jobs=2)
    assert torch.get_num_threads() == before
    assert store.about(runs[1].key)["where"]["threads"] == 2


def test_a_run_goes_on_with_the_threads_that_it_began_with(tiny, store):
    used = []

    def progress(event):
        if event.training:
            used.append(torch.get_num_threads())
            if len(used) == 5:
                raise KeyboardInterrupt

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    with pytest.raises(KeyboardInterrupt):
        run_training(tiny, store, progress=progress)
    torch.set_num_threads(1)
    run_training(tiny, store, progress=progress)
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert set(used) == {3}


def test_failures_are_rows_and_the_page_is_written(store):
    made = tour(**SMALL)
    worst = Run.from_dict(made.runs[0].as_dict() | {"optimizer": "sgd(lr=1e30)", "batch": 16})
    made = replace(made, runs=[*made.runs[:2], replace(worst, objective="pgd_at(eps=0.3)")])
    results = run_study(made, store, jobs=1)
    assert [bool(r.failure) for r in results] == [False, False, True]
    page = write_study(made, results, store)
    text = page.read_text()
    assert "pgd_at(eps=0.3)" in text
    assert "smaller learning rate" in text
    assert json.loads((page.parent / "report.json").read_text())["findings"][0].startswith("1 run failed")

    remembered = run_study(made, store, jobs=1)[2]
    assert (remembered.failure, remembered.found) == (results[2].failure, True)
    assert not results[2].found
    assert str(store.root) not in remembered.failure, "a report names no folder of this machine"


@pytest.mark.slow
def test_a_page_of_failures_only(store):
    made = tour(**SMALL, lr=1e30, batch=8)
    results = run_study(made, store, jobs=1)
    assert all(r.failure for r in results)
    assert "claims that need them are not decided" in write_study(made, results, store).read_text()


def test_the_tour_without_training(store):
    made = tour(**(SMALL | {"size": "laptop"}), epochs=0)
    made = replace(made, runs=made.runs[:2])
    results = run_study(made, store, jobs=1)
    assert write_study(made, results, store).exists()


def test_the_tours_numbers_are_those_of_its_runs(store, tmp_path):
    made = tour(**(SMALL | {"seeds": 2}))
    made = replace(made, runs=made.runs[:2])
    results = run_study(made, store, jobs=1)
    page = write_study(made, results, store, "svg")
    report = json.loads((page.parent / "report.json").read_text())
    plain = report["table"]["rows"][0]
    clean = [r.find("accuracy")[0]["accuracy"] for r in results[:2]]
    mean = sum(clean) / 2
    assert plain["method"] == "plain"
    assert plain["clean"]["mean"] == pytest.approx(mean)
    assert plain["clean"]["std"] == pytest.approx(math.hypot(*(c - mean for c in clean)))
    assert plain["clean"]["n"] == 2
    robust = [r.find("robust_accuracy")[0] for r in results[:2]]
    assert plain[f"robust_inf_{robust[0]['eps']:g}"]["mean"] == pytest.approx(
        sum(r["accuracy"] for r in robust) / 2
    )
    assert len(list((page.parent / "figures").glob("*.svg"))) >= 4
    assert page_path(made, store) == page, "the same study has the same page"
    assert page_path(replace(made, runs=made.runs[:1]), store) != page


@pytest.mark.parametrize("settings", [{"seeds": 0}, {"size": "big"}, {"limit": 0}, {"epochs": -1}])
def test_tours_that_make_no_sense(settings):
    with pytest.raises(OpnormError):
        tour(**settings)


def test_seconds_and_failures_of_a_result(tiny, store):
    assert Result(tiny, [], {}, 0.0, "why").find("accuracy") == []
    assert run_training(tiny, store).seconds > 0


# ---------------------------------------------------------------- real processes


def tour_process(folder: Path):
    """A study in a session of its own, each of whose runs takes a few seconds; what ends it gives stdout and stderr."""
    call = 'tour(epochs=60, model="cnn(width=4)", batch=8, limit=400, seeds=1)'
    args, (out, err) = ["study", call, "--jobs", "2", "--out", "runs"], (folder / ".out", folder / ".err")
    process = processes.start(processes.command_in_session, args, folder, out, err)

    def end():
        process.join(60)
        return out.read_text(), err.read_text()

    return process, end


def epochs_kept(folder: Path) -> int:
    return sum(len(p.read_text().splitlines()) for p in folder.glob("runs/*/metrics.jsonl"))


@pytest.mark.parametrize(
    "moment", ["training", *(pytest.param(d, marks=pytest.mark.slow) for d in (0.0, 0.2, 0.6, 1.2))]
)
def test_ctrl_c_stops_every_process(tmp_path, until, moment):
    """Some seconds after the workers have begun to start, or once they train."""
    process, end = tour_process(tmp_path)
    if moment == "training":
        until(lambda: epochs_kept(tmp_path) > 3)
    else:
        until(lambda: any("spawn_main" in command_of(p) for p in children(process.pid)))
        time.sleep(moment)
    below = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    out, err = end()
    assert process.exitcode == 130, err
    assert out == ""
    assert err.splitlines()[-1] == "stopped; what was done is kept, and the same command goes on from there"
    assert "Traceback" not in err
    until(lambda: not alive(below))
    if moment == "training":
        assert len(below) >= 2
        assert epochs_kept(tmp_path) > 3


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path, until):
    process, end = tour_process(tmp_path)
    until(lambda: epochs_kept(tmp_path) > 0)
    below = children(process.pid)
    assert len(below) >= 2
    process.kill()  # it has no time to stop the others
    end()
    until(lambda: not alive(below))


@pytest.mark.slow
def test_a_worker_that_is_killed_ends_the_study_with_the_likely_cause(tmp_path, until):
    process, end = tour_process(tmp_path)
    until(lambda: epochs_kept(tmp_path) > 0)
    workers = [p for p in children(process.pid) if "spawn_main" in command_of(p)]
    os.kill(workers[0], signal.SIGKILL)  # as the kernel does when memory is short
    _, err = end()
    assert process.exitcode == 2
    assert "ended unexpectedly: out of memory, or killed?" in err.splitlines()[-1]
    assert "Traceback" not in err
    until(lambda: not alive(workers))
