"""Vectors, sequences and volumes from a data function of one's own: train, attack, analyze, show, and the page."""

import json
from pathlib import Path

import pytest
import torch

from opnorm.data import Dataset, Split
from opnorm.errors import DataError

pytestmark = pytest.mark.usefixtures("few_queries")

CODE = """
import torch
from torch import nn
from opnorm.data import Dataset, Split

SHAPES = {"vectors": (6,), "sequences": (2, 5), "volumes": (1, 2, 3, 4)}
BEGIN = {"vectors": nn.Identity, "sequences": lambda: nn.Conv1d(2, 4, 3, padding=1), "volumes": lambda: nn.Conv3d(1, 3, 2)}

def data(kind):
    shape, generator = SHAPES[kind], torch.Generator().manual_seed(0)
    centers = torch.randint(60, 190, (3, *shape), generator=generator)
    def part(n):
        labels = torch.arange(n) % 3
        noise = torch.randint(-20, 20, (n, *shape), generator=generator)
        return Split((centers[labels] + noise).to(torch.uint8), labels)
    return Dataset(kind, part(30), part(12), ("a", "b", "c"))

def network(kind):
    features = {"vectors": 6, "sequences": 20, "volumes": 18}[kind]
    return nn.Sequential(BEGIN[kind](), nn.Flatten(), nn.ReLU(), nn.Linear(features, 3))
"""
WHAT = (
    "accuracy",
    "norm_table",
    "robust_accuracy(points=5, steps=2)",
    "singular_alignment(points=5)",
    "relu_cells(points=5)",
)


@pytest.mark.parametrize("kind", ["vectors", pytest.param("sequences", marks=pytest.mark.slow), "volumes"])
def test_from_the_shell(kind, main, monkeypatch, tmp_path):
    name = f"own_{kind}"
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    data, model = f"{name}.data(kind='{kind}')", f"{name}.network(kind='{kind}')"
    status, out, err = main(
        "train", "--data", data, "--model", model, "--epochs", "1", "--analyses", "accuracy"
    )
    assert status == 0, err
    key = Path(out.split()[-1]).name
    status, out, err = main(
        "attack", key, "--limit", "6", "--eps", "0.02", "--attack", "pgd(steps=2)", "--json"
    )
    assert status == 0, err
    assert json.loads(out)["points"] == 6
    status, _, err = main(
        "attack", key, "--limit", "6", "--attack", "pgd(steps=2)", "--sheet", str(tmp_path / "s.png")
    )
    assert (status, "no images to draw" in err) == (2, True)
    status, out, err = main("analyze", key, "--what", *WHAT)
    assert status == 0, err
    assert "singular" in Path(out.split()[-1]).read_text()
    assert "failed" not in out + err
    assert main("show", key)[0] == 0
    for options, says in (
        (("--augment", "flip"), "expected torch.uint8 (B, C, H, W). Vectors, sequences and volumes"),
        (("--model", "cnn"), "expected (channels, height, width), as opnorm's own networks are for images"),
    ):
        chosen = () if "--model" in options else ("--model", model)
        status, _, err = main("train", "--data", data, *chosen, "--epochs", "1", *options)
        assert (status, says in " ".join(err.split())) == (2, True), err


@pytest.mark.parametrize("shape", [(6,), (2, 5), (1, 2, 3, 4)])
def test_means_and_crops(shape):
    points = torch.randint(0, 256, (12, *shape), dtype=torch.uint8)
    split = Split(points, torch.arange(12) % 2)
    data = Dataset("toy", split, split, ("a", "b"))
    assert data.image_shape == shape
    channels = (points.double() / 255).transpose(0, 1).flatten(1)
    assert data.mean == pytest.approx(channels.mean(1).tolist())
    assert data.std == pytest.approx(channels.std(1, correction=0).tolist())
    assert data.limit(5).train.images.shape == (5, *shape)
    with pytest.raises(DataError, match=r"center_crop=1: .* expected images \(C, H, W\)"):
        data.center_crop(1)
