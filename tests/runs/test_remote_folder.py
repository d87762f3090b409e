"""Folders of runs under a URL: whole or as before, and never another's."""

import json
from pathlib import Path

import pytest

from opnorm.errors import RunError
from opnorm.runs.remote_folder import RemoteFolder

KEY = "0123456789ab"


@pytest.fixture
def remote(tmp_path) -> RemoteFolder:
    return RemoteFolder(f"file://{tmp_path}/there")


@pytest.fixture
def partial(tmp_path) -> Path:
    folder = tmp_path / "here" / f"{KEY}.partial"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("settings")
    (folder / "checkpoint.safetensors").write_bytes(b"one")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_comes_back_as_it_was_sent_last(remote, partial, tmp_path):
    assert not remote.download(KEY, tmp_path / "other")
    remote.upload(partial, KEY)
    (partial / "checkpoint.safetensors").write_bytes(b"two")
    remote.upload(partial, KEY)
    assert remote.download(KEY, tmp_path / "other")
    assert contents(tmp_path / "other" / partial.name) == contents(partial)
    assert len(list(Path(remote.root, KEY).iterdir())) == 3, (
        "two files and the marker; none of the first time"
    )

    (partial / "checkpoint.safetensors").unlink()
    remote.upload(partial.rename(partial.with_name(KEY)), KEY)
    assert remote.download(KEY, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [KEY], "the finished one alone"


def test_what_is_sent_half_changes_nothing(remote, partial, tmp_path, monkeypatch):
    remote.upload(partial, KEY)
    before = contents(partial)
    (partial / "checkpoint.safetensors").write_bytes(b"two")

    def refuse(name, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remote.fs, "pipe_file", refuse)
    with pytest.raises(RunError, match="No space left on device; what was written before is kept"):
        remote.upload(partial, KEY)
    remote.download(KEY, tmp_path / "other")
    assert contents(tmp_path / "other" / partial.name) == before


def test_damage_is_found(remote, partial, tmp_path):
    remote.upload(partial, KEY)
    marker = json.loads(Path(remote.root, KEY, "current.json").read_text())
    Path(remote.root, KEY, marker["files"]["run.json"]).write_text("other settings")
    with pytest.raises(RunError, match="differ from its checksum"):
        remote.download(KEY, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_a_folder_is_removed(remote, partial, tmp_path):
    remote.upload(partial, KEY)
    remote.remove(KEY)
    remote.remove(KEY)
    assert not remote.download(KEY, tmp_path)


@pytest.mark.parametrize(
    ("url", "said"), [("memory://x", "only one process sees it"), ("nothing://x", "cannot be used")]
)
def test_urls_that_cannot_work(url, said):
    with pytest.raises(RunError, match=said):
        RemoteFolder(url)
