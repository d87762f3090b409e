"""Training on streamed images: the same bits for any number of processes, after a stop inside an epoch, and after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from opnorm.data import Dataset, parquet
from opnorm.data.augmentations import crop, flip
from opnorm.errors import DataError, RunError
from opnorm.objectives import pgd_at
from opnorm.regularizers import parseval
from opnorm.training import TrainingSettings, train
from tests.data.files import write_pictures


@pytest.fixture
def file(tmp_path, monkeypatch) -> Path:
    """100 pictures in row groups of 8, of which 79 train in 4 steps of 16."""
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "cache"))
    file = write_pictures(tmp_path / "pictures.parquet", 100)
    pq.write_table(pq.read_table(file), file, row_group_size=8)
    return file


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 3)
    )


def settings(**more) -> TrainingSettings:
    return TrainingSettings(epochs=2, batch=16, augment=[crop(1), flip()], **more)


EVERYTHING = {"objective": pgd_at(eps=0.1, steps=2), "regularizers": [parseval()], "ema": 0.9}


def trained(data: Dataset, settings: TrainingSettings, **more) -> tuple[dict, list]:
    """The weights and the metrics of a network after training."""
    model = network()
    rows = train(model, data, settings, **more)
    return model.state_dict(), [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def equal(first: tuple[dict, list], second: tuple[dict, list]) -> bool:
    weights = zip(first[0].values(), second[0].values(), strict=True)
    return all(torch.equal(a, b) for a, b in weights) and first[1] == second[1]


def test_any_number_of_processes_gives_the_same_bits(file, monkeypatch):
    runs = []
    for workers in ("0", "1", "2"):
        monkeypatch.setenv("OPNORM_WORKERS", workers)
        runs.append(trained(parquet(str(file), stream=True), settings()))
    assert equal(runs[0], runs[1])
    assert equal(runs[0], runs[2])


@pytest.mark.each_value
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("stop", [(1, 1), (1, 3), (2, 4)])
def test_stopped_inside_an_epoch_and_resumed(file, monkeypatch, tmp_path, stream, stop):
    monkeypatch.setenv("OPNORM_WORKERS", "0")
    data, chosen = parquet(str(file), stream=stream), settings(**EVERYTHING)

    def interrupt(progress):
        if (progress.epoch, progress.step) == stop:
            raise KeyboardInterrupt

    kept = {"folder": tmp_path / "run", "checkpoint_minutes": 0}
    with pytest.raises(KeyboardInterrupt):
        trained(data, chosen, progress=interrupt, **kept)
    seen = []
    resumed = trained(data, chosen, progress=seen.append, **kept)
    assert (seen[0].epoch, seen[0].step) == stop  # the checkpoint is of the step before
    assert equal(resumed, trained(data, chosen))


def test_another_number_of_steps_is_refused(file, tmp_path):
    data = parquet(str(file))

    def interrupt(progress):
        if progress.step == 3:
            raise KeyboardInterrupt

    kept = {"folder": tmp_path / "run", "checkpoint_minutes": 0}
    with pytest.raises(KeyboardInterrupt):
        trained(data, settings(), progress=interrupt, **kept)
    with pytest.raises(RunError, match="the checkpoint is of step 2 of 4 of an epoch, which now has 2"):
        trained(data.limit(40), settings(), **kept)


KILLED = """
import sys
if __name__ == "__main__":
    from tests.training.test_streamed import network, parquet, settings, train
    say = lambda progress: print(progress.epoch, progress.step, flush=True)
    data = parquet(sys.argv[1], stream=True)
    train(network(), data, settings(), folder=sys.argv[2], checkpoint_minutes=0, progress=say)
"""


def test_killed_inside_an_epoch_and_gone_on_with(file, monkeypatch, tmp_path):
    script, root = tmp_path / "killed.py", Path(__file__).parents[2]
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(root), "OPNORM_WORKERS": "1"}
    command = [sys.executable, str(script), str(file), str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None, "it is a pipe"
        while process.stdout.readline().split() != ["2", "3"]:
            assert process.poll() is None, "it trains"
        workers = children(process.pid)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    seen, data = [], parquet(str(file), stream=True)
    resumed = trained(data, settings(), folder=tmp_path / "run", progress=seen.append)
    assert seen[0].epoch == 2
    assert seen[0].step >= 3
    assert equal(resumed, trained(data, settings()))
    if workers is not None:  # the process that decodes, and one of multiprocessing's own
        assert workers
        while any(Path(f"/proc/{worker}").exists() for worker in workers):
            time.sleep(0.05)


def children(pid: int) -> list[str] | None:
    """The processes that a process has started; None where the system does not say."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    return listed.read_text().split() if listed.exists() else None


def test_an_image_that_cannot_be_decoded_is_named(file):
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row in rows[90:]:
        row["image"]["bytes"] = row["image"]["bytes"][:-30]
    pq.write_table(type(table).from_pylist(rows, table.schema), file, row_group_size=8)
    data = parquet(str(file), stream=True)
    with pytest.raises(DataError, match=r"pictures\.parquet, row 9.: \d+ bytes cannot be decoded"):
        trained(data, settings())
