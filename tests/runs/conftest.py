import functools
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opnorm._core.files import read_tensors
from opnorm.runs.run import Run
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training
from tests.runs import processes

TINY = Run(model="cnn(width=4)", data="digits()", epochs=3, batch=32, limit=100, analyses=("accuracy()",))


@pytest.fixture
def tiny() -> Run:
    """A run of a second."""
    return TINY


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


@pytest.fixture
def same():
    """Whether two finished folders hold the same bits: weights, metrics (times apart), rows."""

    def check(store_a: Store, store_b: Store, run: Run) -> None:
        a, b = run_training(run, store_a), run_training(run, store_b)
        (weights_a, call_a), (weights_b, call_b) = (
            read_tensors(r.folder / "weights.safetensors") for r in (a, b)
        )
        assert call_a == call_b
        assert weights_a.keys() == weights_b.keys()
        assert all(torch.equal(tensor, weights_b[name]) for name, tensor in weights_a.items())
        assert processes.timeless(a.metrics) == processes.timeless(b.metrics)
        assert a.rows == b.rows

    return check


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The store of a run without interruption, once a session."""

    @functools.cache
    def complete(run: Run) -> Store:
        store = Store(tmp_path_factory.mktemp("finished") / "runs")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run_training(run, store)
        torch.set_num_threads(threads)
        return store

    return complete


@pytest.fixture
def opnorm(tmp_path: Path):
    """``opnorm(*args)`` in a process of its own, in the test's folder: (exit status, stdout, stderr)."""
    count = 0

    def call(*args: str, cwd: Path | None = None, wait: bool = True, encoding: str | None = None):
        nonlocal count
        count += 1
        out, err = tmp_path / f".out{count}", tmp_path / f".err{count}"
        process = processes.start(processes.command, list(args), cwd or tmp_path, out, err, encoding)

        def end():
            process.join(120)
            assert process.exitcode is not None, f"opnorm {' '.join(args)} hangs"
            return process.exitcode, out.read_text(encoding), err.read_text(encoding)

        return end() if wait else (process, end)

    return call


def until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.01)


@pytest.fixture(name="until")
def _until():
    return until


@pytest.fixture
def seeds():
    return lambda run, n: [replace(run, seed=s) for s in range(n)]
