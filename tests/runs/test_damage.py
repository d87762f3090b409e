"""What is read back is what was written: damage is noticed, said, and mended by the same command."""

import errno
import os
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opnorm import models
from opnorm._core import files
from opnorm.attacks import fgsm
from opnorm.errors import ModelError, OpnormError, RunError
from opnorm.models import cnn
from opnorm.runs.attack_evaluation import evaluate
from opnorm.runs.evaluation import load_points, save_points
from opnorm.runs.store import Store
from opnorm.runs.training_run import run_training
from tests.attacks.honest import honest, points
from tests.runs.processes import timeless

pytestmark = pytest.mark.usefixtures("few_queries")


def flip(path: Path, chance: random.Random) -> None:
    """One bit of the file, anywhere."""
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(content)


# ---------------------------------------------------------------- bits


@pytest.mark.parametrize("name", ["run.json", "results.json", "metrics.jsonl", "weights.safetensors"])
def test_no_flipped_bit_of_a_run_changes_a_result(tiny, finished, tmp_path, name):
    whole = run_training(tiny, finished(tiny))
    chance, messages = random.Random(name), []
    for i in range(10):
        shutil.copytree(finished(tiny).root, tmp_path / str(i))
        flip(tmp_path / str(i) / tiny.key / name, chance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = run_training(tiny, Store(tmp_path / str(i)))
            except RunError as error:
                messages.append(str(error))
                continue
        messages += [str(w.message) for w in caught]
        assert found.rows == whole.rows
        assert timeless(found.metrics) == timeless(whole.metrics)
    assert len(messages) >= 5, "some bits are of no account, such as spaces"
    assert all(name in message for message in messages)


@pytest.mark.parametrize("name", ["part-00000000.safetensors", "gradient_masking.json", "run.json"])
def test_no_flipped_bit_of_an_evaluation_changes_it(tmp_path, name):
    data = points(12)
    done = evaluate(honest(), *data, fgsm(0.1), store=Store(tmp_path / "whole"))
    chance, messages = random.Random(name), []
    for i in range(6):
        shutil.copytree(tmp_path / "whole", tmp_path / str(i))
        flip(tmp_path / str(i) / done.folder.name / name, chance)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                found = evaluate(honest(), *data, fgsm(0.1), store=Store(tmp_path / str(i)))
            except RunError as error:
                messages.append(str(error))
                continue
        messages += [str(w.message) for w in caught if "It is made again" in str(w.message)]
        assert torch.equal(found.result.points, done.result.points)
        assert found.masking == done.masking
    assert len(messages) >= 3
    assert all(name in message for message in messages)


@pytest.mark.parametrize(
    "where", [lambda x: x.fill_(1.5), lambda x: x[3, 0].fill_(-0.01), lambda x: x[0, 0, 0].fill_(torch.nan)]
)
def test_points_that_no_attack_gives_are_refused(tmp_path, where):
    """With the right checksum, as of a file that was made by hand."""
    data = points(20)
    done = evaluate(honest(), *data, fgsm(0.1), store=Store(tmp_path / "attacks"))
    (path,) = done.folder.glob("part-*")
    save_points(tmp_path / "points.safetensors", done)
    for file in (path, tmp_path / "points.safetensors"):
        tensors, metadata = files.read_tensors(file)
        where(tensors["points"])
        files.write_tensors(file, tensors, metadata)
    with pytest.raises(RunError, match=r"points outside of \[0, 1\]"):
        load_points(tmp_path / "points.safetensors")
    with pytest.warns(UserWarning, match="points outside of the ball"):
        again = evaluate(honest(), *data, fgsm(0.1), store=Store(tmp_path / "attacks"))
    assert torch.equal(again.result.points, done.result.points)


@pytest.mark.parametrize("how", ["missing", "short"])
def test_lost_weights_are_said_and_trained_again(tiny, finished, tmp_path, same, how):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    store, threads = Store(tmp_path / "runs"), torch.get_num_threads()
    path = store.root / tiny.key / "weights.safetensors"
    if how == "missing":
        path.unlink()
        assert [row["state"] for row in store.ls()] == ["no weights"]
    else:
        path.write_bytes(path.read_bytes()[:-4])
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match="is trained again"):
        assert not run_training(tiny, store).found
    torch.set_num_threads(threads)
    assert [row["state"] for row in store.ls()] == ["finished"]
    same(store, finished(tiny), tiny)
    assert run_training(tiny, store).found


@pytest.mark.parametrize("where", ["file", "checkpoint"])
def test_damaged_weights_are_not_blamed_on_the_learning_rate(tiny, store, tmp_path, where):
    model = cnn(in_shape=(1, 8, 8), width=4)
    with torch.no_grad():
        model[1].weight[0, 0, 1, 1] = torch.nan
    models.save(model, tmp_path / "w.safetensors")
    run = replace(tiny, model=f'file("{tmp_path}/w.safetensors")')
    if where == "checkpoint":
        run = tiny
        with pytest.raises(KeyboardInterrupt):
            run_training(run, store, progress=lambda e: stop(e.training.epoch == 2))
        path = store.root / f"{run.key}.partial" / "checkpoint.safetensors"
        tensors, metadata = files.read_tensors(path)
        next(v for k, v in tensors.items() if k.startswith("model/") and k.endswith("weight")).fill_(
            torch.nan
        )
        files.write_tensors(path, tensors, metadata)
    with pytest.raises(
        ModelError, match=r"NaN or infinite values before any step: \d+ of \d+ in weight"
    ) as error:
        run_training(run, store)
    assert "learning rate" not in str(error.value)
    assert ("checkpoint" in str(error.value)) == (where == "checkpoint")


def stop(when: bool) -> None:
    if when:
        raise KeyboardInterrupt


# ---------------------------------------------------------------- folders


def test_a_folder_that_is_removed_while_it_is_written_to(tiny, store):
    def remove(event):
        if event.training and event.training.epoch == 2:
            shutil.rmtree(store.root / f"{tiny.key}.partial", ignore_errors=True)

    with pytest.raises(RunError, match="its folder is not there; was it removed while it was written to"):
        run_training(tiny, store, progress=remove)
    assert not (store.root / f"{tiny.key}.partial").exists()
    assert len(run_training(tiny, store).metrics) == 3


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "make room there"), (errno.EDQUOT, "make room there"),
     (errno.EACCES, "make it a place that can be written"), (errno.EROFS, "make it a place that can be written")],
)  # fmt: skip
def test_the_remedy_is_that_of_the_cause(tmp_path, monkeypatch, number, remedy):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(RunError, match=f"{os.strerror(number)}; nothing written before is lost: {remedy}"):
        files.write_json(tmp_path / "a.json", {})


@pytest.mark.parametrize("read", [files.read_json, files.read_lines, files.read_tensors])
def test_what_may_not_be_read_was_not_edited_by_hand(tmp_path, monkeypatch, read):
    path = tmp_path / "a"
    path.touch()

    def refuse(*args, **more):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RunError, match=r"^cannot read .*a: Permission denied$"):
        read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_becomes_read_only(tiny, store):
    def lock(event):
        if event.training and event.training.epoch == 2:
            (store.root / f"{tiny.key}.partial").chmod(0o500)

    with pytest.raises(RunError, match="Permission denied"):
        run_training(tiny, store, progress=lock)
    (store.root / f"{tiny.key}.partial").chmod(0o700)
    assert len(run_training(tiny, store).metrics) == 3


def test_a_change_of_the_working_folder_misplaces_nothing(tiny, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = Store("runs")
    run_training(replace(tiny, epochs=1), store, progress=lambda event: os.chdir(tmp_path / "elsewhere"))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert len(list((tmp_path / "runs").glob("*/weights.safetensors"))) == 1


def test_temporary_files_are_removed_unless_they_are_in_use(tmp_path):
    left = tmp_path / ".report.html.0123abcd.part"
    left.write_text("half")
    with files.atomic_write(tmp_path / "report.html") as part:
        part.write_text("one")
        assert not left.exists()
        with files.atomic_write(tmp_path / "report.html") as other:
            other.write_text("two")
            files.remove_partial_files(tmp_path)
            assert part.exists()
            assert other.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "one"


@pytest.mark.parametrize(
    "text",
    [
        '{"format": 4}',
        '{"format": 4, "run": 7, "known": []}',
        "[" * 100_000,
        '{"format": "\\u001b[2J"}',
        "\xff",
    ],
)
def test_json_of_another_shape_is_refused_in_a_sentence(tiny, store, text):
    (store.root / tiny.key).mkdir(parents=True)
    (store.root / tiny.key / "run.json").write_text(text, encoding="latin-1")
    with pytest.raises(OpnormError, match=r"run\.json|was written in format"):
        run_training(tiny, store)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["run.json", "results.json", "metrics.jsonl", "weights.safetensors"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tiny, finished, tmp_path, name):
    shutil.copytree(finished(tiny).root, tmp_path / "runs")
    folder = tmp_path / "runs" / tiny.key
    (folder / name).unlink()
    os.mkfifo(folder / name)
    store = Store(tmp_path / "runs")
    assert len(store.ls()) == 1
    read = {
        "run.json": lambda: store.about(tiny.key),
        "results.json": lambda: store.results(tiny.key),
        "metrics.jsonl": lambda: store.metrics(folder),
        "weights.safetensors": lambda: models.file(str(folder / name)),
    }
    with pytest.raises(OpnormError, match="a device, a pipe or a socket"):
        read[name]()


def test_weights_in_a_folder_whose_name_is_no_utf8_are_read_back(tmp_path):
    folder = tmp_path / "x\udcff"
    try:
        folder.mkdir()
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    network, path = cnn((1, 8, 8), width=2), folder / "w.safetensors"
    models.save(network, path)
    state = models.file(str(path)).state_dict()
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert files.read_tensors(path, checked=True)[1].keys() == {"format", models.loading.SPEC_KEY}
    path.write_bytes(path.read_bytes()[:-1] + b"\x77")
    with pytest.raises(RunError, match="differ from its checksum"):
        files.read_tensors(path, checked=True)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        files.read_tensors(path)
