"""The JavaScript of a page is made once, and is whole wherever it comes from."""

import pytest
import vl_convert

from opnorm.report.vega import library


@pytest.fixture
def made(monkeypatch):
    """A list with an element for each time that the script was made."""
    times = []
    monkeypatch.setattr(
        vl_convert, "javascript_bundle", lambda snippet: times.append(snippet) or "a\r\n<!--</script>"
    )
    return times


def new_process() -> str:
    return library.__wrapped__()  # without what this process has already


def test_a_later_process_finds_the_script(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "cache"))
    first, second = new_process(), new_process()
    assert first == second == "a\n<\\!--<\\/script>"
    assert len(made) == 1
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert new_process() == first
    assert len(made) == 2, "another version has another script"


def test_a_damaged_script_is_made_again(made, tmp_path, monkeypatch):
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path))
    first = new_process()
    (kept,) = tmp_path.iterdir()
    whole = kept.read_text()
    for damaged in (whole.replace('"a', '"b'), whole[:-5], "", "[]", "{}"):
        kept.write_text(damaged)
        assert new_process() == first
        assert kept.read_text() == whole
    assert len(made) == 6


@pytest.mark.parametrize("folder", ["file", "file/below", "x" * 300])
def test_a_cache_that_cannot_be_read_or_written_is_no_obstacle(made, tmp_path, monkeypatch, folder):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / folder))
    assert new_process() == new_process()
    assert len(made) == 2


def test_a_folder_that_may_not_be_searched_is_no_obstacle(made, tmp_path, monkeypatch):
    def refuse(self, **how):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path))
    monkeypatch.setattr("pathlib.Path.stat", refuse)  # tests may run as root, who may search every folder
    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    assert new_process() == new_process()
    assert len(made) == 2
