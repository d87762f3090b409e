"""LoRA adapters: the norms of their changes equal those of the matrices that are never formed."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file

import opnorm
from opnorm.errors import ModelError
from opnorm.models.low_rank import open_adapter

ORDS = (1, 2, math.inf, "rms")


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def adapter(tmp_path):
    """Writes an adapter of given factors and settings, and a base; gives their paths."""

    def write(factors: dict, base: dict, **config) -> tuple:
        folder = tmp_path / "adapter"
        folder.mkdir()
        settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, **config}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        save_file(
            {f"base_model.model.{n}": t for n, t in factors.items()}, folder / "adapter_model.safetensors"
        )
        save_file(base, tmp_path / "base.safetensors")
        return tmp_path / "base.safetensors", folder

    return write


CASES = {
    "linear": (
        {"fc.lora_A.weight": random(2, 9), "fc.lora_B.weight": random(7, 2)},
        {},
        lambda f: 3 * f["fc.lora_B.weight"] @ f["fc.lora_A.weight"],
    ),
    "rank-stabilized, with a pattern": (
        {"fc.lora_A.weight": random(2, 9), "fc.lora_B.weight": random(7, 2)},
        {"use_rslora": True, "alpha_pattern": {"fc": 8}},
        lambda f: 8 / math.sqrt(2) * f["fc.lora_B.weight"] @ f["fc.lora_A.weight"],
    ),
    "stored the other way": (
        {"fc.lora_A.weight": random(2, 7), "fc.lora_B.weight": random(9, 2)},
        {"fan_in_fan_out": True},
        lambda f: 3 * (f["fc.lora_B.weight"] @ f["fc.lora_A.weight"]).T,
    ),
    "convolution": (
        {"fc.lora_A.weight": random(2, 3, 3, 3), "fc.lora_B.weight": random(5, 2, 1, 1)},
        {},
        lambda f: torch.einsum("or,rikl->oikl", 3 * f["fc.lora_B.weight"][..., 0, 0], f["fc.lora_A.weight"]),
    ),
    "embedding": (
        {"fc.lora_embedding_A": random(2, 11), "fc.lora_embedding_B": random(4, 2)},
        {},
        lambda f: 3 * (f["fc.lora_embedding_B"] @ f["fc.lora_embedding_A"]).T,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_change_is_that_of_the_merged_weights(adapter, tmp_path, case):
    factors, config, change = CASES[case]
    delta = change(factors)
    base, folder = adapter(factors, {"fc.weight": random(*delta.shape)}, **config)
    save_file({"fc.weight": random(*delta.shape) + delta}, tmp_path / "merged.safetensors")
    (by_factors,) = opnorm.measure_checkpoint(base, folder).rows
    (by_difference,) = opnorm.measure_checkpoint(base, tmp_path / "merged.safetensors").rows
    for p in ORDS:
        one, other = by_factors.moved.norms[p], by_difference.moved.norms[p]
        assert float(one.upper) == pytest.approx(float(other.upper), rel=1e-5)
        assert by_factors.share(p)[0] == pytest.approx(by_difference.share(p)[0], rel=1e-5)


def test_an_adapter_by_itself_and_what_it_replaces(adapter):
    factors = {
        "fc.lora_A.weight": random(2, 9),
        "fc.lora_B.weight": random(7, 2),
        "head.weight": random(4, 4),
    }
    base, folder = adapter(
        factors, {"fc.weight": random(7, 9), "head.weight": random(4, 4) + 1, "x.weight": random(2, 2)}
    )
    assert [row.kind for row in opnorm.measure_checkpoint(folder).rows] == ["change", "matrix"]
    moves = opnorm.measure_checkpoint(base, folder)
    assert float(moves.rows[1].moved.norms[1]) == pytest.approx(4.0)
    assert "1 weights of the base are not changed" in moves.missing[0]
    with pytest.raises(ModelError, match="expected the base first"):
        opnorm.measure_checkpoint(folder, base)


def test_adapters_that_are_not_understood(adapter):
    A, B = random(2, 9), random(7, 2)
    _, folder = adapter(
        {"fc.lora_A.weight": A, "fc.lora_B.weight": B, "fc.lora_magnitude_vector": random(7)}, {}
    )
    assert "DoRA" in open_adapter(folder).left_out["fc.weight"]
    for config, says in (
        ({"peft_type": "IA3"}, "IA3"),
        ({"r": 8, "lora_alpha": 1}, "r=8"),
        ({"r": 2}, "lora_alpha=None"),
    ):
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file({"base_model.model.fc.lora_A.weight": A, "base_model.model.fc.lora_B.weight": B},
                  folder / "adapter_model.safetensors")  # fmt: skip
        with pytest.raises(ModelError, match=says):
            open_adapter(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 2, "lora_alpha": 1}))
    save_file({"fc.lora_A.weight": A, "fc.lora_B.weight": random(7, 3)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="expected A"):
        open_adapter(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="downloaded in part"):
        open_adapter(folder)
