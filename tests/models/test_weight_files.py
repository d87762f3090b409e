"""Files of weights without a network: shards, folders, state dicts, and those that are damaged."""

import json

import pytest
import torch
from safetensors.torch import save_file

from opnorm.errors import ModelError
from opnorm.models.weight_files import open_weights

A, B = torch.arange(6.0).view(2, 3), torch.ones(4, 4, dtype=torch.bfloat16)


@pytest.fixture
def sharded(tmp_path):
    """A folder of two shards and their index."""
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    save_file({"a.weight": A}, tmp_path / names[0])
    save_file({"b.weight": B}, tmp_path / names[1])
    index = {"weight_map": {"a.weight": names[0], "b.weight": names[1]}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_an_index_and_its_folder_have_the_tensors_of_all_shards(sharded):
    for path in (sharded, sharded / "model.safetensors.index.json"):
        found = open_weights(path).tensors
        assert {name: (t.shape, t.dtype) for name, t in found.items()} == {
            "a.weight": ((2, 3), "float32"),
            "b.weight": ((4, 4), "bfloat16"),
        }
        assert torch.equal(found["a.weight"].read(), A)


def test_a_shard_by_itself_is_said_to_be_one(sharded):
    assert "shard 1 of 2" in open_weights(sharded / "model-00001-of-00002.safetensors").remarks[0]


def test_shards_of_torch_and_nested_state_dicts(tmp_path):
    torch.save({"a.weight": A}, tmp_path / "pytorch_model-00001-of-00001.bin")
    index = {"weight_map": {"a.weight": "pytorch_model-00001-of-00001.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(open_weights(tmp_path).tensors["a.weight"].read(), A)
    big = {"x": torch.zeros(99, 99)}
    torch.save({"model": {"w": A}, "ema": {"w": B}, "optimizer": big}, tmp_path / "all.pt")
    found = open_weights(tmp_path / "all.pt")
    assert torch.equal(found.tensors["w"].read(), A)
    assert "ema, optimizer" in found.remarks[0]


def truncated(path):
    save_file({"w": torch.zeros(50, 50)}, path)
    path.write_bytes(path.read_bytes()[:-100])


def lies(path):
    """A header whose sizes are not those of its data."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [1000, 1000], "data_offsets": [0, 16]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (truncated, "truncated"),
        (lies, "truncated, or of another format"),
        (lambda path: path.write_text("<!DOCTYPE html><html>"), "web page"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS pointer"),
        (lambda path: path.write_bytes(b""), "truncated"),
        (lambda path: None, "no file"),
    ],
)
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_what_is_no_file_of_weights_is_named(tmp_path, make, says, name):
    path = tmp_path / name
    make(path)
    with pytest.raises(ModelError, match=says) as e:
        open_weights(path)
    assert "\n" not in str(e.value)


def test_an_index_that_does_not_fit_its_shards(sharded):
    index = sharded / "model.safetensors.index.json"
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"names the shard model-00002-of-00002\.safetensors, which is not"):
        open_weights(sharded)
    index.write_text(json.dumps({"weight_map": {"c.weight": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(ModelError, match=r"no tensor c\.weight"):
        open_weights(sharded)
    index.write_text(json.dumps({"weight_map": {"c.weight": "../elsewhere.safetensors"}}))
    with pytest.raises(ModelError, match="not beside it"):
        open_weights(sharded)
    index.write_text("[]")
    with pytest.raises(ModelError, match="no index of shards"):
        open_weights(sharded)


def test_a_folder_without_weights_or_with_many(tmp_path):
    with pytest.raises(ModelError, match="has no weights"):
        open_weights(tmp_path)
    for name in "ab":
        save_file({"w": A}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ModelError, match="name one file"):
        open_weights(tmp_path)
