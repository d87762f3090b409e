"""Files and folders: whole or not there, of this version or refused, one process at a time."""

import errno
import json
import math
import os
import stat
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from opnorm import spec
from opnorm._core import files
from opnorm._core.kept_parts import kept
from opnorm.data import Dataset, Split
from opnorm.errors import ModelError, RunError
from opnorm.runs.store import FORMAT, Store
from tests.runs import processes


def test_json_and_lines_come_back(tmp_path):
    value = {"a": [1, 2.5, None, "ℓ1"], "b": {"c": True}}
    files.write_json(tmp_path / "a.json", value)
    files.write_lines(tmp_path / "a.jsonl", [value, {}])
    assert files.read_json(tmp_path / "a.json") == value
    assert files.read_lines(tmp_path / "a.jsonl") == [value, {}]
    assert files.read_lines(tmp_path / "none.jsonl") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.jsonl"], "no temporary file stays"


def test_json_is_strict(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [math.inf, {"b": math.nan}], "c": (1.5, -math.inf)})
    assert files.read_json(tmp_path / "a.json") == {"a": [None, {"b": None}], "c": [1.5, None]}


def test_tensors_come_back_with_their_bits(tmp_path):
    tensors = {
        "a/b": torch.tensor([1.0, -0.0, math.inf, math.nan]),
        "t": torch.arange(6.0).view(2, 3).t(),
        "n": torch.tensor(3),
        "last": torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }
    files.write_tensors(tmp_path / "x.safetensors", tensors, {"epoch": "3"})
    found, metadata = files.read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"epoch": "3"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_what_was_there_stays_when_writing_fails(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_json(path, {"old": 1})

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(
        RunError, match=r"cannot write .*a\.json: No space left on device; nothing written before"
    ):
        files.write_json(path, {"new": 2})
    assert files.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_another_error_while_writing_leaves_nothing(tmp_path):
    with suppress(ZeroDivisionError), files.atomic_write(tmp_path / "a") as part:
        part.write_text("half")
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\x00", '{"a": 1}}'])
def test_what_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(RunError, match="cannot read"):
        files.read_json(tmp_path / "a.json")


def begun(store: Store, key: str = "abc", **about) -> Path:
    with store.open(key) as entry:
        entry.begin(about)
        return entry.folder


def finish(store: Store, key: str, seconds: float) -> None:
    with store.open(key) as entry:
        entry.finish(seconds)


def test_a_folder_gets_its_name_at_the_end(store):
    folder = begun(store, run={"model": "m"})
    assert folder.name == "abc.partial"
    assert not store.finished("abc")
    (folder / "checkpoint.safetensors").touch()
    finish(store, "abc", 2.0)
    assert store.finished("abc")
    assert not folder.exists()
    assert sorted(p.name for p in (store.root / "abc").iterdir()) == ["run.json"]
    assert store.about("abc")["seconds"] == 2.0
    finish(store, "abc", 1.5)
    assert store.about("abc")["seconds"] == 1.5
    about = store.read(store.root / "abc")
    assert about["format"] == FORMAT
    assert about["run"] == {"model": "m"}


def test_a_found_partial_folder_is_gone_on_with(store):
    folder = begun(store, a=1)
    first = files.read_json(folder / "run.json")
    assert begun(store, a=2) == folder
    assert files.read_json(folder / "run.json") == first


def test_what_a_killed_writer_left_is_removed(store):
    folder = begun(store)
    rest = folder / ".checkpoint.safetensors.4242.part"
    rest.touch()
    with store.open("abc"):
        assert not rest.exists()
    assert (folder / "run.json").exists()


@pytest.mark.parametrize("version", [0, FORMAT + 1, None, "1", "missing"])
def test_another_format_is_refused(tmp_path, version):
    for finished in (False, True):
        store = Store(tmp_path / str(finished))
        folder = begun(store)
        about = files.read_json(folder / "run.json")
        about = (
            {k: v for k, v in about.items() if k != "format"}
            if version == "missing"
            else about | {"format": version}
        )
        files.write_json(folder / "run.json", about, checked=True)
        if finished:
            folder.rename(store.root / "abc")
            with pytest.raises(RunError, match=f"reads format {FORMAT}"):
                store.finished("abc")
        else:
            with pytest.raises(RunError, match=f"reads format {FORMAT}"):
                begun(store)
    assert "reads format" in store.ls()[0]["state"]


@pytest.mark.parametrize("text", ["", "[]", '{"analyses": 3}', '{"analyses": {"a()": []}}', "{}"])
def test_damaged_results_are_refused(store, text):
    (begun(store) / "results.json").write_text(text)
    with pytest.raises(RunError, match=r"results\.json"):
        store.results("abc")


def test_results_are_written_at_once_and_found_again(store):
    begun(store)

    def fails():
        raise ZeroDivisionError

    with suppress(ZeroDivisionError), store.open("abc") as entry:
        assert entry.get_or_compute("accuracy()", lambda: [{"x": 1}]).found is False
        entry.get_or_compute("margins()", fails)
    with store.open("abc") as entry:
        rows, seconds, made, found = entry.get_or_compute("accuracy()", fails)
        assert (rows, found) == ([{"x": 1}], True)
        time.strptime(made, "%Y-%m-%d %H:%M:%S")
        entry.get_or_compute("margins()", lambda: [])
        assert entry.get_or_compute("margins()", fails).rows == []
        entry.finish(10.0)
    assert store.results("abc").keys() == {"accuracy()", "margins()"}
    assert store.about("abc")["seconds"] == pytest.approx(10 + seconds, abs=0.1)


def test_an_analysis_that_is_killed_resumes_inside(tmp_path):
    images = torch.randint(
        0, 256, (90, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
    )
    split = Split(images, torch.arange(90) % 2)
    data, call = Dataset("toy", split, split, ("a", "b")), "singular_alignment(points=45, layer='last')"
    call = str(spec.short(call, "analysis"))
    whole = processes.analyze_slowly(tmp_path / "whole", call, data)
    killed = processes.start(processes.analyze_slowly, tmp_path / "runs", call, data, 0.03)
    while len(kept := list((tmp_path / "runs").glob("*.partial/parts-*/part-*.safetensors"))) < 3:
        assert killed.is_alive(), "no part was kept"
        time.sleep(0.01)
    killed.kill()
    killed.join()
    assert processes.analyze_slowly(tmp_path / "runs", call, data) == whole
    assert not any(part.parent.exists() for part in kept)


def test_parts_go_with_an_analysis_that_cannot_be_made(store):
    begun(store)

    def part():
        return kept(lambda: {"x": time.sleep(0.11)})

    def fails(error):
        part()
        raise error

    for error, stay in ((KeyboardInterrupt(), 1), (RunError("disk full"), 1), (ModelError("no ReLU"), 0)):
        with suppress(type(error)), store.open("abc") as entry:
            entry.get_or_compute("margins()", lambda error=error: fails(error))
        assert len(list(store.folder("abc").glob("parts-*"))) == stay
    with suppress(KeyboardInterrupt), store.open("abc") as entry:
        entry.get_or_compute("margins()", lambda: fails(KeyboardInterrupt()))
    with store.open("abc") as entry:
        saved = entry.get_or_compute("margins()", lambda: [part()])
    assert saved.rows == [{"x": None}]
    assert saved.seconds >= 0.11, "of both sessions"


def test_single_rows_are_made_again(store):
    begun(store)
    for again, made, rows in ((False, [1], [1]), (True, [2], [2]), (False, [3], [2])):
        with Store(store.root, again=again).open("abc", keep=True) as entry:
            assert entry.get_or_compute("margins()", lambda made=made: made).rows == rows
            entry.get_or_compute("accuracy()", list)
            assert store.results("abc").keys() == {"accuracy()", "margins()"}


def test_what_is_begun_again_is_empty(store):
    for finished in (False, True):
        folder = begun(store, a=1)
        (folder / "part").touch()
        if finished:
            finish(store, "abc", 1.0)
        with Store(store.root, again=True).open("abc") as entry:
            assert not entry.finished
            entry.begin({"a": 2})
            assert [p.name for p in entry.folder.iterdir()] == ["run.json"]
        assert store.about("abc")["a"] == 2


@pytest.mark.parametrize(
    ("now", "kept"),
    [([[1.0, -2.0]], True), ([[1.0001, -2.0]], True), ([[1.1, -2.0]], False), ([[1.0, math.nan]], False),
     ([[1.0, -2.0, 0.0]], False), (None, True)],
)  # fmt: skip
def test_results_belong_to_the_outputs_of_the_network(store, now, kept):
    with store.open("abc", outputs=[[1.0, -2.0]]) as entry:
        entry.begin({})
        (entry.folder / "part").touch()
    with store.open("abc", outputs=now) as entry:
        assert (entry.folder / "part").exists() == kept


def test_failures_are_remembered(store):
    folder = begun(store)
    assert store.failure("abc") == ""
    with store.open("abc") as entry:
        assert entry.failure == ""
        entry.fail("it diverged")
    with store.open("abc") as entry:
        assert entry.failure == store.failure("abc") == "it diverged"
    assert store.ls()[0]["state"] == "failed"
    (folder / "failure.json").write_text('{"failure": ""}')
    assert store.failure("abc"), "a failure whose reason is lost is one all the same"


def test_ls_lists_everything_readable_and_what_is_wrong(store):
    assert Store(store.root / "nowhere").ls() == []
    begun(store, "a1")
    begun(store, "b2")
    finish(store, "b2", 1.0)
    (begun(store, "c3") / "run.json").write_text("{")
    (store.root / "tour-123").mkdir()
    rows = {row["key"]: row for row in store.ls()}
    assert rows.keys() == {"a1", "b2", "c3"}
    assert rows["a1"]["state"] == "partial"
    assert rows["b2"]["state"] == "finished"
    assert "cannot read" in rows["c3"]["state"]
    assert json.loads(json.dumps(list(rows.values()))), "plain values only"


def test_the_lock_keeps_others_out_until_its_holder_is_killed(store, tmp_path, until):
    ready = tmp_path / "ready"
    holder = processes.start(processes.hold_lock, store.root, "abc", ready)
    until(ready.exists)
    with pytest.raises(RunError, match="another process is at run abc"), store.open("abc"):
        pass
    with store.open("other"):
        pass
    holder.kill()
    holder.join()
    with store.open("abc"):
        pass


def test_a_place_that_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write in .*file"), Store(tmp_path / "file").open("abc"):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(RunError, match="cannot write in"), Store(tmp_path).open("abc"):
        pass
