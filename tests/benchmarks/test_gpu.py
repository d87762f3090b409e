"""The script for a GPU runs at its small size on the CPU, and notices what is wrong."""

import json

import pytest
import torch

from tests.benchmarks import gpu


@pytest.mark.slow
def test_small_size_writes_every_part(tmp_path):
    path = tmp_path / "gpu.json"
    assert gpu.main(["--device", "cpu", "--quick", "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["about"]["torch"] == torch.__version__
    assert set(figures["exactness"]) == set(gpu.LIMITS)
    assert [row["training"] for row in figures["training"]] == ["plain", "PGD-10"]
    assert all(row["images_s"] > 0 for row in figures["training"])
    assert figures["attack"]["robust"] <= figures["attack"]["clean"]
    assert {"l1_us", "linf_us"} <= set(figures["norms"][-1])


def test_a_wrong_norm_is_noticed(monkeypatch, tmp_path):
    right = gpu.l1
    monkeypatch.setattr(
        gpu,
        "l1",
        lambda layer, shape: right(layer, shape) * (1 + 1e-3 * (layer.weight.dtype == torch.float32)),
    )
    assert gpu.exactness("cpu", quick=True)["l1 and linf, float32"] > gpu.LIMITS["l1 and linf, float32"]


def test_no_gpu_is_said(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda"])
    assert "--device cpu --quick" in capsys.readouterr().err
