"""Trackers get what a run's folder holds, and the run does not depend on them."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from opnorm.errors import OpnormError
from opnorm.runs.store import Store
from opnorm.runs.tracking import check_trackers
from opnorm.runs.training_run import run_training


class Recorder(SimpleNamespace):
    """A module with the three functions that notes what it is told."""

    def __init__(self, fails=""):
        super().__init__(calls=[], fails=fails)

    def _told(self, function, *about):
        if function == self.fails:
            raise RuntimeError("no\nnetwork")
        self.calls.append((function, *about))

    def init(self, project, name, config):
        self._told("init", project, name, config)

    def log(self, metrics, step):
        self._told("log", step, metrics)

    def finish(self):
        self._told("finish")


@pytest.fixture
def recorder(monkeypatch):
    """``recorder(fails="log")``: the module that --track recorder names."""

    def install(fails=""):
        made = Recorder(fails)
        monkeypatch.setitem(sys.modules, "recorder.of_tests", made)
        monkeypatch.setitem(sys.modules, "recorder", SimpleNamespace(__path__=[]))
        return made

    return install


def tracking(tmp_path, *names):
    return Store(tmp_path / "runs", track=names)


def test_epochs_and_results(recorder, tiny, finished, tmp_path):
    told, store = recorder(), tracking(tmp_path, "recorder.of_tests")
    result = run_training(tiny, store)
    (begin, *logs, end) = told.calls
    assert begin[:3] == ("init", "opnorm", tiny.key)
    assert begin[3]["model"] == "cnn(width=4)"
    assert end == ("finish",)
    assert [step for _, step, _ in logs] == [1, 2, 3, 3]
    for (_, _, metrics), row in zip(logs, result.metrics, strict=False):
        assert (metrics["loss"], metrics["test_accuracy"]) == (row["loss"], row["test_accuracy"])
        assert metrics["layer_norms/1"] == row["layer_norms"]["1"]
        assert all(math.isfinite(value) for value in metrics.values())
    assert logs[-1][2] == {"accuracy": result.find("accuracy")[0]["accuracy"]}
    mine, plain = (s.folder(tiny.key) / "weights.safetensors" for s in (store, finished(tiny)))
    assert mine.read_bytes() == plain.read_bytes(), "the run is that without a tracker"
    run_training(tiny, store)
    assert told.calls[-1] is end, "nothing is told of what is found"


def test_a_training_that_goes_on_tells_all_its_epochs(recorder, tiny, tmp_path):
    told, store = recorder(), tracking(tmp_path, "recorder.of_tests")

    def stop(event):
        if event.training and event.training.epoch == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(tiny, store, progress=stop)
    assert [call[:2] for call in told.calls[1:]] == [("log", 1), ("log", 2), ("finish",)]
    told.calls.clear()
    run_training(tiny, store)
    assert [call[:2] for call in told.calls[1:]] == [*(("log", n) for n in (1, 2, 3, 3)), ("finish",)]


@pytest.mark.parametrize("fails", ["log", "finish"])
def test_a_tracker_that_fails_does_not_end_the_training(recorder, tiny, tmp_path, fails):
    told, store = recorder(fails), tracking(tmp_path, "recorder.of_tests")
    message = rf"--track recorder.of_tests failed in {fails} \(RuntimeError: no network\)"
    with pytest.warns(UserWarning, match=message) as said:
        result = run_training(tiny, store)
    assert len(said) == 1, "once"
    assert len(result.metrics) == 3
    assert [call[0] for call in told.calls] == (["init"] if fails == "log" else ["init", *["log"] * 4])


def test_a_tracker_that_does_not_begin(recorder, tiny, tmp_path):
    recorder("init")
    with pytest.raises(
        OpnormError, match=r"does not begin \(RuntimeError: no network\).*nothing was trained"
    ):
        run_training(tiny, tracking(tmp_path, "recorder.of_tests"))
    assert not (tmp_path / "runs" / f"{tiny.key}.partial").exists()


def test_tensorboard(tiny, tmp_path, main):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    store = tracking(tmp_path, "tensorboard")
    for again in (False, True):
        result = run_training(tiny, Store(store.root, track=store.track, again=again))
        (folder,) = (path for path in (store.root / "tensorboard").iterdir() if path.name == tiny.key)
        read = events.EventAccumulator(str(folder)).Reload()
        seen = [(e.step, e.value) for e in read.Scalars("loss")]
        assert seen == [(row["epoch"], pytest.approx(row["loss"])) for row in result.metrics], (
            "also when made anew"
        )
    assert [e.step for e in read.Scalars("accuracy")] == [3]
    assert main("rm", tiny.key, "--yes")[0] == 0
    assert not folder.exists()


def test_wandb(tiny, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    run_training(replace(tiny, epochs=1), tracking(tmp_path, "wandb"))
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_trackio(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio")
    run_training(replace(tiny, epochs=1), tracking(tmp_path, "trackio"))
    assert list((tmp_path / "trackio").rglob("*.db"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "there is no such tracker; did you mean 'tensorboard'?"),
        ("math", "the module has no init, finish; expected a tracker, with init, log, finish"),
        ("no_package.tracker", "cannot be imported (ModuleNotFoundError: No module named 'no_package')"),
        ("wandb", "pip install wandb"),
        ("tensorboard", "pip install 'opnorm[tensorboard]'"),
    ],
)
def test_what_is_no_tracker(tmp_path, monkeypatch, main, name, message):
    for hidden in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(OpnormError) as caught:
        check_trackers((name,), tmp_path)
    assert message in str(caught.value)
    for command in (("train",), ("study", "tour")):
        status, out, err = main(*command, "--track", name)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err
    assert not (tmp_path / "runs").exists(), "found out before anything is trained"


def test_it_costs_a_step_nothing(recorder, tiny, tmp_path):
    """Trackers are told once an epoch, however many steps it has."""
    told = recorder()
    steps = []
    run_training(
        replace(tiny, batch=10), tracking(tmp_path, "recorder.of_tests"),
        progress=lambda event: steps.append(event.training and event.training.step),
    )  # fmt: skip
    assert len(steps) > 30
    assert len(told.calls) == 6
