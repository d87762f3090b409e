"""Two processes train what one trains, up to rounding; what goes wrong in one ends both."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from opnorm._core.files import read_lines, read_tensors
from opnorm.errors import TrainError
from opnorm.training import distributed as parallel
from tests.runs import ranks, ways

RUN = [
    "train", "--model", "resnet(depth=8, width=4)", "--data", "digits()", "--limit", "64", "--batch", "16", "--ema", "0.5",
    "--objective", "pgd_at(eps=0.1, steps=2)", "--regularizers", "norm_decay(p=inf)", "--analyses", "accuracy()",
]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """For every way, what two processes made."""
    folder = tmp_path_factory.mktemp("pairs")
    group = ranks.start(2, ranks.trainings, str(folder), list(ways.WAYS))
    assert ranks.end(group) == [0, 0]
    return lambda name: [torch.load(folder / f"{name}.{rank}") for rank in range(2)]


@pytest.mark.parametrize("name", ways.WAYS)
def test_two_processes_train_what_one_does(pairs, name):
    one, (first, second) = ways.trained(name), pairs(name)
    loose = {"rtol": 0.05, "atol": 0.02} if name == "bf16" else {"rtol": 2e-4, "atol": 2e-5}
    assert first["state"].keys() == one["state"].keys()
    for key, tensor in one["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), f"{key} differs between the processes"
        torch.testing.assert_close(
            first["state"][key], tensor, msg=lambda text, key=key: f"{key}: {text}", **loose
        )
    for ours, row in zip(first["metrics"], one["metrics"], strict=True):
        if (
            name == "bf16"
        ):  # logits closer than its rounding: such a point may count as correct in one and not in the other
            assert (ours.pop("train_accuracy") * len(ways.DATA.train.labels)).is_integer()
            del row["train_accuracy"]
        assert ours == pytest.approx(row, rel=5 * 2**-8 if name == "bf16" else 1e-3)


@pytest.fixture(scope="module")
def troubles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("troubles")
    group = ranks.start(2, ranks.troubles, str(folder))
    assert ranks.end(group) == [0, 0]
    return lambda name: [(folder / f"{name}.{rank}").read_text() for rank in range(2)]


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("attack", "TrainError: process 1: AttackError: a bad attack", "AttackError: a bad attack"),
        ("probe", "OSError: the disk is full", "TrainError: process 0: OSError: the disk is full"),
        ("loss", "TrainError: the loss is inf at epoch 1, step 1 of 4", "TrainError: the loss is inf"),
        (
            "uneven",
            "TrainError: 15 points a step cannot be split evenly among 2",
            "TrainError: 15 points",
        ),
        ("after", "nothing", "nothing"),
        ("sums", "ZeroDivisionError", "ZeroDivisionError"),
    ],
)
def test_what_goes_wrong_in_one_process_goes_wrong_in_both(troubles, name, first, second):
    texts = troubles(name)
    assert texts[0].startswith(first)
    assert texts[1].startswith(second)


def _whole_run(folder, args, by_torchrun):
    """A run begun by two processes; what is called at its end gives what they printed."""
    if not by_torchrun:
        group = ranks.start(2, ranks.opnorm, args, folder, folder / "whole")

        def end():
            assert ranks.end(group) == [0, 0]
            return "".join((folder / f"whole.out{rank}").read_text() for rank in range(2))

        return end
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    process = subprocess.Popen(
        [*torchrun, "-m", "opnorm", *args],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip

    def end():
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Warning" not in err
        return out

    return end


@pytest.mark.parametrize("by_torchrun", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_result_is_that_of_one_process_also_when_killed(tmp_path, opnorm, until, by_torchrun):
    """By two processes, or by torchrun itself, and by two that are killed in the second epoch and started again."""
    status, out, _ = opnorm(*RUN, "--epochs", "3", "--out", "one", "--json")
    assert status == 0
    key = json.loads(out)["key"]
    whole = _whole_run(tmp_path, [*RUN, "--epochs", "3", "--out", "two", "--json"], by_torchrun)
    args = [*RUN, "--epochs", "3", "--out", "killed", "--json"]
    group = ranks.start(2, ranks.opnorm, args, tmp_path, tmp_path / "first")
    until((tmp_path / "killed" / f"{key}.partial" / "checkpoint.safetensors").exists)
    for process in group:
        process.kill()
    ranks.end(group)
    assert not (tmp_path / "killed" / key).exists(), "killed too late"
    group = ranks.start(2, ranks.opnorm, args, tmp_path, tmp_path / "second")
    assert ranks.end(group) == [0, 0]
    assert json.loads((tmp_path / "second.out0").read_text())["key"] == key
    assert (tmp_path / "second.out1").read_text() == ""
    assert json.loads(whole())["results"].keys() == {"accuracy()"}, "one process prints"

    one, two, killed = (
        read_tensors(tmp_path / name / key / "weights.safetensors")[0] for name in ("one", "two", "killed")
    )
    for name, tensor in one.items():
        assert torch.equal(two[name], killed[name]), "a killed run ends with the same bits"
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-4)
    assert len(read_lines(tmp_path / "two" / key / "metrics.jsonl")) == 3

    group = ranks.start(2, ranks.opnorm, args, tmp_path, tmp_path / "third")
    assert ranks.end(group) == [0, 0], "what is finished is found"


def test_a_divergence_is_said_once_and_remembered(tmp_path):
    args = [*RUN, "--epochs", "2", "--optimizer", "sgd(lr=1e30)"]
    for _ in range(2):
        group = ranks.start(2, ranks.opnorm, args, tmp_path, tmp_path / "run")
        assert ranks.end(group) == [2, 2]
        (message,) = ranks.said(tmp_path / "run.err0")
        assert "smaller learning rate" in message
        assert ranks.said(tmp_path / "run.err1") == []
    assert "remembered" in message


@pytest.mark.parametrize("device", ["cuda:1", "mps"])
def test_a_device_that_several_processes_cannot_use_is_refused(device, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainError, match="expected cpu or cuda"), parallel.process_group(device):
        pass


def test_alone_nothing_happens():
    model = nn.Sequential(nn.BatchNorm1d(3))
    with parallel.process_group("mps") as device, parallel.synchronized_batch_norm(model):
        assert device == "mps"
        assert type(model[0]) is nn.BatchNorm1d
    assert (parallel.world_size(), parallel.is_main_process(), parallel.all_reduce_sum(2.0)) == (
        1,
        True,
        (2.0,),
    )
    assert parallel.data_parallel(model) is model
    assert parallel.broadcast_from_main(lambda: 3) == 3
    x = torch.arange(4)
    assert torch.equal(parallel.shard(x), x)
    with pytest.raises(ValueError, match="as it is"), parallel.synchronized_errors():
        raise ValueError("as it is")
