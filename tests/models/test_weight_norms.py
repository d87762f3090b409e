"""Checkpoints without their model: what each tensor is, its norms, and how far it moved."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import opnorm
from opnorm.errors import ModelError, NormError


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


NETWORK = {
    "embed_tokens.weight": random(20, 6),
    "conv.weight": random(4, 3, 3, 3),
    "conv.bias": random(4),
    "norm.weight": torch.tensor([1.0, -2.0]),
    "bn.weight": torch.ones(4),
    "bn.running_var": torch.ones(4),
    "bn.num_batches_tracked": torch.tensor(3),
    "fc.weight": random(5, 8).bfloat16(),
    "pos_embed": random(1, 4, 8),
    "fc.weight_orig": random(5, 8),
    "fc.weight_mask": torch.ones(5, 8),
}


@pytest.fixture
def path(tmp_path):
    save_file(NETWORK, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_every_weight_is_named_as_what_it_is(path):
    table = opnorm.measure_checkpoint(path)
    rows = {row.name: row for row in table.rows}
    assert {name: row.kind for name, row in rows.items()} == {
        "embed_tokens.weight": "embedding",
        "conv.weight": "kernel",
        "norm.weight": "diagonal",
        "bn.weight": "diagonal",
        "fc.weight": "matrix",
        "fc.weight_orig": "matrix",
    }
    assert set(table.left_out) == set(NETWORK) - set(rows)
    assert table.left_out["fc.weight_mask"] == "masks of pruned weights"
    assert float(rows["norm.weight"].norms[2]) == 2
    assert "running_var" in rows["bn.weight"].note
    assert "parametrization" in rows["fc.weight_orig"].note
    M = NETWORK["conv.weight"].flatten(1).double()
    assert float(rows["conv.weight"].norms[1]) == pytest.approx(float(M.abs().sum(0).max()), rel=1e-13)
    assert float(rows["conv.weight"].norms[2].upper) == pytest.approx(float(torch.linalg.matrix_norm(M, 2)))
    assert "stride, padding" in " ".join(table.sentences())


def test_a_table_as_json_csv_markdown_and_text(path):
    table = opnorm.measure_checkpoint(path, only="fc.weight")
    (weight,) = json.loads(table.to_json())["weights"]
    assert weight["dtype"] == "bfloat16"
    assert weight["norms"]["rms"]["lower"] <= weight["norms"]["rms"]["upper"]
    assert table.to_csv().splitlines()[1].startswith("fc.weight,matrix,5x8,bfloat16,")
    assert "| fc.weight" in table.to_markdown()
    assert "stable rank" in str(table)


def test_the_same_numbers_as_with_the_model(tmp_path):
    model = nn.Sequential(nn.Linear(9, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    without = opnorm.measure_checkpoint(tmp_path / "weights.pt").rows
    layers = [
        row for row in opnorm.measure(model, torch.zeros(1, 9), (1, 2, math.inf, "rms")).rows if row.norms
    ]
    for mine, theirs in zip(without, layers, strict=True):
        for p in (1, 2, math.inf, "rms"):
            assert float(mine.norms[p].upper) == pytest.approx(float(theirs.norms[p].upper), rel=1e-3)


def test_how_far_weights_moved_whatever_the_prefix(path, tmp_path):
    change = random(5, 8, seed=5)
    after = {f"module.{name}": t for name, t in NETWORK.items() if name != "conv.weight"}
    after["module.fc.weight"] = (NETWORK["fc.weight"].float() + change).bfloat16()
    after["module.norm.weight"] = torch.ones(3)
    torch.save({"state_dict": after | {"module.new.weight": random(2, 2)}}, tmp_path / "after.pt")
    table = opnorm.measure_checkpoint(path, tmp_path / "after.pt")
    rows = {row.name: row for row in table.rows}
    D = after["module.fc.weight"].double() - NETWORK["fc.weight"].double()
    W = NETWORK["fc.weight"].double()
    moved = rows["fc.weight"]
    assert float(moved.moved.norms[2].upper) == pytest.approx(float(torch.linalg.matrix_norm(D, 2)))
    low, high = moved.share(2)
    truth = float(torch.linalg.matrix_norm(D, 2) / torch.linalg.matrix_norm(W, 2))
    assert low <= truth * (1 + 1e-13)
    assert high >= truth * (1 - 1e-13)
    assert moved.frobenius_share == pytest.approx(float(D.norm() / W.norm()))
    assert rows["embed_tokens.weight"].share(2) == (0.0, 0.0)
    assert "(3,)" in rows["norm.weight"].note
    assert table.missing == ("Only in the first: conv.weight", "Only in the second: module.new.weight")
    assert json.loads(table.to_json())["weights"][0]["relative"]


@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        (torch.tensor(0.5), torch.full((256, 300), 0.5)),
        (torch.arange(1.0, 257).view(256, 1), torch.arange(1.0, 257).view(256, 1).expand(256, 300)),
        (
            torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
            torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
            .repeat_interleave(128, 0)
            .repeat_interleave(128, 1)[:, :300],
        ),
    ],
    ids=["one", "rows", "blocks"],
)  # fmt: skip
def test_float8_is_multiplied_by_its_scale(tmp_path, scale, factors):
    W = random(256, 300).to(torch.float8_e4m3fn)
    name = "fc.weight_scale_inv" if scale.shape == (2, 3) else "fc.weight_scale"
    save_file({"fc.weight": W, name: scale}, tmp_path / "q.safetensors")
    (row,) = opnorm.measure_checkpoint(tmp_path / "q.safetensors", ords=(1,)).rows
    expected = (W.double() * factors.double()).abs().sum(0).max()
    assert float(row.norms[1]) == pytest.approx(float(expected), rel=1e-6)


def test_a_scale_that_does_not_fit_is_a_row_that_says_so(tmp_path):
    W = random(6, 7).to(torch.float8_e5m2)
    save_file(
        {"a.weight": W, "a.weight_scale": torch.ones(4, 5), "b.weight": W.clone()}, tmp_path / "q.safetensors"
    )
    first, second = opnorm.measure_checkpoint(tmp_path / "q.safetensors").rows
    assert not first.norms
    assert "does not fit" in first.note
    assert second.norms
    assert "without a scale" in second.note


def test_what_cannot_be_measured(path, tmp_path):
    with pytest.raises(NormError, match=r"no weight matches 'fc\.weigth'; did you mean 'fc\.weight'"):
        opnorm.measure_checkpoint(path, only="fc.weigth")
    with pytest.raises(NormError, match="pairs need the layer"):
        opnorm.measure_checkpoint(path, ords=((1, 2),))
    save_file({"n": torch.tensor([1, 2])}, tmp_path / "ints.safetensors")
    with pytest.raises(ModelError, match="no weight matrices"):
        opnorm.measure_checkpoint(tmp_path / "ints.safetensors")
    save_file({"other.weight": random(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no weight of one name"):
        opnorm.measure_checkpoint(path, tmp_path / "other.safetensors")
