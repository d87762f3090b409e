"""A run is found again, resumed after any kill, and never damaged by a full disk, another process or a diverged loss."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from opnorm import models, regularizers, spec
from opnorm._core.files import read_json, read_lines, read_tensors
from opnorm.data import digits
from opnorm.errors import ModelError, OpnormError, RunError, SpecError, TrainError
from opnorm.models import cnn
from opnorm.runs import training_run
from opnorm.runs.build import make_data, make_model
from opnorm.runs.run import DEFAULT_ANALYSES, Run, analyses_after
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training
from opnorm.training.checkpoint import read_checkpoint
from tests.runs import processes
from tests.runs.processes import timeless

# ---------------------------------------------------------------- the key


def test_the_key_is_of_the_settings_not_of_how_they_are_written():
    plain = Run("cnn(width=4)", "digits()")
    for other in (
        Run("cnn( width = 2*2 )", "digits"),
        Run(
            "cnn(width=4)",
            "digits()",
            objective="plain",
            optimizer="sgd(momentum=0.9, lr=0.05)",
        ),
        Run("cnn(width=4, stride=1, depth=2)", "digits()", optimizer="sgd(lr=0.05)", schedule="cosine(0.0)"),
        Run("cnn(stride=1, width=4)", "digits()", analyses=()),
        Run("cnn(width=4)", "digits()", analyses=("accuracy('train')",)),
    ):
        assert other.key == plain.key
    made = Run(spec.spec_of(cnn(width=4)), "digits()", regularizers=(regularizers.norm_decay(1),))
    assert made.key == Run("cnn(width=4)", "digits()", regularizers=("norm_decay(p=1, beta=1e-3)",)).key


@pytest.mark.parametrize(
    ("call", "mean", "std"),
    [("cnn(width=2)", 0.306, 0.3765), ("cnn(width=2, mean=None, std=None)", 0.306, 0.3765),
     ("cnn(width=2, mean=0, std=1)", 0, 1), ("cnn(width=2, mean=(0,))", 0, 0.3765), ("cnn(width=2, std=1.0)", 0.306, 1),
     ("resnet(depth=8, width=2, mean=0.0)", 0, 0.3765), (__name__ + ".net(mean=0)", 0, 1),
     (__name__ + ".net()", 0.306, 1)],
)  # fmt: skip
def test_what_the_call_states_is_built_and_the_data_give_the_rest(call, mean, std):
    run = Run(call, "digits()")
    for same in (run, replace(run, seed=1), Run.from_dict(run.as_dict())):
        normalize = make_model(same, make_data(same))[0]
        assert normalize.mean.item() == pytest.approx(mean, abs=1e-3)
        assert normalize.std.item() == pytest.approx(std, abs=1e-3)


def net(mean=0, classes=10):
    return cnn((1, 8, 8), classes, 2, mean=mean)


@pytest.mark.parametrize(
    "call", ["cnn(classes=10)", "cnn(in_shape=(1, 28, 28))", __name__ + ".net(mean=0)", "mlp(mean=0, std=1)"]
)
def test_a_stated_default_is_not_an_open_argument(call):
    """The data set decides the latter, so that both may differ."""
    name = spec.parse(call).name
    assert Run(call, "digits()").key != Run(name, "digits()").key


def test_every_setting_has_a_part_in_the_key(tiny):
    others = [
        {"model": "cnn(width=5)"}, {"data": "folder('x')"}, {"objective": "pgd_at()"}, {"objective": "pgd_at(eps=0.1)"},
        {"regularizers": ("weight_decay()",)}, {"regularizers": ("norm_decay(1)",)}, {"regularizers": ("norm_decay(inf)",)},
        {"regularizers": ("norm_decay(1)", "weight_decay()")}, {"regularizers": ("weight_decay()", "norm_decay(1)")},
        {"optimizer": "sgd(lr=0.2)"}, {"schedule": "constant()"}, {"epochs": 4}, {"batch": 33}, {"augment": ("flip()",)},
        {"limit": 99}, {"limit": None}, {"precision": "bf16"}, {"precision": "auto"}, {"channels_last": True}, {"ema": 0.5},
        {"seed": 1},
    ]  # fmt: skip
    keys = [tiny.key, *(replace(tiny, **other).key for other in others)]
    assert len(set(keys)) == len(keys)
    assert {name for other in others for name in other} == tiny.as_dict().keys() - {"analyses"}


@pytest.mark.slow  # the workers of test_side_by_side_gives_the_same_bits have other hashes, too
def test_the_key_is_the_same_in_every_process(tiny):
    code = f"from opnorm.runs.run import Run; print(Run(**{tiny.as_dict()!r}).key)"
    found = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "1"}, capture_output=True, text=True
    )
    assert found.stdout.strip() == tiny.key, found.stderr


def test_a_run_as_plain_values(tiny):
    again = Run.from_dict(json.loads(json.dumps(tiny.as_dict())))
    assert again == tiny
    assert again.analyses == tiny.analyses
    for values in (tiny.as_dict() | {"colour": 1}, {"model": "cnn"}, {}):
        with pytest.raises(RunError):
            Run.from_dict(values)


def test_labels():
    assert Run("cnn", "digits").label == "plain"
    assert Run("cnn", "digits", "pgd_at", ("norm_decay(p=1)",)).label == "pgd_at() + norm_decay(p=1)"


@pytest.mark.parametrize(
    "settings",
    [{"model": "cn(1)"}, {"model": "cnn(widht=3)"}, {"objective": "pdg_at"}, {"epochs": -1}, {"batch": 0}, {"limit": 0},
     {"seed": -1}, {"seed": 2**64}, {"analyses": ("acuracy()",)}],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_at_once(settings):
    with pytest.raises(OpnormError):
        Run(**{"model": "cnn", "data": "digits"} | settings)


@pytest.mark.parametrize(
    "settings",
    [{"objective": "pgd_at(eps=-1)"}, {"regularizers": ("norm_decay(p=7)",)}, {"analyses": ("robust_accuracy(eps=-1)",)},
     {"augment": ("crop(padding=-1)",)}, {"optimizer": "sgd(lr=-1)"}, {"schedule": "cosine(-1)"},
     {"model": "mlp(classes=3)"}, {"model": "cnn(in_shape=(3, 32, 32))"}, {"augment": ("random_resized_crop(size=5)",)}],
)  # fmt: skip
def test_wrong_settings_leave_no_folder(tiny, store, settings):
    """They are said before anything is trained or written."""
    with pytest.raises(OpnormError):
        run_training(replace(tiny, **settings), store)
    assert list(store.root.glob("[!.]*")) == []


# ---------------------------------------------------------------- finding again


def test_a_finished_run_is_found(tiny, store, monkeypatch):
    first = run_training(tiny, store)
    assert first.rows.keys() == {"accuracy()"}
    assert len(first.metrics) == 3
    assert first.folder == store.root / tiny.key
    names = sorted(p.name for p in first.folder.iterdir())
    assert names == ["metrics.jsonl", "results.json", "run.json", "weights.safetensors"]
    for name in ("make_data", "make_model", "train"):
        monkeypatch.setattr(training_run, name, lambda *a, **k: pytest.fail("worked again"))
    again = run_training(tiny, store)
    assert again == first


def test_an_analysis_can_be_added(tiny, store, monkeypatch):
    first = run_training(tiny, store)
    weights = (first.folder / "weights.safetensors").read_bytes()
    monkeypatch.setattr(training_run, "train", lambda *a, **k: pytest.fail("trained again"))
    events = []
    more = replace(tiny, analyses=("margins()", "accuracy()", "accuracy('train')"))
    second = run_training(more, store, progress=lambda event: events.append(event.activity))
    assert events == ["margins()", 'accuracy(split="train")']
    assert second.rows.keys() == {"margins()", "accuracy()", 'accuracy(split="train")'}
    assert second.find("accuracy")[0] == first.find("accuracy")[0]
    assert second.seconds > first.seconds
    assert (first.folder / "weights.safetensors").read_bytes() == weights
    assert run_training(tiny, store).rows.keys() == {"accuracy()"}, "what was asked for"
    right = sum(m > 0 for m in second.find("margins")[0]["margins"])
    assert right == first.find("accuracy")[0]["correct"], "the weights were read back"


def test_a_folder_that_cannot_be_written_can_be_read(tiny, store, monkeypatch):
    first = run_training(tiny, store)
    monkeypatch.setattr(store, "open", lambda key: pytest.fail("locked"))
    assert run_training(tiny, store) == first


def test_the_kept_weights_are_the_models(tiny, store):
    result = run_training(replace(tiny, analyses=("accuracy()",)), store)
    model = models.file(str(result.folder / "weights.safetensors"))
    data = make_data(tiny)
    model.eval()
    correct = (model(data.test.images.float() / 255).argmax(1) == data.test.labels).sum()
    assert int(correct) == result.find("accuracy")[0]["correct"]
    assert result.metrics[-1]["test_accuracy"] == pytest.approx(int(correct) / 100)


def test_the_callers_random_numbers_are_left_alone(tiny, store):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_training(tiny, store)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(tiny, store, seeds):
    a, b = (run_training(r, store) for r in seeds(tiny, 2))
    assert timeless(a.metrics) != timeless(b.metrics)


@pytest.mark.parametrize("name", ["metrics.jsonl", "run.json"])
def test_a_damaged_finished_folder_is_refused(tiny, store, name):
    folder = run_training(tiny, store).folder
    for text in ("{", "[1]", "\0"):
        (folder / name).write_text(text)
        with pytest.raises(RunError, match=name):
            run_training(tiny, store)


@pytest.mark.parametrize("text", ["{", "[1]", "\0"])
def test_damaged_analyses_of_a_finished_folder_are_made_again(tiny, store, text):
    whole = run_training(tiny, store)
    (whole.folder / "results.json").write_text(text)
    with pytest.warns(UserWarning, match=r"results\.json.*the analyses are made again"):
        again = run_training(tiny, store)
    assert again.rows == whole.rows
    assert timeless(again.metrics) == timeless(whole.metrics)
    assert run_training(tiny, store).found


def test_weights_of_another_network_are_refused_when_they_are_needed(tiny, store):
    models.save(cnn(width=5), run_training(tiny, store).folder / "weights.safetensors")
    run_training(tiny, store)
    with pytest.raises(RunError, match=r"weights\.safetensors"):
        run_training(replace(tiny, analyses=("margins()",)), store)


def test_a_cropped_set_is_evaluated_on_the_center(store):
    """As Wen trains on Tiny-ImageNet: random crops in training, the central one wherever the network is evaluated."""
    model = "resnet(depth=8, width=2)"
    run = Run(
        model, __name__ + ".cropped()", augment=("random_resized_crop(6)",), epochs=1, limit=50,
        analyses=("accuracy()", "norm_table()", "generalization_gap()"), regularizers=("spectral_normalization()",),
    )  # fmt: skip
    result = run_training(run, store)
    assert make_data(run).image_shape == (1, 6, 6)
    assert read_json(result.folder / "run.json")["data"]["uncropped_shape"] == [1, 8, 8]
    assert result.find("norm_table")[0]["in_shape"] == [1, 6, 6]
    network = make_model(run, make_data(run))
    network.load_state_dict(read_tensors(result.folder / "weights.safetensors")[0])
    network.eval()
    right = (
        (network(make_data(run).test.images.float() / 255).argmax(1) == make_data(run).test.labels)
        .float()
        .mean()
    )
    assert result.find("accuracy")[0]["accuracy"] == pytest.approx(float(right))


def cropped():
    return digits().center_crop(6)


def test_the_weights_of_a_wrapped_network_come_back(store):
    run = Run(__name__ + ".wrapped()", "digits()", epochs=1, limit=50, analyses=())
    folder = run_training(run, store).folder
    assert (
        read_tensors(folder / "weights.safetensors")[0].keys() == cnn(in_shape=(1, 8, 8)).state_dict().keys()
    )
    (row,) = run_training(replace(run, analyses=("accuracy()",)), store).find("accuracy")
    plain = models.file(str(folder / "weights.safetensors"), arch=cnn(in_shape=(1, 8, 8), width=2))
    test = make_data(run).test
    right = (plain(test.images.float() / 255).argmax(1) == test.labels).float().mean()
    assert row["accuracy"] == pytest.approx(float(right))


def wrapped():
    return nn.DataParallel(cnn(in_shape=(1, 8, 8), width=2))


@pytest.mark.parametrize(
    ("objective", "eps"),
    [
        ("pgd_at(eps=0.1)", (2 / 255, 4 / 255, 8 / 255, 0.1)),
        ("trades(beta=6, eps=4/255)", (2 / 255, 4 / 255, 8 / 255)),
        ("mixed(norm=2, eps=0.5)", (0.25, 0.5)),
    ],
)
def test_robustness_is_measured_at_the_radius_of_training(objective, eps):
    (call,) = (c for c in map(spec.parse, analyses_after(objective)) if c.name == "robust_accuracy")
    assert dict(call.kwargs)["eps"] == eps
    assert Run("cnn(width=2)", "digits()", objective=objective, analyses=analyses_after(objective))
    assert analyses_after("plain(smoothing=0.1)") == analyses_after("mmc()") == DEFAULT_ANALYSES


# ---------------------------------------------------------------- being killed


def test_a_kill_at_every_change_of_the_file_system(tiny, finished, tmp_path, same):
    """Before each rename, unlink and mkdir: what is there then is always enough to go on with."""
    tiny = replace(tiny, epochs=2, limit=64)
    whole = finished(tiny)
    for n in itertools.count(1):
        store, diary = Store(tmp_path / str(n)), tmp_path / f"{n}.diary"
        process = processes.start(processes.die_at_write, tiny.as_dict(), store.root, n, diary)
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        seen: list[int] = []
        run_training(
            tiny, store, progress=lambda e, seen=seen: seen.extend([e.training.epoch] if e.training else [])
        )
        assert all(epoch >= int(diary.read_text() or 0) for epoch in seen), "a finished epoch was lost"
        same(store, whole, tiny)
        assert not list((store.root / tiny.key).glob(".*")), "no temporary file stays"
        assert not list((store.root).glob("*.partial"))
    assert n > 15


@pytest.mark.slow
def test_kills_at_random_moments_lose_at_most_the_epoch_under_way(tiny, finished, store, tmp_path, same):
    """After its first epoch each process may use up to 4 times the CPU time of that epoch before it is killed."""
    tiny = replace(tiny, epochs=25, objective="pgd_at(steps=2)", regularizers=("norm_decay(p=inf)",))
    whole = finished(tiny)
    chance, diary, kept, killed = random.Random(0), tmp_path / "diary", 0, 0
    while True:
        process = processes.start(
            processes.train_run, tiny.as_dict(), store.root, diary, chance.uniform(0, 4)
        )
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGPROF
        killed += 1
        epochs = read_checkpoint(store.root / f"{tiny.key}.partial").epochs
        assert epochs > kept
        assert epochs >= int(diary.read_text()) - 1, "more was lost than the epoch under way"
        kept = epochs
    assert killed >= 3
    run_training(tiny, store)
    same(store, whole, tiny)


def test_a_full_disk(tiny, finished, store, tmp_path, same):
    """A real one, as far as a limit on the size of files is one: the checkpoint grows past it, the rest fits."""
    whole = finished(tiny)
    err = tmp_path / "err"
    process = processes.start(processes.full_disk, tiny.as_dict(), store.root, 8000, err)
    process.join()
    assert process.exitcode == 2
    assert "cannot write" in err.read_text()
    assert "checkpoint.next.safetensors" in err.read_text()
    folder = store.root / f"{tiny.key}.partial"
    assert not list(folder.glob(".*"))

    process = processes.start(processes.train_run, replace(tiny).as_dict(), store.root)
    process.join()
    assert process.exitcode == 0
    same(store, whole, tiny)


def test_a_disk_that_fills_up_later_keeps_the_checkpoint(tiny, finished, store, monkeypatch, same):
    whole, real, count = finished(tiny), os.fsync, 0

    def full(fd):
        nonlocal count
        count += 1
        if count > 4:
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="No space left on device"):
        run_training(tiny, store)
    folder = store.root / f"{tiny.key}.partial"
    assert read_tensors(folder / "checkpoint.safetensors")[1]["epoch"] == "1"
    monkeypatch.setattr(os, "fsync", real)
    run_training(tiny, store)
    same(store, whole, tiny)


def test_a_second_process_is_told_and_the_first_finishes(tiny, finished, store, tmp_path, until, same):
    tiny = replace(tiny, epochs=25)
    diary = tmp_path / "diary"
    first = processes.start(processes.train_run, tiny.as_dict(), store.root, diary)
    until(lambda: diary.exists() and diary.read_text() >= "000002")
    with pytest.raises(RunError, match=f"another process is at run {tiny.key}"):
        run_training(tiny, store)
    first.join()
    assert first.exitcode == 0
    same(store, finished(tiny), tiny)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics.jsonl", "run.json"])
def test_a_damaged_partial_folder_is_refused_with_a_remedy(tiny, store, name):
    class Stop(Exception):
        pass

    def stop(event):
        if event.training.epoch == 2:
            raise Stop

    with pytest.raises(Stop):
        run_training(tiny, store, progress=stop)
    folder = store.root / f"{tiny.key}.partial"
    (folder / name).write_bytes((folder / name).read_bytes()[:-15])
    with pytest.raises(RunError, match=str(folder)):
        run_training(tiny, store)


# ---------------------------------------------------------------- failing


def test_a_divergence_is_remembered(tiny, store):
    tiny = replace(tiny, optimizer="sgd(lr=1e30)")
    with pytest.raises(TrainError, match=r"epoch 1, step 2 of 3: the output of layer '3' \(Conv2d\)"):
        run_training(tiny, store)
    events = []
    with pytest.raises(TrainError, match=r"epoch 1, step 2 of 3.*remembered; --again tries again"):
        run_training(tiny, store, progress=events.append)
    assert not events
    assert store.ls()[0]["state"] == "failed"


class Two(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :2]


def two():
    return Two()


def angry():
    raise OSError("bad")


class Odd(nn.Module):
    def forward(self, x):
        raise KeyError("odd")


def odd():
    return Odd()


def number():
    return 3


@pytest.mark.parametrize(
    ("call", "why"),
    [("two", r"output of shape \(1, 2\) for one image; expected \(1, 10\)"), ("odd", "KeyError|odd"),
     ("number", "gave int"), ("angry", "bad")],
)  # fmt: skip
def test_networks_of_the_user_that_do_not_fit(tiny, store, call, why):
    with pytest.raises((ModelError, SpecError), match=why):
        run_training(replace(tiny, model=f"{__name__}.{call}()"), store)


def test_data_of_the_user_that_are_none(tiny, store):
    with pytest.raises(ModelError, match=r"expected an opnorm\.data\.Dataset"):
        run_training(replace(tiny, data=f"{__name__}.number()"), store)


def test_what_is_written_is_plain(tiny, store):
    folder = run_training(replace(tiny, analyses=("accuracy()", "norm_table()", "margins()")), store).folder
    about = read_json(folder / "run.json")
    assert about["run"] == replace(tiny, analyses=("accuracy()", "norm_table()", "margins()")).as_dict() | {
        "regularizers": [], "augment": [], "analyses": ["accuracy()", "norm_table()", "margins()"],
    }  # fmt: skip
    assert about["data"]["train"] == 100
    assert {"opnorm", "git", "torch", "python", "machine", "threads"} <= about["where"].keys()
    assert f"{torch.backends.cpu.get_cpu_capability()} used by torch" in about["where"]["machine"]
    rows = read_lines(folder / "metrics.jsonl")
    assert rows[0].keys() == {
        "epoch", "lr", "loss", "train_accuracy", "seconds", "test_accuracy", "norm_1", "norm_2", "norm_inf",
        "layer_norms", "layer_norms_1", "layer_norms_2", "weight_energy", "log10_weight_energy", "weight_complexity",
    }  # fmt: skip
    for path in folder.glob("*.json"):
        json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
