"""Files that ask for too much, are no files, or have names that a page cannot show."""

import io
import json
import os
import sys
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import opnorm
from opnorm._core import files
from opnorm.data import Dataset, folder, parquet
from opnorm.errors import DataError
from opnorm.models import cnn, save


def png(size: int, level: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (size, size), level).save(buffer, "PNG")
    return buffer.getvalue()


PNGS = [png(8, 10 * i) for i in range(10)]
LABELS = [i % 2 for i in range(10)]


def written(
    path: Path, names: list[str], features: object = None, images: list[bytes] = PNGS, metadata: str = ""
) -> str:
    """A parquet file with images first, and labels in all other columns."""
    labels = [i % 2 for i in range(len(images))]
    columns = [pa.array(images, pa.binary()), *[pa.array(labels)] * (len(names) - 1)]
    table = pa.Table.from_arrays(columns, names=names)
    text = metadata or json.dumps({"info": {"features": features}})
    pq.write_table(table.replace_schema_metadata({b"huggingface": text.encode()}), path)
    return str(path)


def test_images_beyond_half_of_the_free_memory_are_refused_before_any_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = png(256)
    path = written(tmp_path / "large.parquet", ["image", "label"], images=[whole[:-20]] * 40)  # truncated
    monkeypatch.setattr("opnorm.data.decode.available_memory", lambda: 4_000_000)
    with pytest.raises(
        DataError, match=r"40 images of 256 x 256 pixels take at least 0.00262 GB.*at most 0.002 GB"
    ):
        parquet(path)
    monkeypatch.setattr("opnorm.data.decode.available_memory", lambda: 100_000_000)
    with pytest.raises(DataError, match="cannot be decoded"):
        parquet(path)


def test_rows_beyond_it_are_refused_before_the_labels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "rows.parquet", ["image", "label"])
    monkeypatch.setattr("opnorm.data.decode.available_memory", lambda: 1000)
    with pytest.raises(DataError, match="10 images take at least"):
        parquet(path)
    with pytest.raises(DataError, match="10 images of 8 x 8 pixels"):
        parquet(path, size=8)


@pytest.mark.parametrize(
    "error", [MemoryError("Unable to allocate 312. MiB"), RuntimeError("can't allocate memory: 8 bytes")]
)
def test_where_the_system_gives_too_little_the_remedy_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """As under ulimit, of which the free memory of the machine says nothing."""

    def refuse(*args: object, **more: object) -> None:
        raise error

    path = written(tmp_path / "rows.parquet", ["image", "label"])
    monkeypatch.setattr("opnorm.data.cache.decode", refuse)
    with pytest.raises(
        DataError, match=r"rows does not fit in the memory that this process may use: .*allocate.*stream=True"
    ):
        parquet(path)
    monkeypatch.setattr("opnorm.data.cache.decode", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        parquet(path)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no FIFO and no /dev")
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, kind: str) -> None:
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(PNGS[0])
    odd = tmp_path / "set" / "a" / "3.png"
    if kind == "fifo":
        os.mkfifo(odd)
    else:
        odd.symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"3\.png is no file but a device, a pipe or a socket"):
        folder(str(tmp_path / "set"))
    with pytest.raises(DataError, match="a device, a pipe or a socket"):
        parquet(str(odd))


def test_columns_without_a_name_and_of_the_same_name(tmp_path: Path) -> None:
    assert len(parquet(written(tmp_path / "a.parquet", ["", "label"])).train.labels) == 8
    assert parquet(written(tmp_path / "b.parquet", ["image", ""])).classes == ("0", "1")
    with pytest.raises(DataError, match=r"2 columns could be the label: 'label', ''.*label=.label"):
        parquet(written(tmp_path / "c.parquet", ["image", "label", ""]))
    assert parquet(str(tmp_path / "c.parquet"), label="label").num_classes == 2
    twice = written(tmp_path / "d.parquet", ["image", "label", "id", "id"])
    assert parquet(twice, label="label").num_classes == 2
    with pytest.raises(DataError, match="has several columns called 'id'"):
        parquet(twice, label="id")
    with pytest.raises(DataError, match="has several columns called 'label'"):
        parquet(written(tmp_path / "e.parquet", ["image", "label", "label"]))


def test_metadata_that_is_nested_too_deep_counts_as_none(tmp_path: Path) -> None:
    deep = '{"info":' * 20_000 + "1" + "}" * 20_000
    assert parquet(written(tmp_path / "deep.parquet", ["image", "label"], metadata=deep)).classes == (
        "0",
        "1",
    )


def test_classes_of_one_name_get_their_numbers(tmp_path: Path) -> None:
    features = {"label": {"_type": "ClassLabel", "names": ["crane", "crane"]}}
    path = written(tmp_path / "cranes.parquet", ["image", "label"], features)
    with pytest.warns(UserWarning, match="1 class names occur twice, such as 'crane'"):
        found = parquet(path)
    assert found.classes == ("crane (0)", "crane (1)")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_names_that_are_no_utf8_reach_the_page(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "set")
    for k, name in enumerate((b"caf\xe9", b"na\xff")):
        os.makedirs(os.path.join(root, name))
        for i in range(10):
            Path(os.fsdecode(os.path.join(root, name, b"%d.png" % i))).write_bytes(png(8, 100 * k + i))
    data = folder(str(tmp_path / "set"))
    assert data.classes == (r"caf\xe9", r"na\xff")
    model = cnn(width=4, in_shape=(1, 8, 8), classes=2).eval()
    page = opnorm.analyze({os.fsdecode(b"net\xff"): model}, data, ["accuracy"]).write(tmp_path / "page")
    assert page.stat().st_size > 0


def test_text_that_is_no_utf8_is_written_and_read_again(tmp_path: Path) -> None:
    value = {"data": os.fsdecode(b"caf\xe9"), "model": "é"}
    files.write_json(tmp_path / "a.json", value)
    assert files.read_json(tmp_path / "a.json") == value


def test_the_same_network_makes_the_same_file(tmp_path: Path) -> None:
    model = cnn(width=4)
    for i in range(6):  # the order of the metadata, three entries, was random
        save(model, tmp_path / f"{i}.safetensors", "cnn(width=4)")
    assert len({(tmp_path / f"{i}.safetensors").read_bytes() for i in range(6)}) == 1
    tensors, metadata = files.read_tensors(tmp_path / "0.safetensors", checked=True)
    assert metadata == {"format": "pt", "opnorm.model": "cnn(width=4)"}
    assert all(torch.equal(tensors[name], value) for name, value in model.state_dict().items())


def test_a_data_set_says_nothing_where_nothing_is_odd(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert isinstance(parquet(written(tmp_path / "plain.parquet", ["image", "label"])), Dataset)
