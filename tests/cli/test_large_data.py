"""Streamed and damaged sets as a user of the commands meets them."""

import json

import pyarrow.parquet as pq
import pytest

from tests.data.files import write_pictures


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The call of a streamed set of 100 pictures, 3 of them damaged."""
    monkeypatch.setenv("OPNORM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OPNORM_WORKERS", "0")
    file = write_pictures(tmp_path / "pictures.parquet", 100)
    table = pq.read_table(file)
    rows = table.to_pylist()
    for row in (5, 50, 95):
        rows[row]["image"]["bytes"] = b"no image"
    pq.write_table(type(table).from_pylist(rows, table.schema), file)
    return f'parquet("{file}", stream=True)'


def test_damaged_images_are_skipped_only_when_it_is_asked_for(main, data):
    train = ("train", "--data", data, "--epochs", "1", "--batch", "16", "--analyses", "accuracy")
    status, _, err = main(*train)
    assert status == 2
    assert "pictures.parquet, row 5: 8 bytes cannot be decoded" in err
    assert "--skip-bad" in err
    with pytest.warns(UserWarning, match="3 of 100 images cannot be decoded and are skipped"):
        status, out, _ = main(*train, "--skip-bad", "--json")
    assert status == 0
    trained = json.loads(out)
    assert "skip_bad=True" in trained["run"]["data"]
    with pytest.warns(UserWarning, match="3 of 100 images"):
        status, out, _ = main("attack", trained["key"], "--attack", "fgsm", "--limit", "10", "--json")
    assert status == 0
    assert json.loads(out)["points"] == 10
